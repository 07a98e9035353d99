"""A pyannote.audio 4 pipeline diarizes as the built-in diarizer does, and nothing but such a pipeline is run.

Without pyannote.audio only a few tests run; docs/diarization.md says how to install it for the others.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from curation.backends.pyannote_audio import (
    PipelineError,
    PyannoteDiarizer,
    activity,
    import_pyannote,
    installed,
    overlap,
)
from curation.backends.segmentation import frames, seconds
from curation.backends.speakers import Diarization
from model import media, weights
from tests.curation.diarization_report import annotation, embedded

RATE = 16000
needs_pyannote = pytest.mark.skipif(not installed(), reason="pyannote.audio is not installed (extra `paper`)")
CONFIG = {
    "dependencies": {"pyannote.audio": "4.0.0"},
    "pipeline": {
        "name": "pyannote.audio.pipelines.SpeakerDiarization",
        "params": {
            "clustering": "VBxClustering",
            "segmentation": "$model/segmentation",
            "segmentation_batch_size": 8,
            "embedding": "$model/embedding",
            "embedding_batch_size": 8,
            "embedding_exclude_overlap": True,
            "plda": "$model/plda",
        },
    },
    "params": {
        "clustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
        "segmentation": {"min_duration_off": 0.0},
    },
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A pipeline folder laid out as speaker-diarization-community-1 is.

    Its segmentation has the weights of segmentation-3.0, its embeddings and its PLDA random ones.
    """
    import_pyannote()
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34
    from pyannote.audio.models.segmentation import PyanNet

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    genuine = torch.load(weights.path("segmentation-3.0"), weights_only=True)
    segmentation = PyanNet(**{part: genuine["model"][part] for part in ("sincnet", "lstm", "linear")})
    segmentation.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=10.0,
        warm_up=(0.0, 0.0),
        classes=["speaker#1", "speaker#2", "speaker#3"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    segmentation.build()
    segmentation.load_state_dict(genuine["state_dict"])
    embedding = WeSpeakerResNet34()
    embedding.specifications = Specifications(Problem.REPRESENTATION, Resolution.CHUNK, duration=5.0)
    for name, model in (("segmentation", segmentation), ("embedding", embedding)):
        checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        checkpoint["pytorch-lightning_version"] = "2.5.0"
        model.on_save_checkpoint(checkpoint)
        (folder / name).mkdir()
        torch.save(checkpoint, folder / name / "pytorch_model.bin")
    (folder / "plda").mkdir()
    lda = np.linalg.qr(np.random.default_rng(0).normal(size=(256, 128)))[0]
    np.savez(folder / "plda/xvec_transform.npz", mean1=np.zeros(256), mean2=np.zeros(128), lda=lda)
    np.savez(folder / "plda/plda.npz", mu=np.zeros(128), tr=np.eye(128), psi=np.linspace(4, 0.1, 128))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture
def copy(pipeline, tmp_path) -> Path:
    """A copy of the pipeline to spoil."""
    return Path(shutil.copytree(pipeline, tmp_path / "copy"))


@pytest.fixture(scope="module")
def man() -> np.ndarray:
    """5.8 s: a man talks, with two pauses."""
    return media.audio(weights.path("psychopy-jwpIntro"))


def spoken(heard: Diarization) -> float:
    """Seconds in which anybody talks."""
    return annotation(heard.turns).get_timeline().support().duration()


@pytest.mark.parametrize("absent", ["pyannote.audio", "pyannote"])
def test_without_the_package_the_error_says_how_to_get_it(monkeypatch, absent) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(PipelineError, match=r"^cannot load the pipeline x/y: pyannote.audio is not installed: pip .*$"):
        PyannoteDiarizer("x/y")


@needs_pyannote
def test_a_pipeline_diarizes_a_waveform(pipeline, man) -> None:
    diarize = PyannoteDiarizer(str(pipeline), device="cpu")
    heard, ours = diarize(man), embedded()(man)
    assert heard == diarize(man)
    assert heard.turns[0].speaker == "S0"
    assert spoken(heard) == pytest.approx(spoken(ours), abs=0.2)
    assert heard.turns[0].start == pytest.approx(ours.turns[0].start, abs=0.1)
    assert all(turn.end <= len(man) / RATE for turn in heard.turns)
    assert all(solo.end - solo.start >= 2 for solo in heard.solos)
    assert diarize(np.zeros(3 * RATE, np.float32)) == diarize(np.zeros(0, np.float32)) == Diarization((), ())


@needs_pyannote
def test_the_segmentation_of_pyannote_audio_is_ours(pipeline, man) -> None:
    from pyannote.audio import Model

    from curation.backends.segmentation import WINDOW, Segmenter

    theirs = Model.from_pretrained(pipeline, subfolder="segmentation").eval()
    starts = np.array([0, 8000])
    windows = np.pad(man, (0, WINDOW))[starts[:, None] + np.arange(WINDOW)]
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(windows)[:, None]).exp().numpy()
    ours = Segmenter(weights.path("segmentation-3.0")).probabilities(man, starts)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_frames_of_an_annotation_are_those_whose_centre_it_covers() -> None:
    from pyannote.core import Annotation, Segment

    turns = Annotation()
    turns[Segment(seconds(10), seconds(20)), "a"] = "SPEAKER_01"
    turns[Segment(seconds(15), seconds(30)), "b"] = "SPEAKER_00"
    talking = activity(turns, 25)
    assert np.flatnonzero(talking[:, 1]).tolist() == list(range(10, 20))
    assert np.flatnonzero(talking[:, 0]).tolist() == list(range(15, 25))


