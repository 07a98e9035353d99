"""What the network costs: floating-point operations of a forward pass and of a training step, by part.

Counted are matrix products, as torch.utils.flop_counter counts them (2 operations a multiply-add); norms,
activations and rotary embeddings are left out, as is usual (they are below 1 % at any size worth counting).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from model.conditioning import FRAMES_PER_LATENT
from model.config import ModelConfig


@dataclass(frozen=True)
class Shape:
    """What goes into one pass."""

    frames: int  # latent frames
    height: int  # latent rows
    width: int  # latent columns
    text: int  # text tokens
    batch: int = 1
    face: bool = True  # whether it is given a face, sound, and a reference
    audio: bool = True
    reference: bool = True


@dataclass(frozen=True)
class Cost:
    """Operations of a forward pass: products with weights, and of activations with each other (attention)."""

    weights: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.attention

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.weights + other.weights, self.attention + other.attention)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.weights * times, self.attention * times)


def forward(config: ModelConfig, shape: Shape) -> dict[str, Cost]:
    """Operations of one forward pass of a Portrait, by part.

    Parts: denoiser.{embed, norms, attention, feed_forward, face, audio, out} and reference.{embed, norms, attention,
    feed_forward}. Keys and values of the reference's features count as the denoiser's attention.
    """
    patches = (shape.height // config.patch) * (shape.width // config.patch)
    steps = shape.frames // config.patch_frames
    looked_at = patches if config.has_reference and shape.reference else 0
    costs = _backbone("denoiser", config, config.layers, steps * patches, shape.text, looked_at)
    width, patch_size = config.width, config.patch_frames * config.patch**2
    out = _linear(1, config.time_dim, 2 * width) + _linear(steps * patches, width, patch_size * config.latent_channels)
    costs["denoiser.out"] = Cost(out)
    costs["denoiser.face"] = _face(config, steps * patches) if config.has_face and shape.face else Cost()
    heard = config.has_audio and shape.audio
    costs["denoiser.audio"] = _audio(config, shape, patches) if heard else Cost()
    if looked_at:
        reference = _backbone("reference", config, config.layers - 1, patches, shape.text, 0)
        last = Cost(_linear(1, config.time_dim, 6 * width))  # the last block gives its norm's output and stops
        costs |= reference | {"reference.norms": reference["reference.norms"] + last}
    return {part: cost * shape.batch for part, cost in costs.items()}


def training(
    costs: dict[str, Cost], *, trained: Collection[str] | None = None, without_graph: Collection[str] = ()
) -> int:
    """Operations of a training step: forward, gradients of activations, and those of the weights that are trained.

    trained: the parts whose weights are (None: all). without_graph: parts that are only run forward. The gradient of
    attention counts twice its forward; recomputing anything does not count (model, not hardware operations).
    """
    for name in {*(trained or ()), *without_graph} - set(costs):
        raise ValueError(f"{name!r} is not a part of the network; there is {', '.join(costs)}")
    total = 0
    for part, cost in costs.items():
        total += cost.total
        if part not in without_graph:
            total += cost.weights + 2 * cost.attention
            total += cost.weights if trained is None or part in trained else 0
    return total


def total(costs: dict[str, Cost]) -> int:
    """Operations of all parts."""
    return sum(cost.total for cost in costs.values())


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
    """Queries with keys, and weights with values."""
    return 2 * _linear(queries, keys, width)


def _backbone(name: str, config: ModelConfig, layers: int, picture: int, text: int, looked_at: int) -> dict[str, Cost]:
    """CogVideoX without its way out."""
    width, time, tokens = config.width, config.time_dim, picture + text
    channels = (config.latent_channels + config.condition_channels) * config.patch_frames * config.patch**2
    embed = _linear(picture, channels, width) + _linear(text, config.text_dim, width)
    embed += _linear(1, width, time) + _linear(1, time, time)
    embed += 2 * _linear(1, config.ofs_dim, config.ofs_dim)
    projections = _linear(tokens, width, 4 * width) + _linear(looked_at, width, 2 * width)
    return {
        f"{name}.embed": Cost(embed),
        f"{name}.norms": Cost(2 * _linear(1, time, 6 * width)) * layers,
        f"{name}.attention": Cost(projections, _attention(tokens, tokens + looked_at, width)) * layers,
        f"{name}.feed_forward": Cost(2 * _linear(tokens, width, 4 * width)) * layers,
    }


def _face(config: ModelConfig, picture: int) -> Cost:
    count, size, width = config.face_tokens, config.face_token_dim, config.width
    tokens = Cost(_linear(1, config.face_dim, count * size))
    if not config.has_face_attention:
        return tokens + Cost(_linear(1, size, 6 * width)) * config.layers
    projections = _linear(picture, width, 2 * width) + _linear(count, size, 2 * width)
    return tokens + Cost(projections, _attention(picture, count, width)) * config.layers


def _audio(config: ModelConfig, shape: Shape, patches: int) -> Cost:
    audio, width, frames = config.audio, config.width, shape.frames
    heard, made = 1 + FRAMES_PER_LATENT * (frames - 1), audio.tokens * audio.token_dim
    seen = audio.span * audio.layers * audio.dim
    tokens = _linear(heard, seen, audio.inner) + _linear(heard, audio.inner, audio.inner)
    if config.compat == "hallo3":
        halves = heard // 2, (heard - heard // 2) // 2
        tokens += _linear(heard, audio.inner, made) + sum(_linear(half, 2 * made, made) for half in halves)
    else:
        tokens += _linear(frames, FRAMES_PER_LATENT * audio.inner, made)
    picture, count, size = frames * patches, audio.tokens, audio.token_dim
    keys = _linear(frames * count, size, 2 * width)
    if audio.injection == "cross":
        layer = Cost(_linear(picture, width, 2 * width) + keys, _attention(picture, count, width))
    elif audio.injection == "self":
        layer = Cost(keys, _attention(picture + shape.text, frames * count, width))
    else:
        layer = Cost(_linear(frames, size, (6 if audio.injection == "adaln_zero" else 4) * width))
    return Cost(tokens) + layer * config.layers
