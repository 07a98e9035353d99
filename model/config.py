"""Sizes of the network, and which of the paper's variants it is; presets `tiny`, `small` and `hallo3`."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

from model.settings import SettingsError, describe, option

INJECTIONS = ("none", "cross", "self", "adaln", "adaln_zero")
IDENTITIES = ("none", "face_attention", "face_norm", "reference", "face_and_reference")
MOTION_FRAMES = (1, 2, 4, 8)


@dataclass(frozen=True)
class AudioConfig:
    """How speech enters (paper, Sec. 3.2 and the ablation of audio injection)."""

    injection: str = option("cross", "by cross attention, in self-attention, or by adaptive norms", INJECTIONS)
    layers: int = option(12, "hidden states of the speech encoder per video frame")
    dim: int = option(768, "width of a hidden state")
    window: int = option(2, "video frames of context on either side")
    inner: int = option(512, "width between the projector's linear layers")
    tokens: int = option(32, "tokens per latent frame")
    token_dim: int = option(768, "width of a token")

    @property
    def span(self) -> int:
        """Video frames in a window."""
        return 2 * self.window + 1


@dataclass(frozen=True)
class MotionConfig:
    """What is handed on from clip to clip (paper, Sec. 3.3)."""

    frames: int = option(2, "last frames of the clip before", MOTION_FRAMES)


@dataclass(frozen=True)
class ModelConfig:
    """The denoiser and its reference network. The defaults are CogVideoX-5B-I2V with everything the paper adds."""

    width: int = option(3072, "width of the transformer")
    heads: int = option(48, "attention heads")
    layers: int = option(42, "transformer blocks")
    patch: int = option(2, "latent positions in a patch, in height and in width")
    patch_frames: int = option(1, "latent frames in a patch (2: CogVideoX 1.5)")
    time_dim: int = option(512, "width of the timestep embedding")
    text_dim: int = option(4096, "width of a text token")
    text_length: int = option(226, "text tokens there is room for")
    latent_channels: int = option(16, "channels of a latent")
    condition_channels: int = option(16, "channels joined to the noisy latent: the motion (0: none)")
    latent_frames: int = option(13, "latent frames that it was made for")
    latent_height: int = option(60, "latent height that it was made for: rotary positions are scaled to it")
    latent_width: int = option(90, "latent width that it was made for")
    learned_positions: bool = option(True, "a learned position embedding besides the rotary one")
    ofs_dim: int = option(0, "width of the ofs embedding (512: CogVideoX 1.5 I2V)")
    identity: str = option("face_and_reference", "what tells whose face it is", IDENTITIES)
    face_dim: int = option(512, "width of a face embedding (InsightFace 512, dlib 128)")
    face_tokens: int = option(4, "tokens made of a face embedding")
    face_token_dim: int = option(1024, "width of such a token")
    audio: AudioConfig = field(default_factory=AudioConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    compat: str = option("", "hallo3: as the released code has it; see docs/paper-and-code.md", ("", "hallo3"))
    rotary_reference_tokens: int = option(
        0, "compat=hallo3: reference tokens that its rotary code takes for granted (1350; 0: as many as there are)"
    )

    def __post_init__(self) -> None:
        """Raises SettingsError where values do not go together."""

        def require(holds: bool, what: str) -> None:
            if not holds:
                raise SettingsError(f"model: {what}")

        require(self.width % self.heads == 0, f"width={self.width} does not divide into heads={self.heads}")
        require(
            self.head_dim % 16 == 0,
            f"width / heads = {self.head_dim}; rotary positions in time, height and width need a multiple of 16",
        )
        require(self.identity in IDENTITIES, f"identity={self.identity!r}: there is {', '.join(IDENTITIES)}")
        require(
            self.audio.injection in INJECTIONS,
            f"audio.injection={self.audio.injection!r}: there is {', '.join(INJECTIONS)}",
        )
        require(self.compat in ("", "hallo3"), f"compat={self.compat!r}: there is '' and 'hallo3'")
        require(
            self.motion.frames in MOTION_FRAMES,
            f"motion.frames={self.motion.frames}: there is {', '.join(map(str, MOTION_FRAMES))}",
        )
        if self.compat == "hallo3":
            require(
                self.audio.injection in ("none", "cross") and self.identity in ("none", "face_and_reference"),
                "compat=hallo3 has audio.injection=cross (or none) and identity=face_and_reference alone",
            )
        require(
            self.ofs_dim in (0, self.time_dim), f"ofs_dim={self.ofs_dim}; it is added to the timestep's {self.time_dim}"
        )
        require(
            self.patch_frames == 1 or not self.has_audio,
            f"patch_frames={self.patch_frames}: sound belongs to single latent frames; set audio.injection=none",
        )
        require(
            not (self.rotary_reference_tokens and self.compat != "hallo3"),
            "rotary_reference_tokens is a quirk of compat=hallo3",
        )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference network."""
        return self.identity in ("reference", "face_and_reference")

    @property
    def has_face_attention(self) -> bool:
        return self.identity in ("face_attention", "face_and_reference")

    @property
    def has_face(self) -> bool:
        """Whether a face embedding is taken."""
        return self.has_face_attention or self.identity == "face_norm"

    @property
    def has_audio(self) -> bool:
        return self.audio.injection != "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that it was made for."""
        return self.latent_height // self.patch, self.latent_width // self.patch

    def backbone(self) -> ModelConfig:
        """The same network without what the paper adds to CogVideoX."""
        return dataclasses.replace(
            self, identity="none", audio=dataclasses.replace(self.audio, injection="none"), rotary_reference_tokens=0
        )


