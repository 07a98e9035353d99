"""Making a talking portrait: models loaded one after the other, frames made, the video and its record written."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import uuid
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import animation_job, checkpoint, codecs, inputs, media, sampling, weights
from model.animation_job import AnimateConfig, AnimateError, Job, Models, prepare
from model.config import flat
from model.diffusion import Progress
from model.encoders import speech, text, vocals
from model.encoders.face import DlibFace, FaceEncoder, InsightFace
from model.portrait import Portrait, build

Say = Callable[[str], None]
_LIBRARIES = ("talkreel", "av", "numpy", "opencv-contrib-python", "onnxruntime", "torch", "transformers", "diffusers")


def animate(config: AnimateConfig, say: Say = print, progress: Progress | None = None) -> Path:
    """Make the video, and its settings beside it. say: told what to know, line by line. Returns the video's path.

    Nothing is left behind when it fails or is stopped. Raises what `prepare` and the models' loading raise.
    """
    job = prepare(config)
    for line in (*job.remarks, *job.estimate()):
        say(line)
    output = Path(config.output)
    if config.dry_run:
        return output
    settings = output.with_suffix(".json")
    record = json.dumps(_record(job), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        made = frames(job, say, progress)
        media.encode(output, made, Fraction(speech.FPS), job.sound.played_N, inputs.SOUND_RATE, config.crf)
        part = settings.with_name(f".{settings.name}.{uuid.uuid4().hex[:8]}.part")
        part.write_text(record, encoding="utf-8")
        part.replace(settings)
    except OSError as error:
        raise AnimateError(f"output={output}: cannot be written: {error.strerror or error}") from error
    except torch.OutOfMemoryError as error:
        raise AnimateError(
            "out of memory: sequential=true, tiling=true, recompute_reference=true, dtype=bfloat16 or a smaller "
            "clip_frames take less"
        ) from error
    return output


def frames(job: Job, say: Say = print, progress: Progress | None = None) -> Iterator[np.ndarray]:
    """The video's frames, uint8 [H, W, 3], made as they are asked for; the models are loaded first, one by one."""
    config, models = job.config, job.models
    network, device = models.network, models.device
    face_C = _face(job) if network.has_face else None
    text_SD, negative_SD = _texts(job, say)
    states_TNC = _states(job)
    codec = codecs.load(models.codec, config.codec_source, device, models.dtype, config.tiling)
    if codec.channels != network.latent_channels:
        raise AnimateError(
            f"codec={models.codec} has {codec.channels} channels, the network reads {network.latent_channels}"
        )
    portrait = _network(config, models)
    cached = not config.recompute_reference
    face_4 = job.picture.shown_face.tolist() if network.compat == "hallo3" else None
    person = sampling.subject(portrait, codec, job.picture.shown_HW3, text_SD, negative_SD, face_C, cached, face_4)
    return sampling.video(portrait, codec, person, states_TNC, job.plan, job.how, progress)


