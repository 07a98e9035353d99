"""Video and sound files: what is in them, their pictures and sound by the clock, and writing new ones.

The only file that touches PyAV. Everything is placed by presentation time: t = 0 is the moment the first
picture is shown (the first sound sample in files without video), whatever the container's own zero is.
Only local files of the containers in `FORMATS` are read: no network, no playlists, nothing that makes
FFmpeg open a second file. FFmpeg's errors go to stderr (see `log_to_stderr`).
"""

import bisect
import contextlib
import enum
import itertools
import math
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.stream import Discard, Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

# Containers that hold their media themselves. Left out on purpose: playlists and all else that opens further
# files or hosts (hls, dash, concat, image2, sdp, rtsp, lavfi, ...).
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,wav,w64,aiff,caf,mp3,flac,aac,ac3,eac3,dts,"
    "h264,hevc,m4v,mpegvideo,ivf,obu,mxf,nut,rm,dv,amr,au,wv,tta"
)
# Formats without index or timestamps: durations are guesses from the bit rate, seeking lands anywhere.
BARE = {"h264", "hevc", "m4v", "mpegvideo", "obu", "mp3", "aac", "ac3", "eac3", "dts", "amr"}
# Not every picture of an MPEG program stream has a time; after seeking, FFmpeg's guesses differ.
UNSEEKABLE = BARE | {"mpeg"}
MAX_PIXELS = 8192 * 8192
MAX_AUDIO_SECONDS = 12 * 3600
TAIL_SECONDS = 10
LAST_TICK = 1 << 62  # what FFmpeg can seek to
# So many packets failing before any came out: the stream is taken to be unreadable (encrypted, say).
MAX_FAILED_PACKETS = 1000
LOWEST_RATE, HIGHEST_RATE = 1000, 768000
# Sound whose time is off by no more follows seamlessly: half a frame at 25 fps.
SYNC_TOLERANCE = 0.02
CHANNELS = {"mono": 1, "stereo": 2}
# Pictures that one may be stored ahead of those shown before it, at most, and some to spare.
MAX_REORDERED = 32
# A span that went through floats may miss a picture's time by this share of a tick and still mean it.
TICK_TOLERANCE = Fraction(1, 1000)
# A time that lies further ahead, in seconds, is believed once the next one does, too.
BELIEVED_GAP = 1

Source = str | Path | BinaryIO
Item = TypeVar("Item")
Stamp = TypeVar("Stamp", int, int | None)


class MediaError(Exception):
    """A file that cannot be read or written: which, why, and what to do."""


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of the source's clock in seconds, end exclusive."""

    start: Fraction
    end: Fraction


@dataclass(frozen=True)
class VideoStream:
    """The first video stream (cover art does not count).

    width, height: pixels as shown, upright and square. coded_width, coded_height: as stored.
    rotation: degrees clockwise from stored to shown (0, 90, 180, 270); mirrored: then flipped left-right.
    fps: mean rate. frames: as counted by the container. start: the container's time of t = 0, seconds.
    duration: seconds from the first picture's time to the last one's end.
    """

    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    mirrored: bool
    fps: Fraction
    time_base: Fraction
    frames: int | None
    start: Fraction
    duration: Fraction


@dataclass(frozen=True)
class AudioStream:
    """The default sound stream. start: seconds on the clock, negative when it begins before the video."""

    codec: str
    sample_rate: int
    channels: int
    start: Fraction
    duration: Fraction


@dataclass(frozen=True)
class Probe:
    """What a file holds. duration: the clock's time at which the last stream ends, seconds."""

    path: str
    bytes: int
    container: str
    duration: Fraction
    video: VideoStream | None
    audio: AudioStream | None


class Decode(enum.Enum):
    """How much of a video to decode."""

    ALL = "all"
    REFERENCE = "reference"  # pictures that others refer to, each as in a full decode
    KEY = "key"  # keyframes only, and the first picture


def log_to_stderr(level: int = av.logging.ERROR) -> None:
    """Let FFmpeg itself write its errors to stderr (called on import).

    PyAV otherwise drops them, or takes the GIL in decoder threads to hand them to `logging`. A worker's
    stderr is kept with the failures it causes.
    """
    av.logging.restore_default_callback()
    av.logging.set_libav_level(level)


log_to_stderr()


# --- what is in a file ------------------------------------------------------------------------------------


