"""On all of the development footage: the cheap ways of scanning find what the thorough ones find."""

from __future__ import annotations

import pytest

from curation.config import ProposeConfig, ScanConfig, StageResources
from curation.inputs import Source
from curation.stages.propose import Propose
from curation.steps import ScanStep
from manifests.schema import Solo, Turn
from tests.conftest import ROOT
from tests.curation.test_scan import cuts, full_decode, scanner

FOOTAGE = ROOT.parent / "shared" / "footage"
FILMS = sorted(
    str(path.relative_to(FOOTAGE)) for path in FOOTAGE.glob("*/*") if path.suffix in (".avi", ".mov", ".mp4")
)
SOUND_ALONE = "negative/humanvbench_audio_only.mp4"
HAIR = "multishot/psd_issue-195-aspect-ratio.mp4"  # its first clip, in full mode, is a head seen from behind
pytestmark = pytest.mark.soak


def proposed(film: str, **settings: object) -> list[tuple[int, int]]:
    """Ticks of the clips proposed from a film if one voice spoke all through it."""
    step = ScanStep(ScanConfig(**settings), StageResources(), [], "")
    video, shots, looks, losses = step.builder()()(Source(str(FOOTAGE / film), 0, 0))
    turns = [Turn(video.video_id, 0, video.duration, "S0", 0, 0, 0, None, None, None)]
    solos = [Solo(video.video_id, 0, video.duration, "S0")]
    clips, _ = Propose(ProposeConfig())(video, shots, looks, turns, solos, losses)
    return [(clip.start_ticks, clip.end_ticks) for clip in clips]


@pytest.mark.parametrize("film", [film for film in FILMS if film != SOUND_ALONE])
def test_the_cuts_are_those_of_a_detector_that_sees_every_picture(film):
    assert cuts(scanner()(FOOTAGE / film)) == full_decode(FOOTAGE / film)


@pytest.mark.parametrize("film", [film for film in FILMS if film != SOUND_ALONE])
def test_sparse_mode_proposes_the_clips_of_full_mode(film):
    full = proposed(film, mode="full")
    assert proposed(film, mode="sparse") == (full[1:] if film == HAIR else full)