# The encoders of the embedded profile: MiniLM 384, Whisper tiny's 5 states of 384, dlib's 128.
_EMBEDDED = {
    "text_dim": 384,
    "text_length": 64,
    "learned_positions": False,
    "face_dim": 128,
    "audio.layers": 5,
    "audio.dim": 384,
}
PRESETS: dict[str, dict[str, Any]] = {
    # 150 patches a latent frame at 480 × 720, so that a step takes about a second on two cores.
    "tiny": {
        **_EMBEDDED,
        "width": 128,
        "heads": 2,
        "layers": 4,
        "patch": 6,
        "time_dim": 64,
        "face_token_dim": 64,
        "audio.inner": 64,
        "audio.tokens": 8,
        "audio.token_dim": 64,
    },
    # CogVideoX's patches; for one GPU.
    "small": {
        **_EMBEDDED,
        "width": 768,
        "heads": 12,
        "layers": 12,
        "time_dim": 256,
        "face_token_dim": 256,
        "audio.inner": 256,
        "audio.tokens": 16,
        "audio.token_dim": 256,
    },
    # The published model, size for size. `preset("hallo3", compat="")` is the same network as we would train it.
    "hallo3": {"compat": "hallo3"},
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A preset with changes; nested settings by their dotted name: `preset("tiny", **{"audio.injection": "self"})`.

    Raises SettingsError, which names the nearest preset or setting.
    """
    if name not in PRESETS:
        raise SettingsError(f"preset {name!r} is not known; there is {', '.join(PRESETS)}")
    known = [key for key, _ in describe(ModelConfig)]
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"unknown setting {key!r} of the model{hint}")
    return from_flat({**PRESETS[name], **changes})


def from_flat(values: dict[str, Any]) -> ModelConfig:
    """A config of dotted names; what is not named has its default."""
    audio = {key.removeprefix("audio."): value for key, value in values.items() if key.startswith("audio.")}
    motion = {key.removeprefix("motion."): value for key, value in values.items() if key.startswith("motion.")}
    own = {key: value for key, value in values.items() if "." not in key}
    return ModelConfig(**own, audio=AudioConfig(**audio), motion=MotionConfig(**motion))


def flat(config: ModelConfig) -> dict[str, Any]:
    """A config as dotted names, for files; `from_flat` reads it back."""
    values: dict[str, Any] = {}
    for key, _ in describe(ModelConfig):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value
    return values
