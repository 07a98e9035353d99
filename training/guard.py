"""Nothing is learned from a loss or a gradient that is not finite: all ranks stop before the optimizer's step.

What the step was given is written down first, so that it can be looked into: `output/nonfinite-step-N/rank-R.*`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.distributed
from torch import nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from training.data import Batch
    from training.ranks import World

_NAMED = 4


class NonFiniteError(Exception):
    """A loss or a gradient that is not finite: of which samples, and where what the step was given lies."""


def check(
    step: int,
    losses_B: torch.Tensor,
    gradient_norm: float,
    *,
    batch: Batch,
    t_B: torch.Tensor,
    network: nn.Module,
    world: World,
    folder: str | Path,
    seed: int,
) -> None:
    """Stop all ranks where a loss or a gradient of any of them is not finite. Call it before the optimizer's step.

    losses_B, t_B: of this rank's samples, as `batch` has them. gradient_norm: of all parameters, before it is clipped.
    Raises NonFiniteError on every rank, with the same words.
    """
    sound = bool(torch.isfinite(losses_B).all()) and math.isfinite(gradient_norm)
    if not world.anyone(not sound):
        return
    wrong = [key for key, loss in zip(batch.keys, losses_B.tolist(), strict=True) if not math.isfinite(loss)]
    findings: dict[str, Any] = {
        "step": step,
        "rank": world.rank,
        "ranks": world.ranks,
        "seed": seed,
        "keys": list(batch.keys),
        "places": list(batch.places),
        "dropped": [sorted(names) for names in batch.dropped],
        "t": t_B.tolist(),
        "losses": [repr(loss) for loss in losses_B.tolist()],
        "gradient_norm": repr(float(gradient_norm)),
        "samples_with_bad_loss": wrong,
        "parameters_with_bad_gradient": bad_gradients(network),
    }
    place = Path(folder) / f"nonfinite-step-{step}"
    try:
        _write(place, world.rank, findings, batch)
        unwritten = ""
    except OSError as error:
        unwritten = f"rank {world.rank}: {error.strerror or error}"
    everyone = _gathered({**findings, "unwritten": unwritten}, world)
    raise NonFiniteError(_told(step, everyone, place))


def bad_gradients(network: nn.Module) -> list[str]:
    """Names of the parameters whose gradient, or this rank's part of it, is not finite."""
    names = []
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.to_local()
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            names.append(name)
    return names


def evidence(folder: str | Path, rank: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a rank wrote down: facts, and the tensors of its batch by name."""
    facts = json.loads((Path(folder) / f"rank-{rank}.json").read_text(encoding="utf-8"))
    mapped = safetensors.torch.load_file(Path(folder) / f"rank-{rank}.safetensors")
    # Where in memory a tensor begins may change a product's last bit; a copy begins where torch's own do.
    return facts, {name: tensor.clone() for name, tensor in mapped.items()}


def _write(place: Path, rank: int, findings: Mapping[str, Any], batch: Batch) -> None:
    place.mkdir(parents=True, exist_ok=True)
    tensors = {
        field.name: value.detach().cpu().contiguous()
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    text = json.dumps(findings, indent=1, ensure_ascii=False) + "\n"
    _publish(place / f"rank-{rank}.safetensors", safetensors.torch.save(tensors))
    _publish(place / f"rank-{rank}.json", text.encode())


def _publish(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _told(step: int, everyone: Sequence[Mapping[str, Any]], place: Path) -> str:
    """What happened, for people: the same on every rank."""
    wrong = list(dict.fromkeys(key for found in everyone for key in found["samples_with_bad_loss"]))
    keys = list(dict.fromkeys(key for found in everyone for key in found["keys"]))
    parameters = list(dict.fromkeys(name for found in everyone for name in found["parameters_with_bad_gradient"]))
    if wrong:
        what = f"step {step}: the loss of {_some(wrong)} is not finite"
    else:
        what = f"step {step}: the losses are finite, the gradient is not; its samples are {_some(keys)}"
    if parameters:
        what += f"; neither are the gradients of {len(parameters)} parameters ({_some(parameters)})"
    unwritten = [found["unwritten"] for found in everyone if found["unwritten"]]
    if unwritten:
        return f"{what}. Nothing was learned from it. {place}: what it was given cannot be written ({unwritten[0]})"
    return (
        f"{what}. Nothing was learned from it; what it was given is in {place}. Look at the samples, or go on from the "
        "last checkpoint with a smaller optimizer.lr"
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _gathered(findings: Mapping[str, Any], world: World) -> list[dict[str, Any]]:
    """The findings of all ranks, in their order; sent as JSON, for objects would be sent as pickles."""
    if world.ranks == 1:
        return [dict(findings)]
    own = torch.frombuffer(bytearray(json.dumps(findings).encode()), dtype=torch.uint8)
    lengths = torch.zeros(world.ranks, dtype=torch.int64)
    lengths[world.rank] = len(own)
    torch.distributed.all_reduce(lengths, group=world.control)
    texts = torch.zeros(world.ranks, int(lengths.max()), dtype=torch.uint8)
    texts[world.rank, : len(own)] = own
    torch.distributed.all_reduce(texts, group=world.control)
    rows = zip(texts, lengths.tolist(), strict=True)
    return [json.loads(bytes(text[:length].tolist())) for text, length in rows]