def probe(source: Source) -> Probe:
    """What a file holds, with the clock's zero taken from the first picture that can be decoded.

    Reads the file's last seconds for the time it ends, or all of it where no duration is stated.
    Raises MediaError when it is no media file, or holds neither pictures nor sound that can be decoded.
    """
    name = _name(source)
    with _opened(source) as container:
        kind, size = container.format.name, container.size
        has_video, has_audio = _video_stream(container) is not None, _audio_stream(container) is not None
        ends = _ends(container, name)
    if not has_video and not has_audio:
        raise MediaError(f"{name}: holds neither video nor sound ({kind})")
    zero: Fraction | None = None
    video, audio = None, None
    if has_video:
        with contextlib.closing(_Film(source, Decode.ALL, 1)) as film:
            zero = film.zero
            video = _video_facts(film, ends[film.stream.index] - zero)
    with _opened(source) as container:
        stream = _audio_stream(container)
        first = None if stream is None else next(_decoded(container, stream, name), None)
        if stream is not None and first is not None:
            start = (first.pts or 0) * _base(stream)
            zero = start if zero is None else zero
            audio = AudioStream(
                codec=stream.codec_context.codec.canonical_name,
                sample_rate=first.sample_rate,
                channels=first.layout.nb_channels,
                start=start - zero,
                duration=max(Fraction(0), ends[stream.index] - start),
            )
    if video is None and audio is None:
        raise MediaError(f"{name}: its sound cannot be decoded")
    duration = max(([video.duration] if video else []) + ([audio.start + audio.duration] if audio else []))
    return Probe(name, size, kind, duration, video, audio)


def _video_facts(film: "_Film", duration: Fraction) -> VideoStream:
    look, stream = film.look, film.stream
    return VideoStream(
        codec=stream.codec_context.codec.canonical_name,
        width=look.width,
        height=look.height,
        coded_width=look.coded_width,
        coded_height=look.coded_height,
        rotation=look.rotation,
        mirrored=look.mirrored,
        fps=film.rate,
        time_base=film.time_base,
        frames=stream.frames or None,
        start=film.zero,
        duration=max(Fraction(0), duration),
    )


def _ends(container: av.container.InputContainer, name: str) -> dict[int, Fraction]:
    """When each of the two streams ends, in the container's time.

    mp4 indexes say. Elsewhere the last packets are read; all of them where seeking there cannot be trusted.
    """
    ends: dict[int, Fraction] = {}
    streams = [s for s in (_video_stream(container), _audio_stream(container)) if s is not None]
    kind, total = container.format.name, container.duration
    begin = container.start_time or 0
    if kind.startswith("mov") and all(s.frames and s.duration for s in streams):
        return {s.index: ((s.start_time or 0) + (s.duration or 0)) * _base(s) for s in streams}
    if total is not None and kind not in BARE and not kind.startswith("mov"):
        ends = dict.fromkeys((s.index for s in streams), Fraction(begin + total, av.time_base))
        with contextlib.suppress(av.FFmpegError):
            container.seek(max(begin, begin + total - TAIL_SECONDS * av.time_base))
    read: dict[int, Fraction] = {}
    for packet in _packets(container, streams, name):
        index, base = packet.stream_index, _base(packet.stream)
        stamp = _stamp(container, packet)
        start = read.get(index, Fraction(0)) if stamp is None else stamp * base
        length = packet.duration * base if packet.duration else 1 / _rate(packet.stream)
        read[index] = max(read.get(index, Fraction(0)), start + length)
    return dict.fromkeys((s.index for s in streams), Fraction(0)) | ends | read


def _stamp(container: av.container.InputContainer, item: av.Packet | av.VideoFrame) -> int | None:
    """When a packet or frame is shown, in ticks of its stream.

    AVI has no presentation times: a picture is shown when the decoder hands it out (see `_Film`).
    """
    return item.dts if container.format.name == "avi" else item.pts


def _base(stream: av.stream.Stream) -> Fraction:
    """Seconds a tick."""
    return Fraction(stream.time_base or 1)


def _rate(stream: av.stream.Stream) -> Fraction:
    """Frames (of sound: packets of 1024 samples) per second."""
    if isinstance(stream, av.AudioStream):
        return Fraction(stream.codec_context.sample_rate or 48000, 1024)
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


@dataclass(frozen=True)
class Timeline:
    """When every picture of a video is shown, read off its packets without decoding them.

    ticks_N: int64, increasing, 0 for the first picture that can be decoded. key_N: bool, keyframes.
    reordered: whether pictures are stored in another order than they are shown in (B-frames).
    """

    ticks_N: np.ndarray
    key_N: np.ndarray
    reordered: bool

    def frame(self, ticks: int) -> int:
        """The index of the picture shown at that tick: of the last one that is not later."""
        return int(np.searchsorted(self.ticks_N, ticks, "right")) - 1


