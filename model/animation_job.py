"""A video to be made of a picture, a sound and a prompt: its settings, its checked inputs, and what it will take."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from model import checkpoint, codecs, footprint, inputs, sampling, weights
from model.config import PRESETS, ModelConfig, preset
from model.diffusion import LEVELS
from model.encoders import speech, text
from model.encoders.detect import CenterFace
from model.encoders.face import DlibFace
from model.encoders.vocals import KNOWN, VocalSeparator
from model.settings import SettingsError, option, required

_WHISPER = 384  # width of Whisper tiny's states
NONE = "none"
"""As `vocals=`: the sound as it is, even where the network was trained on separated voices."""


class AnimateError(Exception):
    """A video that cannot be made: why, and what to do."""


@dataclass(frozen=True)
class AnimateConfig:
    """Settings of model/animate.py."""

    image: str = required("picture with one face (.png, .jpg, …)")
    audio: str = required("speech: a sound file, or a video with sound")
    output: str = required("the video to be made (.mp4); its settings are written beside it (.json)")
    prompt: str = option("", "what is to be seen")
    negative: str = option("", "what guidance leads away from")
    checkpoint: str = option("", "the network's weights: folder or Hallo3's file; empty: random, which gives noise")
    preset: str = option("tiny", "without a checkpoint: size of the network", tuple(PRESETS))
    steps: int = option(50, "denoising steps of a clip")
    sampler: str = option("ddim", "how steps are taken", sampling.SAMPLERS)
    text_scale: float = option(3.5, "guidance towards the prompt; 1: none")
    audio_scale: float = option(3.5, "guidance towards the sound; the same as text_scale spares a third of the work")
    seed: int = option(0, "of all that is drawn; the same seed and settings give the same bytes on the same machine")
    face: int = option(0, "which face of the picture, counted from the left; 0: the only one")
    upscale: bool = option(False, "enlarge a picture that has fewer pixels than the video")
    pad: bool = option(
        True, "black beside a picture too narrow for any part with the face, as in packing; false: refuse it"
    )
    width: int = option(0, "width of the video, pixels; 0: what the network was made for")
    height: int = option(0, "height of the video, pixels; 0: what the network was made for")
    clip_frames: int = option(0, "frames of a clip, 1 + 4k; 0: what the network was made for")
    device: str = option("", "cpu or cuda; empty: cuda where there is one", ("", "cpu", "cuda"))
    dtype: str = option(
        "", "what is computed in; empty: bfloat16 on cuda, float32 on cpu", ("", "float32", "bfloat16", "float16")
    )
    sequential: bool = option(False, "guidance one pass after the other: slower, less memory")
    recompute_reference: bool = option(False, "look at the picture in every step: slower, less memory")
    tiling: bool = option(False, "codec=cogvideox: decode in tiles, a quarter of the memory")
    codec: str = option("", "latents: dct or cogvideox; empty: what the weights are for", ("", *codecs.NAMES))
    codec_source: str = option("", "cogvideox: a folder or the hub's org/name; empty: the published one")
    speech: str = option("", "speech encoder; empty: the one of the network's sizes", ("", *speech.NAMES))
    speech_source: str = option("", "wav2vec2: a folder or the hub's org/name; empty: the published one")
    text: str = option("", "text encoder; empty: the one of the network's sizes", ("", *text.NAMES))
    text_source: str = option("", "t5: a folder or the hub's org/name; empty: the published one")
    insightface: str = option("", "for a network with 512 numbers a face: the folder of an unpacked buffalo_l")
    vocals: str = option(
        "",
        "file of an MDX-Net separator (Kim_Vocal_2.onnx): lips follow the voice alone; none: never; empty: unless the "
        "network was trained so, when it is asked for",
    )
    vocals_fft: int = option(0, "vocals: samples of a frame of its spectrogram; 0: known, as that of Kim_Vocal_2 is")
    crf: int = option(18, "quality of the video: x264's constant rate factor, less is better")
    overwrite: bool = option(False, "replace an output that is there already")
    dry_run: bool = option(False, "only check the inputs and say what it will take")

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""

        def require(holds: bool, problem: str) -> None:
            if not holds:
                raise SettingsError(problem)

        require(1 <= self.steps <= LEVELS, f"steps={self.steps}: 1 to {LEVELS}")
        require(self.output.endswith(".mp4"), f"output={self.output}: an .mp4 is written; let its name end so")
        require(self.face >= 0, f"face={self.face}: faces are counted from 1; 0: the only one")
        require(self.clip_frames >= 0, f"clip_frames={self.clip_frames}: 1 + 4k, as 45, 49, 53; 0: the network's own")
        for name in ("width", "height"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: at least 0 (the network's own)")
        require(bool(self.width) == bool(self.height), "width and height go together")
        require(0 <= self.crf <= 51, f"crf={self.crf}: 0 to 51")


@dataclass(frozen=True)
class Models:
    """Which models a video takes: the network's sizes, and the names of codec and encoders that fit them."""

    network: ModelConfig
    codec: str
    text: str
    speech: str
    face: str
    vocals: str
    """The separator's sha256; empty: none."""
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Job:
    """A video that can be made: all inputs are checked, no large model is loaded yet."""

    config: AnimateConfig
    models: Models
    picture: inputs.Picture
    sound: inputs.Sound
    plan: sampling.Plan
    how: sampling.Sampling
    latent: tuple[int, int, int]
    """Frames, height and width of a clip's latents."""
    remarks: tuple[str, ...] = field(default=())

    @property
    def work(self) -> footprint.Work:
        model = self.models.network
        frames, height, width = self.latent
        bytes_ = torch.empty(0, dtype=self.models.dtype).element_size()
        guidance, steps = self.how.guidance, self.how.steps
        return footprint.Work(model, self.plan, guidance, steps, height, width, frames, model.text_length, bytes_)

    def estimate(self) -> list[str]:
        """What it will take, for people."""
        work, plan = self.work, self.plan
        parts = footprint.memory(
            work, self.models.codec, self.models.text, self.config.tiling, not self.config.recompute_reference
        )
        seconds, made = plan.frames / speech.FPS, f"{self.picture.box.made_width}x{self.picture.box.made_height}"
        lines = [
            f"{plan.frames} frames ({seconds:.2f} s) of {made} in {plan.clips} clips of {plan.length}, "
            f"{self.how.steps} steps each of {work.rows} passes",
            f"about {footprint.operations(work) / 1e12:.3g} TFLOP, and {footprint.size(parts['fullest'])} of memory on "
            f"{self.models.device.type} ({footprint.listed(parts)})",
        ]
        free = footprint.free(self.models.device)
        if free is not None and free < parts["fullest"]:
            lines.append(
                f"WARNING: only {footprint.size(free)} are free; sequential=true, tiling=true, "
                "recompute_reference=true, dtype=bfloat16 or a smaller clip_frames take less"
            )
        return lines


