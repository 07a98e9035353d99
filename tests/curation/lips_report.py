"""How well the built-in lip/audio score finds planted shifts and foreign sound, on ../shared/footage: tables.

    python tests/curation/lips_report.py [--footage FOLDER] [--cache FOLDER]

Every clip is scored by a model that was not fitted on it: the clips that the shipped parameters were fitted on by a
model learnt from the nine others, the unseen ones by the shipped parameters.

Own offset: of the whole clip as it is; footage is seldom at zero. In sync: within 3 frames of zero, confidence at
least CLEAR. Shifts: the sound is cut k frames earlier or later, k = -10..10, then scored; within ±1: the offset
found, rounded, is the clip's own, rounded, minus k, or a frame off. Of whole clips what moves out of the clip is lost
and silence moves in; windows (one after another, of clips in sync, with enough speech to be scored) take it from the
clip where there is some.
AUC: the probability that a window in sync has more confidence than the same mouth with another clip's window; foreign:
confidence of those others; own: least of those in sync.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import cv2
import numpy as np
from scipy.stats import rankdata

from curation.backends import lips as backend
from curation.backends.landmarks import Landmarker
from curation.backends.speech import FRAME as SPEECH_FRAME
from curation.backends.speech import SpeechDetector
from curation.measures import lips
from curation.measures.lips import LipModel, LipScore
from curation.stages.cast import mouth
from model import media, weights
from model.encoders.detect import CenterFace
from model.encoders.speech import WhisperEncoder
from model.media import Span

FOOTAGE = Path(__file__).resolve().parents[3] / "shared" / "footage"
FITTED = (
    "May_5s hdtf_WDA_KatieHill_000 latentsync_demo1 latentsync_demo2 latentsync_demo3 psychopy_jwpIntro "
    "talkvid_10_gt vrt_face1 vrt_face3_aoc vrt_face4"
)
UNSEEN = (
    "talking_head/sv_dlg1_a talking_head/sv_dlg1_b talking_head/sv_full4 talking_head/sv_half1 talking_head/sv_half4 "
    "talking_head/sv_head1 talking_head/sv_head4 talking_head/sv_head5 talking_head/sv_multiturn15 "
    "multi_speaker/visualvoice_noisy_restaurant negative/sv_side1_profile negative/sv_side3_profile "
    "negative/sv_side5_profile"
)
NEITHER = "negative/dj_video5_voiceover negative/liveportrait_d10_face_music"
SAMPLES = 640  # of sound a frame
SHIFTS = range(-10, 11)
IN_SYNC = 3


@dataclass(frozen=True)
class Clip:
    """mouth_TD: [T, MOUTH]. waveform_N: 16 kHz, from the first frame on. speech_S: probability every 32 ms."""

    name: str
    mouth_TD: np.ndarray
    waveform_N: np.ndarray
    speech_S: np.ndarray

    def sound(self, first: int, frames: int) -> np.ndarray:
        """The sound of frames from `first` on, silence beyond the clip."""
        padded = np.pad(self.waveform_N, 2 * max(SHIFTS) * SAMPLES)
        start = (first + 2 * max(SHIFTS)) * SAMPLES
        return padded[start : start + frames * SAMPLES]

    def speech(self, first: int, frames: int) -> float:
        """Share of a stretch in which somebody speaks."""
        start, end = (round(frame * SAMPLES / SPEECH_FRAME) for frame in (first, first + frames))
        return float((self.speech_S[start:end] > 0.5).mean())

    @property
    def frames(self) -> int:
        return min(len(self.mouth_TD), len(self.waveform_N) // SAMPLES)


def clips(footage: Path, names: str, cache: Path) -> list[Clip]:
    """The clips of that name (in talking_head, where no folder is given), read once and kept in `cache`."""
    return [
        _clip(footage / (f"{name}.mp4" if "/" in name else f"talking_head/{name}.mp4"), cache) for name in names.split()
    ]


def _clip(video: Path, cache: Path) -> Clip:
    kept = cache / f"{video.stem}.npz"
    if not kept.exists():
        cv2.setNumThreads(1)
        find = CenterFace(weights.path("centerface")).at
        frames = media.frames(video, Span(Fraction(0), media.probe(video).duration), Fraction(lips.FPS))
        mouth_TD = mouth(frames, find, Landmarker(weights.path("face-landmarker")))
        np.savez(kept, mouth_TD=mouth_TD, waveform_N=media.audio(video))
    with np.load(kept, allow_pickle=False) as arrays:
        speech_S = SpeechDetector(weights.path("silero-vad"))(arrays["waveform_N"])
        return Clip(video.stem, arrays["mouth_TD"], arrays["waveform_N"], speech_S)


class Ear:
    """Hears every stretch of sound once, whatever model it is for."""

    def __init__(self) -> None:
        self.encoder = WhisperEncoder(weights.path("whisper-tiny.en"))
        self.known: dict[tuple[str, int, int], np.ndarray] = {}

    def __call__(self, clip: Clip, first: int, frames: int) -> np.ndarray:
        """States at 50 Hz: [2 × frames, 384]."""
        key = (clip.name, first, frames)
        if key not in self.known:
            self.known[key] = self.encoder(clip.sound(first, frames), backend.BLOCKS)[backend.BLOCKS]
        return self.known[key]


@dataclass(frozen=True)
class Window:
    """A stretch of a clip, and the model that may judge it."""

    clip: Clip
    first: int
    frames: int
    model: LipModel

    def score(self, states_SD: np.ndarray) -> LipScore:
        mouth_TD = self.clip.mouth_TD[self.first : self.first + self.frames]
        mouth_TK = lips.mouth_components(mouth_TD, self.model)
        return lips.compare(mouth_TK, lips.sound_components(states_SD, self.model), self.model.weights_K)


def left_out(fitted: list[Clip], ear: Ear) -> Iterator[LipModel]:
    """For each clip the model learnt from all others."""
    for clip in fitted:
        rest = [other for other in fitted if other is not clip]
        yield lips.learn([c.mouth_TD for c in rest], [ear(c, 0, c.frames) for c in rest])[0]


def within(errors: Iterable[int], frames: int) -> float:
    return float(np.mean([abs(error) <= frames for error in errors]))


def shifted(window: Window, own: int, ear: Ear) -> list[int]:
    """How many frames off the offset is found, per planted shift. own: offset without one."""
    found = (window.score(ear(window.clip, window.first - shift, window.frames)).offset for shift in SHIFTS)
    return [round(offset) - (own - shift) for offset, shift in zip(found, SHIFTS, strict=True)]


def area(positive: Iterable[float], negative: Iterable[float]) -> float:
    """Area under the ROC curve: the probability that a positive outscores a negative."""
    ranks = rankdata([*(positive := list(positive)), *(negative := list(negative))])
    count = len(positive)
    return float((ranks[:count].sum() - count * (count + 1) / 2) / (count * len(negative)))


def windows(clip: Clip, model: LipModel, seconds: float) -> list[Window]:
    """The windows of a length, one after another, that are scored: those with enough speech."""
    frames = round(seconds * lips.FPS)
    starts = range(0, clip.frames - frames + 1, frames)
    return [Window(clip, first, frames, model) for first in starts if clip.speech(first, frames) >= backend.SPEECH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", type=Path, default=FOOTAGE)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "talkreel-lips-report")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    ear, shipped = Ear(), backend.load(backend.SHIPPED)
    fitted, unseen = (clips(options.footage, names, options.cache) for names in (FITTED, UNSEEN))
    groups = {
        "left out": list(zip(fitted, left_out(fitted, ear), strict=True)),
        "unseen": [(clip, shipped) for clip in unseen],
    }
    print("clip                          seconds  seen  own offset  confidence  shifts within ±1   ±2")
    in_sync = {name: list(table(group, ear)) for name, group in groups.items()}
    print()
    for name, group in in_sync.items():
        errors = [error for _, _, _, errors in group for error in errors]
        print(f"whole clips, {name}: {len(group)} in sync, ±1 {within(errors, 1):.3f}, ±2 {within(errors, 2):.3f}")
    print("\nwindows       seconds  windows  shifts within ±1   ±2    AUC  foreign: median, 95, 99 %  own: least")
    for name, seconds in itertools.product(in_sync, (2, 3, 4)):
        lengths(name, [(clip, model, own) for clip, model, own, _ in in_sync[name]], seconds, ear)
    print("\nnobody speaks who is seen (shipped parameters)")
    list(table([(clip, shipped) for clip in clips(options.footage, NEITHER, options.cache)], ear))


def table(group: list[tuple[Clip, LipModel]], ear: Ear) -> Iterator[tuple[Clip, LipModel, int, list[int]]]:
    """Print a line a clip; yield those in sync with their own offset and the errors of the planted shifts."""
    for clip, model in group:
        seen, line = lips.seen_share(clip.mouth_TD), f"{clip.name:30}{clip.frames / lips.FPS:6.1f}"
        if seen < backend.SEEN:
            print(f"{line}  {seen:4.2f}        not scored")
            continue
        window = Window(clip, 0, clip.frames, model)
        found = window.score(ear(clip, 0, clip.frames))
        line += f"  {seen:4.2f}  {found.offset:+8.2f}  {found.confidence:10.2f}"
        if (speech := clip.speech(0, clip.frames)) < backend.SPEECH:
            print(f"{line}        not scored: speech {speech:.0%}")
            continue
        if abs(found.offset) > IN_SYNC or found.confidence < lips.CLEAR:
            print(f"{line}        not in sync")
            continue
        errors = shifted(window, round(found.offset), ear)
        print(f"{line}  {within(errors, 1):15.3f}  {within(errors, 2):.3f}")
        yield clip, model, round(found.offset), errors


def lengths(name: str, group: list[tuple[Clip, LipModel, int]], seconds: float, ear: Ear) -> None:
    """Print how well windows of one length do."""
    looked = [(window, own) for clip, model, own in group for window in windows(clip, model, seconds)]
    errors = [error for window, own in looked for error in shifted(window, own, ear)]
    right = [w.score(ear(w.clip, w.first, w.frames)).confidence for w, _ in looked]
    pairs = [(w, other) for (w, _), (other, _) in itertools.permutations(looked, 2) if w.clip is not other.clip]
    wrong = [w.score(ear(other.clip, other.first, other.frames)).confidence for w, other in pairs]
    counts = f"{name:12}{seconds:9}{len(looked):9}"
    foreign = " ".join(f"{share:.2f}" for share in np.quantile(wrong, [0.5, 0.95, 0.99]))
    auc = f"{area(right, wrong):8.3f}     {foreign}  {min(right):9.2f}"
    print(f"{counts}  {within(errors, 1):15.3f}  {within(errors, 2):.3f}  {auc}")


if __name__ == "__main__":
    main()