def timeline(source: Source) -> Timeline:
    """When every picture of a video is shown. Reads the whole file.

    Raises MediaError when the file cannot be read, has no video, or no picture of it can be decoded.
    """
    begun: list[av.Packet] = []
    with contextlib.closing(_Film(source, Decode.ALL, 1, begun.append)) as film:
        first, step, avi = film.first, film.step, film.avi
        packets = itertools.chain(begun, _packets(film.container, [film.stream], _name(source)))
        shown = [
            (packet.pts if packet.pts is not None else packet.dts, packet.is_keyframe)
            for packet in packets
            if not packet.is_discard
        ]
    stamps = [first + n * step if stamp is None else stamp for n, (stamp, _) in enumerate(shown)]
    stamps_N, stored_N = np.unique(np.array(stamps, np.int64), return_index=True)
    ticks_N = stamps_N - (stamps_N[0] if avi else first)
    key_N = np.array([key for _, key in shown], bool)[stored_N]
    # A time far out of the order of storage is one bad bit in a stamp.
    seen_N = (ticks_N >= 0) & (abs(stored_N - np.arange(len(stored_N))) <= MAX_REORDERED + len(stamps) - len(stamps_N))
    return Timeline(ticks_N[seen_N], key_N[seen_N], bool((np.diff(stored_N) < 0).any()))


# --- pictures ---------------------------------------------------------------------------------------------


class Picture:
    """One decoded video frame. ticks: its time in the stream's time base, 0 for the first picture."""

    __slots__ = ("_look", "frame", "ticks")

    def __init__(self, ticks: int, frame: av.VideoFrame, look: "_Look") -> None:
        self.ticks = ticks
        self.frame = frame
        self._look = look

    @property
    def time(self) -> Fraction:
        """Seconds on the source's clock."""
        return self.ticks * self._look.time_base

    @property
    def key(self) -> bool:
        return self.frame.key_frame

    @property
    def corrupt(self) -> bool:
        """Whether the decoder had to make up parts of the picture."""
        return self.frame.is_corrupt

    def image(self, width: int | None = None, height: int | None = None) -> np.ndarray:
        """The picture as shown: upright, pixels square. Width or height alone keeps the aspect.

        Returns uint8 [H, W, 3] RGB, contiguous.
        """
        return self._look.image(self.frame, width, height)

    def glance(self, side: int) -> np.ndarray:
        """The picture as shown, shrunk (never enlarged) to a long side of `side` pixels, to find things in.

        A third of the price of `image`: area averages, and chroma not interpolated.
        Returns uint8 [H, W, 3] RGB, contiguous.
        """
        return self._look.glance(self.frame, side)

    def thumbnail(self, width: int) -> np.ndarray:
        """A rough small picture, cheaply: every nth sample of every plane; `width` to 2 * `width` wide.

        Returns uint8 [h, w, 3] BGR as stored: not rotated, pixels not squared.
        """
        return self._look.thumbnail(self.frame, width)


def pictures(
    source: Source,
    span: Span | None = None,
    decode: Decode = Decode.ALL,
    threads: int = 1,
    whole: Sequence[Span] = (),
) -> Iterator[Picture]:
    """The pictures whose time lies in the span (all without one), in presentation order.

    whole: stretches, in order, in which Decode.REFERENCE leaves out nothing.
    A damaged or cut-off file gives the pictures that can be decoded, and then ends; a picture whose time
    does not advance is left out.
    Raises MediaError when the file cannot be read, has no video, or no picture of it can be decoded.
    """
    with contextlib.closing(_Film(source, decode, threads)) as film:
        first, last = (0, None) if span is None else (film.tick(span.start), film.tick(span.end))
        stretches = [(film.tick(stretch.start), film.tick(stretch.end)) for stretch in whole]
        if decode is Decode.ALL and span is not None:
            stretches = [(first, film.tick(span.end))]
        for picture in film.play(first, stretches):
            if last is not None and picture.ticks >= last:
                return
            if picture.ticks >= first:
                yield picture


