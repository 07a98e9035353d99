"""Diarization by a pyannote.audio 4 pipeline: for those who accepted the conditions of its models.

pyannote.audio is an optional package and heavy (10-20 s to import): nothing of it is imported before a diarizer is
made. It unpickles checkpoints and builds whatever class a `config.yaml` names, so the folder is examined first.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from curation.backends.segmentation import FRAME_CENTRE, FRAME_STEP, RATE, frame_count
from curation.backends.speakers import Diarization, diarization

PIPELINE = "pyannote.audio.pipelines.SpeakerDiarization"
MODELS = "pyannote.audio.models."
TRUSTED = (
    "pyannote.audio.core.task.",
    "torch.torch_version.",
    "omegaconf.",
    "lightning.pytorch.callbacks.",
    "pytorch_lightning.callbacks.",
)
"""Where the classes come from that genuine checkpoints hold beside weights: descriptions, none of which acts."""


class PipelineError(Exception):
    """A pyannote.audio pipeline cannot be used: which one, why, and what to do."""


class PyannoteDiarizer:
    """Diarizes with a pipeline of pyannote.audio 4, such as speaker-diarization-community-1."""

    def __init__(self, source: str, device: str | None = None, threads: int = 1) -> None:
        """source: a folder with `config.yaml` and what it names, or a hub id, `org/name` or `org/name@revision`.

        A gated hub id needs an access token in HF_TOKEN (or a saved login). device: None takes CUDA where there
        is one. Raises PipelineError.
        """
        if not installed():
            raise PipelineError(
                f"cannot load the pipeline {source}: pyannote.audio is not installed: pip install 'talkreel[paper]'"
            )
        folder = Path(source) if Path(source).is_dir() else download(source)
        models = examine_config(folder)
        import_pyannote()
        for model in models:
            examine_checkpoint(model)
        from pyannote.audio import Pipeline

        torch.set_num_threads(threads)
        self.pipeline = Pipeline.from_pretrained(folder)
        self.pipeline.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))

    def __call__(self, waveform: np.ndarray) -> Diarization:
        """waveform: float32 [n] mono at 16 kHz, n ≥ 0."""
        if not len(waveform):
            return Diarization((), ())
        windows: list[Any] = []  # of the segmentation step, which the output no longer tells

        def keep(step: str, artefact: Any, **_: Any) -> None:
            if step == "segmentation" and artefact is not None:
                windows.append(artefact)

        file = {"waveform": torch.from_numpy(waveform)[None], "sample_rate": RATE}
        output = self.pipeline(file, hook=keep)
        length = frame_count(len(waveform))
        # The exclusive diarization gives overlap to the one who is heard best: made for transcripts. A solo must
        # hold no overlap at all, so both turns and solos come from the full one.
        talking = activity(output.speaker_diarization, length)
        return diarization(talking, overlap(windows[-1], length), len(waveform) / RATE)


def installed() -> bool:
    """Whether pyannote.audio can be imported."""
    try:
        return importlib.util.find_spec("pyannote.audio") is not None
    except ModuleNotFoundError:  # not even the namespace `pyannote`
        return False


def activity(annotation: Any, length: int) -> np.ndarray:
    """Who talks at the centre of each of our frames, bool [length, K], from a pyannote.core Annotation."""
    labels = annotation.labels()
    result = np.zeros((length, len(labels)), dtype=bool)
    for turn, _, label in annotation.itertracks(yield_label=True):
        first, last = np.ceil((np.array([turn.start, turn.end]) * RATE - FRAME_CENTRE) / FRAME_STEP).astype(int)
        result[max(first, 0) : max(last, 0), labels.index(label)] = True
    return result


def overlap(windows: Any, length: int) -> np.ndarray:
    """Share of the windows over each of our frames that hear two speakers or more, float [length].

    windows: SlidingWindowFeature of the segmentation, data [windows, frames, speakers].
    """
    busy, seen = np.zeros((2, length))
    frames = windows.data.shape[1]
    step = windows.sliding_window.duration / frames
    for window, data in enumerate(windows.data):
        centre = windows.sliding_window[window].start + (np.arange(frames) + 0.5) * step
        frame = np.round((centre * RATE - FRAME_CENTRE) / FRAME_STEP).astype(int)
        inside = (frame >= 0) & (frame < length)
        np.add.at(seen, frame[inside], 1)
        np.add.at(busy, frame[inside], (data[inside] > 0.5).sum(axis=1) > 1)
    return busy / np.maximum(seen, 1)


def download(source: str) -> Path:
    """The folder of a hub repository, from the hub or the hub's cache."""
    from huggingface_hub import get_token, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.yaml", "*.bin", "*.npz"]))
    except HFValidationError as error:
        raise PipelineError(f"{source} is neither a folder nor a hub id such as org/name") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        todo = "check the name, the network, and that the token's account accepted its conditions"
        if get_token() is None:
            todo = "accept its conditions on its page there and put an access token in HF_TOKEN"
        reason = str(error).strip().splitlines()[0]
        raise PipelineError(f"cannot fetch {source} from the hub: {todo} ({reason})") from error


