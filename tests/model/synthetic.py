"""Small films with known contents: every frame carries its number, flashes and clicks fall together."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 12
TICK = Fraction(1, 90000)


def numbered(number: int, width: int = 160, height: int = 96, flash: bool = False) -> np.ndarray:
    """An RGB picture [H, W, 3] whose upper half spells the number in black and white blocks, top bit left.

    The lower half is white when it flashes, else a moving colour ramp.
    """
    image = np.zeros((height, width, 3), np.uint8)
    ramp = (np.arange(width) * 2 + number * 7) % 160
    image[height // 2 :] = np.stack([ramp, 160 - ramp, ramp // 2 + 40], -1)
    bits = [number >> bit & 1 for bit in reversed(range(BITS))]
    image[: height // 2, : width // BITS * BITS] = np.repeat(bits, width // BITS)[None, :, None] * 255
    if flash:
        image[height // 2 :] = 255
    return image


def number(image: np.ndarray) -> int:
    """The number spelt by a picture of any size [H, W, >= 1]."""
    height, width = image.shape[:2]
    centres = (np.arange(BITS) + 0.5) * (width - width % BITS if width >= 160 else width) / BITS
    row = image[height // 8 : max(height // 3, height // 8 + 1), centres.astype(int), 1].mean(0)
    return int("".join("01"[int(level > 127)] for level in row), 2)


def clicks(seconds: float, times: Sequence[float], rate: int, begin: float = 0.0) -> np.ndarray:
    """Quiet sound [n] from `begin` on with a 2 ms burst at each time."""
    sound = np.zeros(round(seconds * rate), np.float32)
    for time in times:
        first = round((time - begin) * rate)
        sound[first : first + rate // 500] = 0.9
    return sound


def onset(sound: np.ndarray, rate: int, after: float = 0.0) -> float:
    """When the first burst after a time begins, seconds."""
    loud = np.flatnonzero(np.abs(sound[round(after * rate) :]) > 0.3)
    return after + loud[0] / rate


def write(
    path: Path,
    times: Sequence[Fraction],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    format: str | None = None,
    size: tuple[int, int] = (160, 96),
    pix_fmt: str = "yuv420p",
    time_base: Fraction = TICK,
    rate: Fraction = Fraction(25),
    flashes: Sequence[int] = (),
    sound: tuple[str, int, np.ndarray, Fraction] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    sample_aspect_ratio: Fraction | None = None,
    colour: dict[str, int] | None = None,
) -> Path:
    """A film whose n-th frame spells n and is shown at times[n].

    sound: (codec, rate, samples [n], container time of the first sample).
    """
    with av.open(str(path), "w", format=format, options=container or {}) as out:
        video = out.add_stream(codec, rate=rate, options=options or {})
        video.width, video.height = size
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = time_base
        video.codec_context.thread_count = 1
        if sample_aspect_ratio:
            video.codec_context.sample_aspect_ratio = sample_aspect_ratio
        if rotation or mirrored:
            video.set_display_rotation(-rotation, hflip=mirrored)
        for name, value in (colour or {}).items():
            setattr(video.codec_context, name, value)
        packets = []
        track = None
        if sound is not None:
            codec_name, sound_rate, samples, begin = sound
            track = out.add_stream(codec_name, rate=sound_rate, layout="mono")
        for count, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(count, *size, count in flashes), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(time / time_base), time_base
            packets += video.encode(frame)
        packets += video.encode(None)
        if track is not None:
            kind = track.codec_context.format.name
            data = samples[None]
            if kind.startswith("s16"):
                data = (data * 32767).astype(np.int16)
            elif kind.startswith("s32"):
                data = (data * 2147483520).astype(np.int32)
            block = av.AudioFrame.from_ndarray(data, format=kind, layout="mono")
            block.sample_rate, block.time_base = sound_rate, Fraction(1, sound_rate)
            block.pts = round(begin * sound_rate)
            packets += track.encode(block)
            packets += track.encode(None)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            out.mux(packet)
    return path
