#!/usr/bin/env python
"""The metrics of the development footage, as the table of docs/metrics.md.

python tests/curation/metrics_report.py [seconds of each clip]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import dataclasses
import time

from curation.backends.speakers import EmbeddedDiarizer
from curation.config import ScoreConfig
from curation.stages.link import link
from curation.stages.score import RATE, Score
from manifests.schema import Clip, Turn
from model import media, weights
from tests.curation.clips import clip

FOOTAGE = Path(__file__).resolve().parents[3] / "shared" / "footage"
FILMS = [
    *(f"talking_head/{name}" for name in ("sv_head4", "sv_head5", "sv_head1", "latentsync_demo1", "latentsync_demo3")),
    *(f"talking_head/{name}" for name in ("May_5s", "vrt_face4", "psychopy_jwpIntro", "hdtf_WDA_KatieHill_000")),
    *(f"talking_head/{name}" for name in ("sv_half1", "sv_half4", "sv_full4", "talkvid_10_gt")),
    *("multi_speaker/visualvoice_interview", "multi_speaker/visualvoice_noisy_restaurant"),
    *(f"negative/{name}" for name in ("sv_side1_profile", "sv_side3_profile", "sv_side5_profile")),
    *(f"negative/{name}" for name in ("dj_video5_voiceover", "liveportrait_d10_face_music")),
    *(f"negative/{name}" for name in ("liveportrait_d18_face_digital_silence", "liveportrait_s13_dance_music")),
]
SHOWN = {
    "face_px": ".0f",
    "face_ratio": ".2f",
    "face_share": ".2f",
    "landmark_share": ".2f",
    "yaw_abs": ".0f",
    "pitch_abs": ".0f",
    "head_rotation_speed": ".0f",
    "head_travel_speed": ".2f",
    "camera_pan": ".3f",
    "camera_zoom": ".1f",
    "subject_motion": ".3f",
    "background_motion": ".3f",
    "lip_sync": ".2f",
    "lip_offset": ".1f",
    "binding": "s",
    "identity_min": ".3f",
    "dnsmos_bak": ".1f",
    "speech_share": ".2f",
    "luminance": ".0f",
    "sharpness": ".0f",
}


def turns(film: Clip, diarize: EmbeddedDiarizer) -> list[Turn]:
    """Who speaks in the clip, as `listen` hears it."""
    path = Path(film.path)
    if media.probe(path).audio is None:
        return []
    heard = diarize(media.audio(path, None, RATE)[: round(film.end * RATE)])
    return [Turn("v", t.start, t.end, t.speaker, t.overlap, 0, 0, None, None, None) for t in heard.turns]


def main(seconds: float) -> None:
    score = Score(ScoreConfig())
    models = (weights.path(name) for name in ("segmentation-3.0", "cam++"))
    diarize = EmbeddedDiarizer(*models, speech=weights.path("silero-vad"))
    print("| clip | " + " | ".join(f"`{name}`" for name in SHOWN) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    spent = scored = 0.0
    for name in FILMS:
        path = next(FOOTAGE.glob(f"{name}.*"))
        film = clip(path, 0.0, seconds)
        said = turns(film, diarize)
        started = time.process_time()
        found = score(path, film, said)
        spent, scored = spent + time.process_time() - started, scored + film.duration
        (row,), _ = link([film], {film.clip_id: found})
        values = dataclasses.asdict(row)
        cells = ("–" if values[column] is None else format(values[column], how) for column, how in SHOWN.items())
        print(f"| {Path(name).name} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{spent / scored:.2f} core-seconds a second of clip, {scored:.0f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 8.0)