def prepare(config: AnimateConfig) -> Job:
    """Check all that is handed in. Raises AnimateError, InputError, SettingsError, MediaError or CheckpointError."""
    config.check()
    output = Path(config.output)
    if not config.dry_run and output.exists() and not config.overwrite:
        raise AnimateError(f"output={output} is there already: name another, or overwrite=true")
    models, remarks = _models(config)
    network = models.network
    made = (
        config.width or network.latent_width * codecs.SPATIAL,
        config.height or network.latent_height * codecs.SPATIAL,
    )
    for name, length in zip(("width", "height"), made, strict=True):
        if length % (step := codecs.SPATIAL * network.patch):
            raise SettingsError(f"{name}={length}: this network needs a multiple of {step}")
    length = config.clip_frames or codecs.frames_for(network.latent_frames)
    if length % codecs.GROUP != 1:
        raise SettingsError(f"clip_frames={length}: 1 + {codecs.GROUP}k are needed, as 45, 49, 53")
    own = (network.latent_width * codecs.SPATIAL, network.latent_height * codecs.SPATIAL)
    if network.learned_positions and (made != own or codecs.latents_for(length) > network.latent_frames):
        raise SettingsError(
            f"this network has learned its positions: only {own[0]}x{own[1]} in clips of up to "
            f"{codecs.frames_for(network.latent_frames)} frames can be made"
        )
    picture = inputs.picture(
        Path(config.image), CenterFace(weights.path("centerface")), made, config.face, config.upscale, config.pad
    )
    sound = inputs.sound(Path(config.audio))
    try:
        plan = sampling.Plan.of(network, sound.frames, length)
    except ValueError as error:
        raise SettingsError(f"clip_frames={length}: {error}") from error
    if plan.clips > 1 and not network.condition_channels:
        raise AnimateError(
            f"{plan.frames} frames need {plan.clips} clips, and this network takes no motion frames to join them; "
            f"give it at most {plan.length / speech.FPS:.2f} s of sound"
        )
    guidance = sampling.Guidance(config.text_scale, config.audio_scale, not config.sequential)
    how = sampling.Sampling(config.steps, config.sampler, guidance, config.seed)
    latent = (codecs.latents_for(length), made[1] // codecs.SPATIAL, made[0] // codecs.SPATIAL)
    return Job(config, models, picture, sound, plan, how, latent, (*picture.remarks(), *remarks))


def _models(config: AnimateConfig) -> tuple[Models, list[str]]:
    """The models that a video takes, and what is to be known of them."""
    remarks = []
    if config.checkpoint:
        found = checkpoint.read(config.checkpoint)
        network = found.config
        if not network.has_audio:
            remarks.append("these weights have no part that listens: the lips will not follow the sound")
    else:
        found, network = None, preset(config.preset)
        remarks.append("NOISE: no checkpoint=… is given, the network's weights are random and the video will be noise")
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AnimateError("device=cuda: there is none here, or torch is a build without it; device=cpu")
    dtype = getattr(torch, config.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    published = network.compat == "hallo3" or (found is not None and found.layout == "diffusers")
    codec = config.codec or str((found.note if found else {}).get("codec") or ("cogvideox" if published else "dct"))
    named = config.text or ("minilm" if network.text_dim == text.MiniLM.dim else "t5")
    hears = config.speech or ("whisper" if network.audio.dim == _WHISPER else "wav2vec2")
    recognises = "dlib" if network.face_dim == DlibFace.size else "insightface"
    if network.has_face and recognises == "insightface" and not config.insightface:
        raise AnimateError(
            f"the network reads {network.face_dim} numbers a face: insightface=… names the folder of an unpacked "
            "buffalo_l, whose network makes them"
        )
    if network.compat == "hallo3" and codec == "dct" and (1 + network.motion.frames) % 4 != 1:
        raise AnimateError(
            f"compat=hallo3 encodes the picture and {network.motion.frames} motion frames as one clip, which codec=dct "
            "cannot; codec=cogvideox"
        )
    vocals, said = _vocals(config, network, found)
    return Models(network, codec, named, hears, recognises, vocals, device, dtype), [*remarks, *said]


def separator(config: AnimateConfig) -> VocalSeparator | None:
    """What takes the voice out of the sound; None where nothing does. Raises FormatError."""
    if config.vocals in ("", NONE):
        return None
    return VocalSeparator(Path(config.vocals), config.vocals_fft, torch.get_num_threads())


def _vocals(config: AnimateConfig, network: ModelConfig, found: checkpoint.Checkpoint | None) -> tuple[str, list[str]]:
    """The sha256 of the separator to be used, empty for none; and what is to be known of it."""
    if not network.has_audio:
        return "", []
    trained = str((found.note if found else {}).get("vocals") or "")
    name = KNOWN[trained].name if trained in KNOWN else trained
    given = separator(config)
    if given is not None:
        other = trained not in ("", given.sha256)
        return given.sha256, [f"another separator than the one that the network was trained with ({name})"] * other
    if trained and not config.vocals:
        raise AnimateError(
            f"the network was trained on voices that a separator had taken out of the sound ({name}): vocals=… names "
            "its file; vocals=none takes the sound as it is"
        )
    if trained or (found is not None and found.layout == "hallo3"):
        return "", ["the network was trained on voices alone: of music or noise in the sound, vocals=… rids it"]
    return "", []