def examine_config(folder: Path) -> list[Path]:
    """Checkpoints of a pipeline folder, all there; its `config.yaml` builds nothing but a diarization of them."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise PipelineError(f"{folder} is no pyannote.audio pipeline: it holds no config.yaml")
    try:
        config = yaml.safe_load(file.read_text())
        name, params = config["pipeline"]["name"], config["pipeline"].get("params", {})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise PipelineError(f"{file} cannot be read as the configuration of a pipeline: {error!r}") from error
    if name != PIPELINE or config.get("preprocessors"):
        what = "preprocessors" if name == PIPELINE else f"the pipeline {name}"
        raise PipelineError(f"{file} asks for {what}: only a plain {PIPELINE} is run")
    wanted = {"segmentation": ["pytorch_model.bin"], "embedding": ["pytorch_model.bin"]}
    if params.get("clustering", "VBxClustering") == "VBxClustering":
        wanted["plda"] = ["xvec_transform.npz", "plda.npz"]
    for role, files in wanted.items():
        place = str(params.get(role, "nothing"))
        if not place.startswith("$model/") or ".." in place:
            raise PipelineError(f"{file}: {role} is {place}: want $model/<folder beside config.yaml>")
        for part in files:
            if not (folder / place.removeprefix("$model/") / part).is_file():
                raise PipelineError(f"{folder} lacks {place.removeprefix('$model/')}/{part}, the pipeline's {role}")
    checkpoints = (params[role].removeprefix("$model/") for role in ("segmentation", "embedding"))
    return [folder / place / "pytorch_model.bin" for place in checkpoints]


def examine_checkpoint(file: Path) -> None:
    """Makes sure that unpickling a checkpoint, as pyannote.audio will, runs no code but that of its own classes."""
    try:
        beside = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        foreign = [name for name in beside if not name.startswith(TRUSTED)]
        if foreign:
            raise PipelineError(f"{file} is not loaded: it holds {', '.join(sorted(foreign))} beside weights")
        with torch.serialization.safe_globals([named(name) for name in beside]):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        module = checkpoint["pyannote.audio"]["architecture"]["module"]
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise PipelineError(f"{file} is no checkpoint of pyannote.audio: {reason}") from error
    if not str(module).startswith(MODELS):
        raise PipelineError(f"{file} is not loaded: its network is {module}, not one of {MODELS}*")


def named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def import_pyannote() -> None:
    """Imports pyannote.audio without its telemetry, also where torchaudio is built for a GPU and torch is not."""
    os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "0")  # else it reports every file's length to its makers
    if torch.version.cuda is None and "torchaudio" not in sys.modules:
        extension = types.ModuleType("torchaudio._extension")  # compiled code that nothing here needs
        vars(extension).update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, fail_if_no_align=lambda function: function)
        sys.modules["torchaudio._extension"] = extension
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*torchcodec")  # decodes files; we hand over samples
        importlib.import_module("pyannote.audio")