def _texts(job: Job, say: Say) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt and negative prompt, [S, D] each; the encoder is gone afterwards."""
    config, models = job.config, job.models
    encoder = text.load(models.text, config.text_source, models.device, models.dtype)
    if encoder.dim != models.network.text_dim:
        raise AnimateError(
            f"text={models.text} makes {encoder.dim} numbers a token, the network reads {models.network.text_dim}"
        )

    def encoded(prompt: str) -> torch.Tensor:
        room = min(models.network.text_length, encoder.length)
        if (tokens := encoder.vocabulary.count(prompt)) > room:
            say(f"a prompt of {tokens} tokens: the network reads {room}, and what is beyond is cut off")
        return torch.from_numpy(encoder.encode(prompt)[:room])

    return encoded(config.prompt), encoded(config.negative)


def _states(job: Job) -> torch.Tensor | None:
    """The speech as states, [T, N, C]; None for a network that does not listen. The encoder is gone afterwards."""
    config, models = job.config, job.models
    audio = models.network.audio
    if not models.network.has_audio:
        return None
    encoder = speech.load(models.speech, config.speech_source, models.device)
    if (encoder.layers, encoder.dim) != (audio.layers, audio.dim):
        raise AnimateError(
            f"speech={models.speech} makes {encoder.layers} states of {encoder.dim} numbers a frame, the network reads "
            f"{audio.layers} of {audio.dim}"
        )
    return torch.from_numpy(encoder.frames(_voice(job), job.plan.heard))


def _voice(job: Job) -> np.ndarray:
    """What the speech encoder hears, float32 at 16 kHz: the sound, or the voice alone where a separator is named."""
    separator = animation_job.separator(job.config)
    if separator is None:
        return job.sound.heard_N
    voice_N = separator(media.audio(job.config.audio, rate=vocals.RATE, layout="stereo"))
    if inputs.loudest(voice_N) < inputs.SILENT:
        raise inputs.InputError(f"audio={job.config.audio}: the separator hears no voice in it; vocals=none")
    return voice_N


def _face(job: Job) -> torch.Tensor:
    """Who is in the picture, as a vector."""
    encoder: FaceEncoder
    try:
        dlib = job.models.face == "dlib"
        encoder = DlibFace(weights.path("dlib-face")) if dlib else InsightFace(Path(job.config.insightface))
    except (FileNotFoundError, ValueError) as error:
        raise AnimateError(str(error)) from error
    if encoder.size != job.models.network.face_dim:
        raise AnimateError(
            f"the face network makes {encoder.size} numbers, the network reads {job.models.network.face_dim}"
        )
    return torch.from_numpy(encoder(job.picture.image_HW3, np.array(job.picture.face.points)))


def _network(config: AnimateConfig, models: Models) -> Portrait:
    """The network with its weights, ready to sample from."""
    if config.checkpoint:
        portrait = build(models.network, "meta", models.dtype)
        checkpoint.load(portrait, config.checkpoint, dtype=models.dtype)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            portrait = build(models.network, models.device, models.dtype)
    return portrait.to(models.device).eval().requires_grad_(False)


def _record(job: Job) -> dict[str, Any]:
    """What the video was made with and of: enough to make it again."""
    config, models, box = job.config, job.models, job.picture.box
    catalogued = ["centerface"]
    catalogued += ["minilm"] if models.text == "minilm" and not config.text_source else []
    catalogued += ["whisper-tiny.en"] if models.speech == "whisper" and not config.speech_source else []
    catalogued += ["dlib-face"] if models.face == "dlib" and models.network.has_face else []
    return {
        "settings": dataclasses.asdict(config),
        "seed": config.seed,
        "network": flat(models.network),
        "random_weights": not config.checkpoint,
        "models": {"codec": models.codec, "text": models.text, "speech": models.speech, "face": models.face},
        "device": models.device.type,
        "dtype": str(models.dtype).removeprefix("torch."),
        "video": {
            "frames": job.plan.frames,
            "fps": speech.FPS,
            "width": box.made_width,
            "height": box.made_height,
            "clips": job.plan.clips,
            "clip_frames": job.plan.length,
            "frames_made_again": job.plan.overlap,
        },
        "picture": {
            "face": [job.picture.face.left, job.picture.face.top, job.picture.face.right, job.picture.face.bottom],
            "shown": [box.left + box.before, box.top, box.left + box.width - box.after, box.top + box.height],
            "padded": box.padded,
            "scale": box.scale,
        },
        "sha256": {
            "image": _sha256(Path(config.image)),
            "audio": _sha256(Path(config.audio)),
            "checkpoint": _hashes(Path(config.checkpoint)) if config.checkpoint else {},
            **({"vocals": models.vocals} if models.vocals else {}),
            "models": {entry.name: entry.sha256 for entry in weights.entries(*catalogued)},
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _hashes(source: Path) -> dict[str, str]:
    """sha256 of a checkpoint's files, by name."""
    if source.is_file():
        return {source.name: _sha256(source)}
    return {str(file.relative_to(source)): _sha256(file) for file in sorted(source.rglob("*")) if file.is_file()}


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