def test_overlap_is_the_share_of_windows_that_hear_two() -> None:
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    data = np.zeros((3, 589, 3))
    data[0, 300:, :2] = 1
    data[1, :, 0] = 1
    windows = SlidingWindowFeature(data, SlidingWindow(duration=10.0, step=1.0, start=0.0))
    share = overlap(windows, 700)
    assert share[290] == 0
    assert share[310] == pytest.approx(1 / 3)
    assert share[frames(11)] == 0


@needs_pyannote
@pytest.mark.parametrize(
    "lost", ["config.yaml", "segmentation/pytorch_model.bin", "embedding/pytorch_model.bin", "plda/plda.npz"]
)
def test_a_folder_that_lacks_a_file_is_refused_by_the_file_s_name(copy, lost) -> None:
    (copy / lost).unlink()
    with pytest.raises(PipelineError, match=lost):
        PyannoteDiarizer(str(copy))


@needs_pyannote
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pipeline": {"name": "subprocess.run", "params": {"args": "true"}}}, "subprocess.run"),
        ({"preprocessors": {"x": {"name": "os.system"}}}, "preprocessors"),
        ({"pipeline": None}, "cannot be read"),
    ],
)
def test_a_configuration_that_asks_for_anything_else_is_refused(copy, change, said) -> None:
    (copy / "config.yaml").write_text(yaml.safe_dump(CONFIG | change))
    with pytest.raises(PipelineError, match=said):
        PyannoteDiarizer(str(copy))


@needs_pyannote
@pytest.mark.parametrize("place", ["elsewhere/model", "$model/../other", {"checkpoint": "elsewhere/model"}])
def test_models_come_from_the_folder_itself(copy, place) -> None:
    params = CONFIG["pipeline"]["params"] | {"embedding": place}
    config = CONFIG | {"pipeline": CONFIG["pipeline"] | {"params": params}}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(PipelineError, match=r"want \$model/"):
        PyannoteDiarizer(str(copy))


@needs_pyannote
def test_a_checkpoint_that_holds_code_is_refused_and_the_code_not_run(copy, tmp_path) -> None:
    torch.save({"state_dict": Mine(tmp_path / "ran")}, copy / "embedding/pytorch_model.bin")
    with pytest.raises(PipelineError, match=r"embedding/pytorch_model.bin is not loaded: it holds .*pathlib"):
        PyannoteDiarizer(str(copy))
    assert not (tmp_path / "ran").exists()


@needs_pyannote
def test_a_checkpoint_of_a_foreign_network_is_refused(copy) -> None:
    file = copy / "embedding/pytorch_model.bin"
    torch.save({"pyannote.audio": {"architecture": {"module": "antigravity", "class": "fly"}}}, file)
    with pytest.raises(PipelineError, match="antigravity"):
        PyannoteDiarizer(str(copy))
    file.write_bytes(b"no checkpoint")
    with pytest.raises(PipelineError, match="no checkpoint"):
        PyannoteDiarizer(str(copy))


@needs_pyannote
def test_a_hub_id_without_a_token_says_what_to_do(monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(PipelineError, match=r"accept its conditions .* access token in HF_TOKEN") as refusal:
        PyannoteDiarizer("pyannote/speaker-diarization-community-1")
    assert "\n" not in str(refusal.value)
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")
    with pytest.raises(PipelineError, match="token's account accepted its conditions"):
        PyannoteDiarizer("pyannote/speaker-diarization-community-1")
    with pytest.raises(PipelineError, match="neither a folder nor a hub id"):
        PyannoteDiarizer("no such folder")


class Mine:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)
