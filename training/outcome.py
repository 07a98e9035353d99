"""The network that a checkpoint of training holds, as one: for animation, for the next stage, for others' tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from model.config import from_flat
from model.layouts import Checkpoint, CheckpointError, write_diffusers, write_hallo3, write_talkreel
from model.portrait import build
from model.settings import SettingsError
from training import lora
from training.saved import CONTENTS, Saved, StateError
from training.state import FROZEN, folder_of, latest_in

WEIGHTS = ("trained", "ema")


def found(source: Path) -> Path:
    """A checkpoint's folder: `source` itself, or the latest in it or in its folder `checkpoints`. Raises StateError."""
    if (source / CONTENTS).is_file():
        return source
    for folder in (source, source / "checkpoints"):
        if (step := latest_in(folder)) is not None:
            return folder_of(folder, step)
    raise StateError(f"{source}: no checkpoint of training, and none in it; name a step-… folder, or a run's output")


def network(folder: Path, weights: str = "trained", dtype: torch.dtype | None = None) -> Checkpoint:
    """The whole network of a checkpoint's folder, its adapters merged; its note says step, weights, and the models
    that latents and conditions were made with (the trainer's `made_with`).

    weights: `trained`, as the last step left them, or `ema`, their average. dtype: of all tensors; None: as they are
    held (trained ones float32). Raises StateError.
    """
    state = Saved(folder)
    try:
        config, step, scale = from_flat(state.contents["model"]), state.contents["step"], state.contents["adapters"]
    except (KeyError, TypeError, SettingsError) as error:
        raise StateError(f"{folder / CONTENTS}: does not describe a network: {error!r}") from error
    if weights == "ema" and not any(name.startswith("ema.") for name in state.shapes):
        raise StateError(f"{folder}: holds no average, for the run was made with state.ema=0; take weights=trained")
    tensors = _named(state, "model.")
    if weights == "ema":
        tensors |= _named(state, "ema.")
    wanted = list(build(config, "meta").state_dict())
    if not set(wanted) <= set(tensors):
        tensors = _named(Saved(folder.parent / FROZEN), "model.") | tensors
    if scale is not None:
        tensors = lora.merged(tensors, scale)
    if set(tensors) != set(wanted):
        odd = min(set(tensors) ^ set(wanted))
        raise StateError(f"{folder}: not a whole network with {FROZEN} beside it: {odd} is missing or left over")
    ordered = {name: tensors[name] if dtype is None else tensors[name].to(dtype) for name in wanted}
    note = {"step": step, "weights": weights, **state.contents["extra"].get("made_with", {})}
    return Checkpoint("talkreel", folder, config, ordered, note=note)


def export(
    folder: Path,
    target: Path,
    weights: str = "trained",
    layout: str = "talkreel",
    part: str = "denoiser",
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Write the network of a checkpoint's folder to `target`, a folder that is not there yet and appears when whole.

    layout: one of model.layouts.LAYOUTS; part: denoiser or reference, of which diffusers' layout holds one. Returns the
    names of what the layout has no place for. Raises StateError, CheckpointError.
    """
    whole = network(folder, weights, dtype)
    left: list[str] = []
    try:
        if layout == "talkreel":
            write_talkreel(target, whole.config, whole.tensors, whole.note)
        elif layout == "hallo3":
            write_hallo3(target, whole.config, whole.tensors)
        else:
            own = {name: tensor for name, tensor in whole.tensors.items() if name.startswith(f"{part}.")}
            if not own:
                raise CheckpointError(f"{folder} has no {part} network")
            left = [name for name in whole.tensors if name not in own]
            bare: Mapping[str, torch.Tensor] = {name.removeprefix(f"{part}."): tensor for name, tensor in own.items()}
            left += [f"{part}.{name}" for name in write_diffusers(target, whole.config, bare)]
    except OSError as error:
        raise CheckpointError(f"{target}: not written: {error.strerror or error}") from error
    return left


def _named(state: Saved, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): state.whole(name) for name in state.shapes if name.startswith(prefix)}
