"""scan: one video in; its facts, its shots, and when faces are on show in them, out.

One pass decodes only pictures that others refer to (half of them, for 0.6 of the price), each exactly as in a full
decode. Places where a cut may lie in what was left out are decoded again, every picture (see backends/shots.py).
docs/scan.md has the measurements behind the numbers here.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from curation.backends import shots as cutting
from curation.config import ScanConfig
from curation.measures.picture import sharpness
from model import media, weights
from model.encoders.detect import CenterFace, Face

NOT_ASKED = "not asked for"
NO_FACE = "no face in keyframes"
UNDECODABLE = "could not be decoded"

BLACK_LUMA, BLACK_SHARE = 32, 0.98  # as FFmpeg's blackdetect: so many of the samples are below 10 % of full scale
STILL = 0.05  # mean difference to the picture before, grey levels; people talking stay above 0.1
NEW, NEW_RATIO = 10.0, 5.0  # such a difference, and so many times the usual one: perhaps another shot, so look
SIDE = 640  # long side of the pictures that sharpness is measured in, and faces looked for most closely, pixels
USUAL_SIDE = 320  # of those that faces are looked for in when that finds any
GLIMPSE_SIDES = 256, 160  # the same for a glimpse when no face is known of, and least when some are
FACE_HEIGHT = 24  # of a face that is sure to be found, pixels
GLIMPSES = 9  # looks that may be glimpses before one that is not
_GAP = Fraction(1)  # seconds without a picture, where there should be some, that are called lost
_LEFT_OUT = 17  # pictures in a row that encoders make without reference to them, at most
_BLIND = Fraction(12)  # seconds between keyframes from which on too much may happen unseen
_REOPENING = 25  # frames that can be decoded in the time it takes to open a file
_PAD = 8  # frames beyond both ends of a stretch that are shown to the shot detector only


@dataclass(frozen=True)
class Shot:
    """Pictures between two cuts. Times in seconds of the source's clock and in ticks of its video stream.

    luminance: mean luma 0-255. sharpness: median over looks of the variance of luma's Laplacian with the picture's
    long side at 640 pixels; NaN without a look. black_share, static_share: of its time. face_share: of its looks.
    """

    start: float
    end: float
    start_ticks: int
    end_ticks: int
    start_frame: int
    end_frame: int
    luminance: float
    sharpness: float
    black_share: float
    static_share: float
    face_share: float
    faces_max: int


@dataclass(frozen=True)
class Look:
    """One search for faces: in which shot, when, and what was seen."""

    shot: int
    time: float
    ticks: int
    frame: int
    faces: tuple[Face, ...]
    sharpness: float


@dataclass(frozen=True)
class Loss:
    """A stretch of the video that is in no shot, in seconds, and why."""

    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class Scanned:
    """All that scanning finds out. mode: full or sparse."""

    sha256: str
    probe: media.Probe
    mode: str
    shots: tuple[Shot, ...]
    looks: tuple[Look, ...]
    losses: tuple[Loss, ...]


class Scan:
    """Scans one video at a time."""

    def __init__(self, config: ScanConfig, threads: int = 1):
        if config.mode not in ("full", "sparse", "auto"):
            raise ValueError(f"scan.mode={config.mode!r}: there is full, sparse, auto")
        self.config, self.threads = config, threads
        network = weights.path("transnetv2") if config.detector == "transnetv2" else None
        self.search = cutting.detector(config.detector, config.shortest_shot, network, threads)
        self.find = CenterFace(weights.path("centerface"), (SIDE,), config.face_score, threads)
        cv2.setNumThreads(threads)

    def __call__(self, source: Path, asked: Sequence[media.Span] = ()) -> Scanned:
        """asked: the spans to scan, whole video when empty.

        Raises MediaError when the file cannot be read, or has no video that can be decoded.
        """
        probe = media.probe(source)
        if probe.video is None:
            raise media.MediaError(f"{source}: no video stream ({probe.container}); only its sound can be used")
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        film = _Film(source, probe.video, media.timeline(source))
        wanted = film.asked(asked)
        losses = film.rest(wanted, [(0, film.count)], NOT_ASKED)
        sparse = self.config.mode == "sparse"
        if self.config.mode == "auto" and not asked:
            sparse = probe.duration >= Fraction(self.config.sparse_minutes) * 60
        if sparse:
            peopled = _common(self._peopled(film), wanted)
            losses += film.rest(peopled, wanted, NO_FACE)
            wanted = peopled
        shots, looks, undecoded = self._shots(film, wanted)
        losses = sorted(losses + undecoded + film.missing(), key=lambda loss: loss.start)
        mode = "sparse" if sparse else "full"
        return Scanned(sha256, probe, mode, tuple(shots), tuple(looks), tuple(losses))

    def _shots(self, film: _Film, stretches: Sequence[tuple[int, int]]) -> tuple[list[Shot], list[Look], list[Loss]]:
        """Shots, looks and what could not be decoded, of stretches of frames (end exclusive)."""
        search = self.search(film.count)
        decode = media.Decode.ALL if search.every else media.Decode.REFERENCE
        pieces = [piece for start, end in stretches for piece in self._watch(film, start, end, search, decode)]
        for run in film.runs(search.doubts()):
            search.resolve((frame, picture.thumbnail(cutting.FINE_WIDTH)) for frame, picture in run)
        cuts = sorted(set(search.cuts()))  # stretches may overlap by what is shown beyond their ends
        shots: list[Shot] = []
        looks: list[Look] = []
        for piece in pieces:
            inside = cuts[bisect.bisect_right(cuts, piece.start) : bisect.bisect_left(cuts, piece.end)]
            for first, last in itertools.pairwise([piece.start, *inside, piece.end]):
                here = _within(piece.looks, first, last)
                looks += [film.look(len(shots), look) for look in here]
                shots.append(_shot(film, _within(piece.seen, first, last), here, first, last))
        whole = [(piece.start, piece.end) for piece in pieces]
        return shots, looks, film.rest(whole, stretches, UNDECODABLE)

    def _watch(
        self, film: _Film, start: int, end: int, search: cutting.Search, decode: media.Decode
    ) -> Iterator[_Piece]:
        """Shows a stretch of frames to the shot detector and looks for faces; a piece ends where pictures are lost."""
        search.begin()
        eyes = _Eyes(self.find, Fraction(self.config.look_seconds))
        piece = _Piece(start, start)
        before: np.ndarray | None = None
        last = start - 1
        for frame, picture in film.pictures(start - _PAD, end + _PAD, decode):
            if film.is_hole(last + 1, frame):
                search.begin()
                if piece.seen:
                    yield piece
                piece, before = _Piece(max(start, frame), max(start, frame)), None
                eyes.reopen()
            last = frame
            thumbnail = picture.thumbnail(cutting.WIDTH)
            search.see(frame, thumbnail)
            if not start <= frame < end:
                continue
            luma = cv2.cvtColor(thumbnail, cv2.COLOR_BGR2GRAY)
            change = float("inf") if before is None else _difference(before, luma)
            before = luma
            black = np.count_nonzero(luma < BLACK_LUMA) >= BLACK_SHARE * luma.size
            piece.seen.append(_Seen(frame, cv2.mean(luma)[0], bool(black), change < STILL))
            piece.end = frame + 1
            if (look := eyes.see(frame, picture, luma, change)) is not None:
                piece.looks.append(look)
        if piece.seen:
            if not film.is_hole(piece.end, end):
                piece.end = end
            yield piece

    def _peopled(self, film: _Film) -> list[tuple[int, int]]:
        """Stretches of frames around the keyframes that show a face: from the one searched before to the one after."""
        marks: list[tuple[int, bool]] = []
        seen: np.ndarray | None = None
        due = Fraction(0)
        for frame, picture in film.pictures(0, film.count, media.Decode.KEY):
            luma = cv2.cvtColor(picture.thumbnail(cutting.WIDTH), cv2.COLOR_BGR2GRAY)
            change = float("inf") if seen is None else _difference(seen, luma)
            # A picture that has not changed shows what the last one showed.
            if change >= NEW or (change >= STILL and picture.time >= due):
                marks.append((frame, bool(self.find(picture.glance(self.config.sparse_side)))))
                seen, due = luma, picture.time + Fraction(self.config.sparse_seconds)
        edges = [(0, False), *marks, (film.count, False)]
        around = zip(edges, edges[1:], edges[2:], strict=False)
        return _joined([(before, after) for (before, _), (_, face), (after, _) in around if face] + film.unseen())


@dataclass(frozen=True)
class _Seen:
    """What is kept of a picture."""

    frame: int
    luma: float
    black: bool
    still: bool


@dataclass
class _Piece:
    """A stretch of frames (end exclusive) without losses, as it is being watched."""

    start: int
    end: int
    seen: list[_Seen]
    looks: list[_Look]

    def __init__(self, start: int, end: int):
        self.start, self.end, self.seen, self.looks = start, end, [], []


@dataclass(frozen=True)
class _Look:
    """What a search for faces found in a picture."""

    frame: int
    faces: tuple[Face, ...]
    sharpness: float


_Item = TypeVar("_Item", _Seen, _Look)


class _Eyes:
    """Decides when to look for faces, and how closely.

    Looks fall on the clock's multiples of `every` seconds, so that they do not depend on where a stretch begins, and
    where the picture changes at once. A glimpse, at just the size at which the faces known of should be found again,
    is enough if it finds them.
    """

    def __init__(self, find: CenterFace, every: Fraction):
        self.find, self.every = find, every
        self.reopen()

    def reopen(self) -> None:
        """What comes next has nothing to do with what was seen so far."""
        self._due = Fraction(-1)
        self._soonest = Fraction(-1)
        self._fresh = True
        self._usual = 255.0  # mean difference from picture to picture, of late
        self._glimpses = 0
        self._looked: tuple[np.ndarray, _Look] | None = None

    def see(self, frame: int, picture: media.Picture, luma: np.ndarray, change: float) -> _Look | None:
        """The next picture; a look when it is time for one. change: mean difference to the one before."""
        self._fresh |= change >= max(NEW, NEW_RATIO * self._usual)
        self._usual = 0.7 * self._usual + 0.3 * min(change, 255.0) if self._usual < 255 else change
        if picture.time < (self._soonest if self._fresh else self._due):
            return None
        if self._looked is not None and not self._fresh and _difference(self._looked[0], luma) < STILL:
            look = _Look(frame, self._looked[1].faces, self._looked[1].sharpness)
        else:
            look = self._look(frame, picture)
        self._looked = luma, look
        self._fresh = False
        self._due = (picture.time // self.every + 1) * self.every
        self._soonest = picture.time + self.every / 5
        return look

    def _look(self, frame: int, picture: media.Picture) -> _Look:
        image = picture.glance(SIDE)
        known = () if self._looked is None or self._fresh else self._looked[1].faces
        sides: tuple[int, ...] = (USUAL_SIDE, SIDE)
        if self._fresh or self._glimpses >= GLIMPSES:
            self._glimpses = 0
        elif known:
            self._glimpses += 1
            sides = (_side_for(known, image), USUAL_SIDE, SIDE)
        else:
            self._glimpses += 2  # a face may come up any time
            sides = GLIMPSE_SIDES[:1]
        faces: list[Face] = []
        for side in sorted(set(sides)):
            faces = self.find(_shrunk(image, side))
            if len(faces) >= max(1, len(known)) or (faces and side >= USUAL_SIDE):
                break
        return _Look(frame, tuple(faces), _sharpness(image))


class _Film:
    """One video by the numbers of its frames."""

    def __init__(self, source: Path, video: media.VideoStream, timeline: media.Timeline):
        self.source, self.tick = source, video.time_base
        self.ticks = [*timeline.ticks_N.tolist()]
        self.count = len(self.ticks)
        step = (self.ticks[-1] - self.ticks[0]) // (self.count - 1) if self.count > 1 else 1
        claimed = round((video.duration or 0) / self.tick)
        last = self.ticks[-1] + max(1, step)
        # Less than a gap more is the last picture's own duration; more is a file that was cut off.
        self.cut_off = (last, claimed) if (claimed - last) * self.tick > _GAP else None
        self.ticks.append(last if self.cut_off else max(claimed, self.ticks[-1] + 1))
        self.timeline = timeline

    def time(self, frame: int) -> Fraction:
        """When a frame is shown, seconds; the end for the one after the last."""
        return self.ticks[min(max(frame, 0), self.count)] * self.tick

    def is_hole(self, start: int, end: int) -> bool:
        """Whether frames start..end - 1, of which none was decoded, are more than are left out on purpose."""
        return end - start > _LEFT_OUT and self.time(end) - self.time(start) > _GAP

    def pictures(
        self, start: int, end: int, decode: media.Decode, runs: Sequence[tuple[int, int]] = ()
    ) -> Iterator[tuple[int, media.Picture]]:
        """The decoded pictures among frames start..end - 1, each with its frame; all of those in the runs."""
        everything = start <= 0 and end >= self.count
        span = None if everything else media.Span(self.time(start), self.time(end))
        whole = [media.Span(self.time(first), self.time(last + 1)) for first, last in runs]
        for picture in media.pictures(self.source, span, decode, whole=whole):
            yield self.timeline.frame(picture.ticks), picture

    def runs(self, runs: Sequence[tuple[int, int]]) -> Iterator[Iterator[tuple[int, media.Picture]]]:
        """Every picture of some runs of frames (first, last), run by run, each to be used before the next."""
        keys = [0, *np.flatnonzero(self.timeline.key_N).tolist()]
        together: list[list[tuple[int, int]]] = []
        for run in runs:
            key = keys[bisect.bisect_right(keys, run[0]) - 1]
            if together and key <= together[-1][-1][1] + _REOPENING:
                together[-1].append(run)
            else:
                together.append([run])
        for group in together:
            yield from self._group(group)

    def _group(self, runs: Sequence[tuple[int, int]]) -> Iterator[Iterator[tuple[int, media.Picture]]]:
        """Every picture of some runs, decoded in one go."""
        shown = self.pictures(runs[0][0], runs[-1][1] + 1, media.Decode.REFERENCE, runs)
        firsts = [first for first, _ in runs]
        for number, pictures in itertools.groupby(shown, lambda item: bisect.bisect_right(firsts, item[0]) - 1):
            # What others refer to between two runs comes along.
            yield (item for item in pictures if item[0] <= runs[number][1])

    def unseen(self) -> list[tuple[int, int]]:
        """Stretches of frames about which keyframes tell nothing: all, of a video with one; else far from any."""
        keys = np.flatnonzero(self.timeline.key_N).tolist()
        if len(keys) < 2:
            return [(0, self.count)]
        far = [(a, b) for a, b in itertools.pairwise([*keys, self.count]) if self.time(b) - self.time(a) > _BLIND]
        return [(0, keys[0]), *far] if keys[0] else far

    def asked(self, spans: Sequence[media.Span]) -> list[tuple[int, int]]:
        """Spans as stretches of frames; the whole video when there are none."""
        if not spans:
            return [(0, self.count)]
        stretches = [(self._first(span.start), self._first(span.end)) for span in spans]
        return _joined([(start, end) for start, end in stretches if start < end])

    def _first(self, time: Fraction) -> int:
        """The first frame shown at that time or later."""
        return bisect.bisect_left(self.ticks, time / self.tick, 0, self.count)

    def rest(self, kept: Sequence[tuple[int, int]], of: Sequence[tuple[int, int]], reason: str) -> list[Loss]:
        """What is left of stretches of frames besides the ones kept."""
        losses = []
        for start, end in of:
            inside = [(max(a, start), min(b, end)) for a, b in kept if a < end and b > start]
            edges = [start, *itertools.chain.from_iterable(inside), end]
            losses += [self._loss(a, b, reason) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        return losses

    def missing(self) -> list[Loss]:
        """What the container announces after the last picture."""
        if self.cut_off is None:
            return []
        last, claimed = self.cut_off
        return [Loss(float(last * self.tick), float(claimed * self.tick), UNDECODABLE)]

    def _loss(self, start: int, end: int, reason: str) -> Loss:
        return Loss(float(self.time(start)), float(self.time(end)), reason)

    def look(self, shot: int, look: _Look) -> Look:
        ticks = self.ticks[look.frame]
        return Look(shot, float(ticks * self.tick), ticks, look.frame, look.faces, look.sharpness)


def _shot(film: _Film, seen: Sequence[_Seen], looks: Sequence[_Look], start: int, end: int) -> Shot:
    """A shot out of the pictures and looks in it, each picture weighed by its time."""
    edges = [film.ticks[picture.frame] for picture in seen] + [film.ticks[end]]
    shown = np.diff(edges) if seen else np.ones(0)
    # Of the first picture nobody knows whether it moves.
    moving = shown[1:] if len(seen) > 1 else shown
    stills = [picture.still for picture in seen][1:] or [False] * len(seen)
    return Shot(
        start=float(film.time(start)),
        end=float(film.time(end)),
        start_ticks=film.ticks[start],
        end_ticks=film.ticks[end],
        start_frame=start,
        end_frame=end,
        luminance=_mean([picture.luma for picture in seen], shown),
        sharpness=float(np.median([look.sharpness for look in looks])) if looks else float("nan"),
        black_share=_mean([picture.black for picture in seen], shown),
        static_share=_mean(stills, moving),
        face_share=_mean([bool(look.faces) for look in looks], np.ones(len(looks))),
        faces_max=max((len(look.faces) for look in looks), default=0),
    )


def _within(items: list[_Item], first: int, last: int) -> list[_Item]:
    """Those of frames first..last - 1."""
    start, end = (bisect.bisect_left(items, frame, key=lambda item: item.frame) for frame in (first, last))
    return items[start:end]


def _mean(values: Sequence[float], weights_N: np.ndarray) -> float:
    return float(np.average(np.asarray(values, float), weights=weights_N)) if len(values) else 0.0


def _difference(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    """Mean absolute difference of two pictures, grey levels."""
    return cv2.norm(one_HW, other_HW, cv2.NORM_L1) / one_HW.size


def _side_for(faces: Sequence[Face], image_HWC: np.ndarray) -> int:
    """The long side at which all these faces are sure to be found, pixels."""
    height, longest = image_HWC.shape[0], max(image_HWC.shape[:2])
    least = min(face.bottom - face.top for face in faces) * height / longest
    return min(SIDE, max(GLIMPSE_SIDES[-1], round(FACE_HEIGHT / max(least, 1e-3))))


def _shrunk(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """The image with its long side at `side` pixels."""
    size = [max(1, round(length * side / max(image_HWC.shape[:2]))) for length in image_HWC.shape[1::-1]]
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)


def _sharpness(image_HWC: np.ndarray) -> float:
    return sharpness(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY))


def _joined(stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same frames in stretches that neither touch nor overlap."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _common(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The frames that lie in stretches of both."""
    both = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return [(start, end) for start, end in both if start < end]