def frames(
    source: Source, span: Span, fps: Fraction = Fraction(25), size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Images at span.start + k / fps, each of the picture on show at that time.

    size: (width, height) of the images; as shown without it.
    Yields uint8 [H, W, 3] RGB. Before the first picture that one is given; the last one is held for its own
    duration, so a span that reaches further gives fewer images.
    """
    count = math.ceil((span.end - span.start) * fps - TICK_TOLERANCE)
    with contextlib.closing(_Film(source, Decode.ALL, 1)) as film:
        wanted = (math.floor((span.start + k / fps) / film.time_base + TICK_TOLERANCE) for k in range(count))
        want = next(wanted, None)
        shown: Picture | None = None
        image: np.ndarray | None = None
        for picture in film.play(want or 0):
            while shown is not None and want is not None and want < picture.ticks:
                image = shown.image(*(size or ())) if image is None else image.copy()
                yield image
                want = next(wanted, None)
            if want is None:
                return
            shown, image = picture, None
        while shown is not None and want is not None and want < shown.ticks + film.duration(shown):
            image = shown.image(*(size or ())) if image is None else image.copy()
            yield image
            want = next(wanted, None)


class _Look:
    """How the frames of one stream become images: orientation, shape of pixels, colours."""

    def __init__(self, source: Source, stream: av.VideoStream, frame: av.VideoFrame) -> None:
        self.time_base = _base(stream)
        self._name = _name(source)
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        self.turned, self.flip_x, self.flip_y = _orientation(None if matrix is None else bytes(matrix))
        self.coded_width, self.coded_height = frame.width, frame.height
        width = max(1, round(frame.width * (stream.sample_aspect_ratio or 1)))
        _check_pixels(source, width, frame.height)
        self.width, self.height = (frame.height, width) if self.turned else (width, frame.height)
        self._reformatter = VideoReformatter()

    @property
    def mirrored(self) -> bool:
        return self.turned ^ self.flip_x ^ self.flip_y

    @property
    def rotation(self) -> int:
        if self.turned:
            return 90 if self.flip_x != self.mirrored else 270
        return 180 if self.flip_y else 0

    def image(self, frame: av.VideoFrame, width: int | None, height: int | None) -> np.ndarray:
        if width is None:
            width = self.width if height is None else max(1, round(self.width * height / self.height))
        if height is None:
            height = max(1, round(self.height * width / self.width))
        return self._upright(self._convert(frame, *self._stored(width, height), "rgb24"))

    def glance(self, frame: av.VideoFrame, side: int) -> np.ndarray:
        shrink = min(1.0, side / max(self.width, self.height))
        width, height = self._stored(max(1, round(self.width * shrink)), max(1, round(self.height * shrink)))
        # Shrinking and converting in one go would leave swscale's fast paths.
        small = self._reformatter.reformat(
            frame, width=width, height=height, format=frame.format.name, interpolation=Interpolation.AREA, threads=1
        )
        return self._upright(self._convert(small, width, height, "rgb24"))

    def _stored(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.turned else (width, height)

    def _upright(self, image: np.ndarray) -> np.ndarray:
        if self.turned:
            image = image.swapaxes(0, 1)
        return np.ascontiguousarray(image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])

    def thumbnail(self, frame: av.VideoFrame, width: int) -> np.ndarray:
        step = max(1, frame.width // width)
        whole = max(1, self.coded_width // width)
        size = max(1, self.coded_width // whole), max(1, self.coded_height // whole)
        return self._convert(_every_nth(frame, step), *size, "bgr24")

    def _convert(self, frame: av.VideoFrame, width: int, height: int, to: str) -> np.ndarray:
        # Untagged HD is BT.709 to every player; swscale would take BT.601. (0 is RGB, 2 unspecified.)
        hd = self.coded_width >= 1280 or self.coded_height > 576
        with _speaking(self._name, f"its {frame.format.name} pictures cannot be converted"):
            return self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format=to,
                src_colorspace=Colorspace.ITU709 if hd and frame.colorspace == 2 else None,
                interpolation=Interpolation.AREA if width < frame.width else Interpolation.BICUBIC,
                threads=1,
            ).to_ndarray()


def _orientation(matrix: bytes | None) -> tuple[bool, bool, bool]:
    """A display matrix (libavutil/display.h) as: swap the axes, then flip left-right, then flip up-down."""
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


# Sample types of the luma plane and of the chroma planes (two samples interleaved in the nv12 family).
PLANES = {
    **dict.fromkeys(
        ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"), (np.uint8, np.uint8)
    ),
    **dict.fromkeys(("nv12", "nv21", "nv16"), (np.uint8, np.uint16)),
    **dict.fromkeys(("yuv420p10le", "yuv422p10le", "yuv444p10le", "gray10le"), (np.uint16, np.uint16)),
    "p010le": (np.uint16, np.uint32),
}


def _every_nth(frame: av.VideoFrame, step: int) -> av.VideoFrame:
    """Every nth sample of every row of every plane, as a frame of the same format (or the frame itself)."""
    types = PLANES.get(frame.format.name)
    planes = frame.planes
    if types is None or step == 1 or any(plane.line_size <= 0 for plane in planes):
        return frame
    small = av.VideoFrame(frame.width // step, max(1, frame.height // step), frame.format.name)
    small.colorspace, small.color_range = frame.colorspace, frame.color_range
    for index, (source, target) in enumerate(zip(planes, small.planes, strict=True)):
        kind = np.dtype(types[index > 0])
        rows = np.frombuffer(memoryview(target), kind).reshape(-1, target.line_size // kind.itemsize)
        samples = np.frombuffer(memoryview(source), kind).reshape(-1, source.line_size // kind.itemsize)
        height, width = target.height, target.width
        rows[:height, :width] = samples[::step, ::step][:height, :width]
    return small


class _Film:
    """An open file's video stream with its clock."""

    def __init__(
        self, source: Source, decode: Decode, threads: int, before: Callable[[av.Packet], None] = lambda packet: None
    ) -> None:
        """before: called with each packet that is read to decode the first picture."""
        self.source, self.decode, self.threads, self._before = source, decode, threads, before
        self._whole: Sequence[tuple[int, int]] = ()
        self.container, self.stream = self._open()
        try:
            self._frames = _decoded(self.container, self.stream, _name(source), self._choose)
            first = next(self._frames, None)
            if first is None:
                raise MediaError(f"{_name(source)}: no picture of its video can be decoded")
            self.time_base = _base(self.stream)
            self.rate = _rate(self.stream)
            self.look = _Look(source, self.stream, first)
            self.step = max(1, round(1 / (self.rate * self.time_base)))
            stamp = _stamp(self.container, first)
            self._seekable = stamp is not None and self.container.format.name not in UNSEEKABLE
            self.first = stamp or 0
            # In AVI the decoder's delay is in the stamps; the first picture belongs to the first packet.
            self.avi = self.container.format.name == "avi"
            self.zero = ((self.stream.start_time or 0) if self.avi else self.first) * self.time_base
            self._head: av.VideoFrame | None = first
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.container.close()

    def tick(self, seconds: Fraction) -> int:
        """The first tick not before this time."""
        return math.ceil(seconds / self.time_base - TICK_TOLERANCE)

    def duration(self, picture: Picture) -> int:
        """Ticks for which a picture is on show when none follows."""
        return picture.frame.duration or self.step

    def play(self, first: int = 0, whole: Sequence[tuple[int, int]] = ()) -> Iterator[Picture]:
        """Pictures in order, beginning with one at or before tick `first`. To be called once.

        whole: stretches of ticks outside which pictures are decoded only where others refer to them.
        """
        self._whole = whole
        latest = -1
        indexed = self.decode is Decode.KEY and self.stream.frames > 0 and self.container.format.name.startswith("mov")
        stamped = self._keys(first) if indexed else self._from(first)
        for ticks, frame in _believed(stamped, math.ceil(BELIEVED_GAP / self.time_base)):
            if ticks > latest and (self.decode is not Decode.KEY or frame.key_frame or ticks == 0):
                latest = ticks
                yield Picture(ticks, frame, self.look)

    def _from(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Seeks; further back as long as what comes first is too late (open GOPs, no index), or to the start."""
        back, second = 0, math.ceil(1 / self.time_base)
        while self._seekable and back < first:
            self._head = None
            try:
                self.container.seek(min(self.first + first - back, LAST_TICK), stream=self.stream)
            except av.FFmpegError:
                break
            self._skip()
            decoded = _decoded(self.container, self.stream, _name(self.source), self._choose, True)
            stamped = self._stamped(decoded, None)
            head = next(stamped, None)
            if head is not None and head[0] <= first:
                return itertools.chain([head], stamped)
            back = max(second, 2 * back)
        if self._head is None:
            self.close()
            self.container, self.stream = self._open()
            self._frames = _decoded(self.container, self.stream, _name(self.source), self._choose)
            self._head = next(self._frames, None)
        self._skip()
        return self._stamped(itertools.chain([] if self._head is None else [self._head], self._frames), 0)

    def _keys(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Keyframes by an mp4's index, so that nothing else is read: from one or two before tick `first`.

        (FFmpeg can pass over the other packets itself, but then gives those it returns the wrong times.)
        """
        entries = [e for e in self.stream.index_entries if e.is_keyframe and not e.is_discard]
        stored = [entry.timestamp for entry in entries]
        if first <= 0 and self._head is not None:
            yield 0, self._head
        for timestamp in stored[max(0, bisect.bisect(stored, self.first + first) - 2) :]:
            try:
                # Forwards: FFmpeg takes the decoder's delay off the time asked for, and would land a keyframe early.
                self.container.seek(timestamp, backward=False, stream=self.stream)
            except av.FFmpegError:
                continue
            packets = _packets(self.container, [self.stream], _name(self.source))
            for packet in packets:
                if packet.dts is None or packet.dts >= timestamp:
                    yield from self._stamped(_decoded_packets([packet], self.stream, _name(self.source)), None)
                    break

    def _skip(self) -> None:
        """Leave pictures out from here on; the clock's zero comes from a full decode.

        Not in AVI, where a picture's time is counted by the decoder.
        """
        if self.avi:
            return
        if self.decode is Decode.REFERENCE:
            self.stream.codec_context.skip_frame = "NONREF"
        elif self.decode is Decode.KEY:
            self.stream.codec_context.skip_frame = "NONKEY"

    def _choose(self, packet: av.Packet) -> None:
        """Before a packet is decoded: whether its picture may be left out unless others refer to it."""
        self._before(packet)
        if self._whole and not self.avi and packet.pts is not None:
            ticks = packet.pts - self.first
            inside = bisect.bisect_right(self._whole, ticks, key=lambda stretch: stretch[0]) - 1
            wanted = inside >= 0 and ticks < self._whole[inside][1]
            self.stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"

    def _stamped(self, decoded: Iterable[av.VideoFrame], ticks: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their time. One without a stamp follows the one before; the first is at `ticks`, or left out."""
        for frame in decoded:
            stamp = _stamp(self.container, frame)
            if stamp is not None:
                ticks = stamp - self.first
            if ticks is not None:
                yield ticks, frame
                ticks += self.step

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        container = _open(self.source)
        try:
            stream = _video_stream(container)
            if stream is None:
                raise MediaError(f"{_name(self.source)}: has no video")
            _use_only(container, stream)
            context = stream.codec_context
            if context is None:
                raise MediaError(f"{_name(self.source)}: no decoder for its video")
            _check_pixels(self.source, context.width, context.height)
            context.thread_count = self.threads
            context.thread_type = "AUTO" if self.threads > 1 else "SLICE"
            context.options = {"max_pixels": str(MAX_PIXELS)}
            return container, stream
        except BaseException:
            container.close()
            raise


# --- sound ------------------------------------------------------------------------------------------------


def audio(
    source: Source,
    span: Span | None = None,
    rate: int = 16000,
    limit_seconds: float = MAX_AUDIO_SECONDS,
    layout: str = "mono",
) -> np.ndarray:
    """The sound of a span, on the pictures' clock; silence where the file has none.

    Without a span: from t = 0 to the last sound. limit_seconds bounds the result whatever the file claims.
    layout: mono, the mean of the channels; or stereo, left and right, where a single channel is heard on both.
    Returns float32 [round(seconds * rate)], of stereo [2, round(seconds * rate)].
    Raises MediaError when the file cannot be read or the sound is longer than the limit.
    """
    start = Fraction(0) if span is None else span.start
    length = None if span is None else max(0, round((span.end - span.start) * rate))
    limit = int(limit_seconds * rate)
    too_long = MediaError(f"{_name(source)}: more than {limit_seconds:g} s of sound; read it in spans")
    if length is not None and length > limit:
        raise too_long
    track = _Track(CHANNELS[layout])
    zero = _zero(source)
    with _opened(source) as container, _speaking(_name(source), "its sound cannot be converted"):
        stream = _audio_stream(container)
        if stream is not None:
            _use_only(container, stream)
            for place, samples in _pieces(container, stream, _name(source), zero + start, rate, layout):
                if length is not None and place >= length:
                    break
                if place + samples.shape[1] > limit and length is None:
                    raise too_long
                track.put(place, samples)
    sound_CN = track.array(length)
    return sound_CN[0] if layout == "mono" else sound_CN


class _Track:
    """Sound put together from pieces [C, n] by their place; what is already there stays, gaps are silence."""

    def __init__(self, channels: int) -> None:
        self._pieces = [np.zeros((channels, 0), np.float32)]
        self._channels, self._length = channels, 0

    def put(self, place: int, samples_CN: np.ndarray) -> None:
        samples_CN = samples_CN[:, max(0, self._length - place) :]
        if samples_CN.shape[1]:
            place = max(place, self._length)
            self._pieces += [self._silence(place - self._length), samples_CN]
            self._length = place + samples_CN.shape[1]

    def array(self, length: int | None) -> np.ndarray:
        if length is not None and length > self._length:
            self._pieces.append(self._silence(length - self._length))
        return np.concatenate(self._pieces, axis=1)[:, :length]

    def _silence(self, samples: int) -> np.ndarray:
        return np.zeros((self._channels, samples), np.float32)


def _pieces(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    name: str,
    start: Fraction,
    rate: int,
    layout: str,
) -> Iterator[tuple[int, np.ndarray]]:
    """Sound at `rate` from shortly before `start` (container time) on: (place counted from start, samples [C, n])."""
    # AVI tells the time of compressed sound by the byte, which is off by up to a packet after seeking.
    by_byte = container.format.name == "avi" and not stream.codec_context.name.startswith("pcm_")
    if start > 2 and container.format.name not in UNSEEKABLE and not by_byte:
        # A second early: decoders and the resampler need a run-up.
        with contextlib.suppress(av.FFmpegError):
            container.seek(min(math.floor((start - 1) / _base(stream)), LAST_TICK), stream=stream)
    run: _Run | None = None
    stamped = ((frame.pts, frame) for frame in _decoded(container, stream, name))
    for pts, frame in _believed(stamped, math.ceil(BELIEVED_GAP / _base(stream))):
        if not LOWEST_RATE <= frame.sample_rate <= HIGHEST_RATE:
            raise MediaError(f"{name}: a sample rate of {frame.sample_rate} Hz cannot be right")
        time = None if pts is None else float(pts * _base(stream) - start)
        if run is None or not run.continues(frame, time):
            if run is not None:
                yield from run.finish()
            run = _Run(frame, float(-start) if time is None else time, rate, layout)
        yield from run.add(frame)
    if run is not None:
        yield from run.finish()


class _Run:
    """Sound without a break: one format, packet after packet, placed by the first one's time."""

    BLOCK = 1 << 15  # samples handed to the resampler at once: a call costs as much as decoding a packet

    def __init__(self, frame: av.AudioFrame, time: float, rate: int, layout: str) -> None:
        self._shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        self._time, self._count = time, 0
        # A run-up begins with the sample nearest to the grid of the result: then a span is a slice of the whole.
        places_N = (time + np.arange(frame.samples if time < 0 else 1) / frame.sample_rate) * rate
        self._unused = int(np.abs(places_N - np.round(places_N)).argmin())
        self._place = round(places_N[self._unused])
        self._fifo = av.AudioFifo()
        self._channels = CHANNELS[layout]
        # A single channel stays one until the end: FFmpeg would bring it to two 3 dB softer.
        made = layout if frame.layout.nb_channels > 1 else "mono"
        # The mean of the channels: without the option, two equal ones come out 3 dB louder.
        self._resampler = AudioResampler("fltp", made, rate, options={"rematrix_maxval": "1"})

    def continues(self, frame: av.AudioFrame, time: float | None) -> bool:
        expected = self._time + self._count / frame.sample_rate
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        return shape == self._shape and (time is None or abs(time - expected) <= SYNC_TOLERANCE)

    def add(self, frame: av.AudioFrame) -> Iterator[tuple[int, np.ndarray]]:
        self._count += frame.samples
        frame.pts = None
        self._fifo.write(frame)
        if self._unused:
            self._fifo.read(self._unused)
            self._unused = 0
        if self._fifo.samples >= self.BLOCK:
            yield from self._placed(self._resampler.resample(self._fifo.read()))

    def finish(self) -> Iterator[tuple[int, np.ndarray]]:
        if self._fifo.samples:
            yield from self._placed(self._resampler.resample(self._fifo.read()))
        yield from self._placed(self._resampler.resample(None))

    def _placed(self, frames: Iterable[av.AudioFrame]) -> Iterator[tuple[int, np.ndarray]]:
        for frame in frames:
            samples_CN = frame.to_ndarray()
            yield self._place, np.broadcast_to(samples_CN, (self._channels, samples_CN.shape[1]))
            self._place += samples_CN.shape[1]


def _zero(source: Source) -> Fraction:
    """The container's time of t = 0."""
    with _opened(source) as container:
        stream = _audio_stream(container)
        if _video_stream(container) is None and stream is not None:
            first = next(_decoded(container, stream, _name(source)), None)
            return Fraction(0) if first is None else (first.pts or 0) * _base(stream)
    with contextlib.closing(_Film(source, Decode.ALL, 1)) as film:
        return film.zero


# --- writing ----------------------------------------------------------------------------------------------


def encode(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    audio: np.ndarray | None = None,
    rate: int | None = None,
    crf: int = 18,
    preset: str = "medium",
) -> None:
    """Write an mp4 (h264 yuv420p BT.709, aac) whose index comes first; the path appears when it is complete.

    frames: uint8 [H, W, 3] RGB, H and W even. audio: float32 [n] mono at `rate`, from the first frame on.
    The same input gives the same bytes. Raises MediaError when there is nothing to write or it cannot be.
    """
    path, fps = Path(path), Fraction(fps)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise MediaError(f"{path}: no frames to write")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise MediaError(f"{path}: h264 wants even sizes, not {width}x{height}; crop or pad a row or column")
    if (audio is None) != (rate is None):
        raise MediaError(f"{path}: audio and its rate go together")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(f"file:{part.absolute()}", "w", format="mp4", options=options) as container:
            # With AVX-512, x264's macroblock tree differs from run to run; this makes it the same everywhere.
            options = {"crf": str(crf), "preset": preset, "x264-params": "cpu-independent=1"}
            video = container.add_stream("libx264", rate=fps, options=options)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            context = video.codec_context
            context.thread_count = 1
            context.colorspace = context.color_primaries = context.color_trc = 1
            context.color_range = 1
            sound = None if rate is None else container.add_stream("aac", rate=rate, layout="mono")
            if sound is not None and rate is not None:
                samples = np.ascontiguousarray(audio, np.float32)[None]
                block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
                container.mux(sound.encode(block))
            reformatter = VideoReformatter()
            for number, image in enumerate(itertools.chain([first], frames)):
                if image.shape != first.shape:
                    raise MediaError(f"{path}: frame {number} is {image.shape}, the first {first.shape}")
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame = reformatter.reformat(rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=1)
                frame.pts, frame.time_base = number, 1 / fps
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            if sound is not None:
                container.mux(sound.encode(None))
        part.replace(path)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


# --- opening and decoding ---------------------------------------------------------------------------------


def _name(source: Source) -> str:
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "<stream>"))


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[av.container.InputContainer]:
    with contextlib.closing(_open(source)) as container:
        yield container


def _open(source: Source) -> av.container.InputContainer:
    name = _name(source)
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
    target: str | BinaryIO
    if isinstance(source, str | Path):
        _check_file(Path(source))
        # An explicit protocol makes the rest a file name, whatever it holds.
        target, options["protocol_whitelist"] = f"file:{Path(source).absolute()}", "file"
    else:
        source.seek(0)
        target = source
    try:
        return av.open(target, "r", options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise MediaError(f"{name}: no container that is read here (nor are playlists and images)") from error
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{name}: cannot be read as video or sound: {reason}") from error


@contextlib.contextmanager
def _speaking(name: str, what: str) -> Iterator[None]:
    """FFmpeg's errors inside become a MediaError."""
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError(f"{name}: {what}: {error.strerror}") from error


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and not os.access(path, os.R_OK):
            raise MediaError(f"{path}: no permission to read it")
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name
        raise MediaError(f"{str(path)!r}: no file can have this name") from error
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(f"{path}: not a file")
    if found.st_size == 0:
        raise MediaError(f"{path}: the file is empty")


def _check_pixels(source: Source, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(f"{_name(source)}: announces {width}x{height} pixels; at most {MAX_PIXELS} are read")


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    known = [s for s in container.streams.audio if s.codec_context is not None]
    return next((s for s in known if s.disposition & Disposition.default), known[0] if known else None)


def _use_only(container: av.container.InputContainer, stream: av.stream.Stream) -> None:
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all


def _packets(
    container: av.container.InputContainer, streams: Sequence[av.VideoStream | av.AudioStream], name: str
) -> Iterator[av.Packet]:
    """Packets to the end of the file, or to where it cannot be followed any more."""
    try:
        for packet in container.demux(streams):
            if packet.size:
                yield packet
    except av.InvalidDataError:
        return  # FFmpeg has said so on stderr
    except IndexError:
        return  # PyAV at the end of a file in which streams turned up that its head did not announce
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{name}: reading failed: {error.strerror or error}") from error


def _decoded(
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    name: str,
    before: Callable[[av.Packet], None] = lambda packet: None,
    from_key: bool = False,
) -> Iterator:
    """Frames in presentation order, to the end of the file. before: called with each packet."""
    packets = _packets(container, [stream], name)
    if from_key:
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)
    return _decoded_packets(packets, stream, name, before)


def _decoded_packets(
    packets: Iterable[av.Packet],
    stream: av.VideoStream | av.AudioStream,
    name: str,
    before: Callable[[av.Packet], None] = lambda packet: None,
) -> Iterator:
    """Frames in presentation order; packets that cannot be decoded are passed over."""
    failed = 0
    for packet in itertools.chain(packets, [None]):
        if packet is not None:
            before(packet)
        try:
            decoded = stream.decode(packet)
        except av.EOFError:
            continue
        except av.FFmpegError as error:
            failed += 1
            if failed >= MAX_FAILED_PACKETS:
                raise MediaError(f"{name}: {failed} packets in a row cannot be decoded: {error.strerror}") from error
            continue
        if decoded:
            failed = 0
            yield from decoded


def _believed(stamped: Iterable[tuple[Stamp, Item]], gap: int) -> Iterator[tuple[Stamp, Item]]:
    """Without items whose time leaps ahead only for the next one to come back: one bad bit in a time stamp."""
    latest: Stamp | None = None
    leapt: tuple[Stamp, Item] | None = None
    for stamp, item in stamped:
        if leapt is not None and (stamp is None or stamp >= (leapt[0] or 0)):
            latest = leapt[0]
            yield leapt
        leapt = None
        if stamp is not None and latest is not None and stamp > latest + gap:
            leapt = stamp, item
        else:
            latest = latest if stamp is None else stamp
            yield stamp, item
    if leapt is not None:
        yield leapt
