"""What a training step costs in operations: of the model, and with what is computed twice to save memory."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from model import flops
from model.config import ModelConfig
from training.stages import Trained

RECOMPUTED = ("norms", "attention", "feed_forward", "face", "audio")  # parts inside a block
_PLACES = (
    ("patch_embed", "embed"),
    ("time_embedding", "embed"),
    ("ofs_embedding", "embed"),
    ("attn1.audio_keys", "audio"),
    ("audio_", "audio"),
    ("face_", "face"),
    ("attn1", "attention"),
    ("ff", "feed_forward"),
    ("norm1", "norms"),
    ("norm2", "norms"),
)


@dataclass(frozen=True)
class Work:
    """A step of all ranks together.

    tokens: of the denoiser, text and picture. model: operations that the network's mathematics asks for (for MFU).
    hardware: with those that are done again in the backward pass (for HFU).
    """

    tokens: int
    model: int
    hardware: int


def shape_of(network: ModelConfig, trained: Trained, samples: int, frames: int = 0) -> flops.Shape:
    """What goes into a step: latents of the size that the network was made for, text at its full length.

    frames: latent frames; 0: what the network was made for.
    """
    frames = frames or network.latent_frames
    return flops.Shape(
        frames, network.latent_height, network.latent_width, network.text_length, samples, audio=trained.audio
    )


def tokens(network: ModelConfig, shape: flops.Shape) -> int:
    """Tokens that the denoiser is given."""
    patches = (shape.height // network.patch) * (shape.width // network.patch)
    return shape.batch * (shape.text + shape.frames // network.patch_frames * patches)


def work(network: ModelConfig, trained: Trained, shape: flops.Shape, recompute: str = "none") -> Work:
    """What a step of this shape costs.

    recompute: `full` runs every block again in the backward pass, `selective` all of it but self-attention's products
    of activations. A part counts as trained where most of its numbers are; the little that adapters of low rank add is
    not counted.
    """
    costs = flops.forward(network, shape)
    still = [part for part in costs if part.startswith("reference.") and not _trains(trained, "reference.")]
    model = flops.training(costs, trained=parts(trained, costs), without_graph=still)
    model -= _spared(network, trained, shape)
    again = 0
    if recompute != "none":
        inside = [part for part in costs if part.partition(".")[2] in RECOMPUTED and part not in still]
        again = sum(costs[part].weights for part in inside)
        kept = () if recompute == "full" else ("denoiser.attention", "reference.attention")
        again += sum(costs[part].attention for part in inside if part not in kept)
    return Work(tokens(network, shape), model, model + again)


def parts(trained: Trained, known: dict[str, flops.Cost]) -> list[str]:
    """The parts (`flops.forward`) most of whose numbers are trained."""
    sizes: Counter[str] = Counter()
    chosen: Counter[str] = Counter()
    names = set(trained.names)
    for name, size in trained.sizes.items():
        sizes[part_of(name)] += size
        chosen[part_of(name)] += size if name in names else 0
    return [part for part in known if 2 * chosen[part] > sizes[part]]


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to, as `flops.forward` has them."""
    network, _, rest = name.partition(".")
    if rest.startswith("transformer_blocks."):
        rest = rest.split(".", 2)[2]
    return f"{network}.{next((part for start, part in _PLACES if rest.startswith(start)), 'out')}"


def _spared(network: ModelConfig, trained: Trained, shape: flops.Shape) -> int:
    """Operations that `flops.training` counts and nobody needs: gradients before the first that is trained.

    No gradient goes into what the network is given, and none into a first layer's parts before its first trained one.
    """
    costs = flops.forward(network, shape)
    total = costs["denoiser.embed"].weights
    one = flops.forward(dataclasses.replace(network, layers=1), shape)
    attention, face = one["denoiser.attention"], one["denoiser.face"]
    queries = 3 * 2 * tokens(network, shape) * network.width**2
    patches = (shape.height // network.patch) * (shape.width // network.patch) * shape.batch
    looked_at = 2 * 2 * patches * network.width**2 if network.has_reference and shape.reference else 0
    first = {part_of(name) for name in trained.names if name.startswith("denoiser.transformer_blocks.0.")}
    adaptive = network.audio.injection in ("adaln", "adaln_zero") or network.identity == "face_norm"
    earlier = first & {"denoiser.norms"} or _trains(trained, "denoiser.patch_embed", "denoiser.time_embedding")
    if earlier or (adaptive and first & {"denoiser.audio", "denoiser.face"}):
        pass
    elif "denoiser.attention" in first:
        total += queries + looked_at
    elif "denoiser.face" in first:
        total += attention.weights + 2 * attention.attention
    else:
        total += attention.weights + 2 * attention.attention
        if network.audio.injection != "self":  # which comes in before the face
            total += face.weights + 2 * face.attention
    if _trains(trained, "reference."):
        total += costs["reference.embed"].weights
        if not _trains(trained, "reference.patch_embed", "reference.transformer_blocks.0.norm1"):
            total += 3 * 2 * (patches + shape.text * shape.batch) * network.width**2
    return total


def _trains(trained: Trained, *starts: str) -> bool:
    return any(name.startswith(starts) for name in trained.names)
