#!/usr/bin/env python
"""Weights of the network: into a model, out of it, and from one layout to another.

  python model/checkpoint.py inspect SOURCE
  python model/checkpoint.py convert SOURCE TARGET [--layout talkreel|diffusers|hallo3] [--network denoiser|reference]

SOURCE is a folder with a config.json and safetensors files (diffusers' transformer, a pipeline folder that has one, or
ours), or a Hallo3 checkpoint (mp_rank_00_model_states.pt, or the folder around it). Files are mapped into memory, no
file's code is run, and a name that is missing or left over is an error or is listed, by module.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from model.cogvideox_layout import same_backbone
from model.config import flat
from model.layouts import (
    LAYOUTS,
    Checkpoint,
    CheckpointError,
    by_module,
    listed,
    module_of,
    read,
    write_diffusers,
    write_hallo3,
    write_talkreel,
)
from model.portrait import Portrait
from model.transformer import Backbone

__all__ = ["Checkpoint", "CheckpointError", "Loaded", "convert", "export", "inspect", "load", "read", "save"]

# Parts of the paper that no CogVideoX checkpoint has.
_NEW = ("*.face_*", "*.audio_*")


@dataclass(frozen=True)
class Loaded:
    """What `load` did."""

    checkpoint: Checkpoint
    fresh: tuple[str, ...]  # parameters that the file does not have: they are made new


def load(model: Portrait, source: str | Path, *, fresh: Sequence[str] = (), dtype: torch.dtype | None = None) -> Loaded:
    """Give `model` the weights at `source`; built on the meta device, it takes them without a second copy.

    fresh: patterns of names that the source need not have (`*.audio_*`): these are made new. A CogVideoX checkpoint
    never has the paper's parts, and is read twice where there is a reference network, whose start it is too.
    dtype: to convert to (a copy). Raises CheckpointError, which lists what is missing, left over or of another shape.
    """
    checkpoint = read(source)
    tensors = dict(checkpoint.tensors)
    if checkpoint.layout == "diffusers":
        fresh = (*fresh, *_NEW)
        if model.reference is not None:  # mapped once more: the two networks go apart
            again = read(source).tensors
            tensors |= {f"reference.{name.removeprefix('denoiser.')}": value for name, value in again.items()}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in tensors]
    left = [name for name in missing if any(fnmatchcase(name, pattern) for pattern in fresh)]
    _refuse(
        model,
        checkpoint,
        missing=[name for name in missing if name not in left],
        unexpected=[name for name in tensors if name not in wanted] + list(checkpoint.unexpected),
        reshaped=[
            f"  {name}: {list(tensor.shape)}, not {list(wanted[name].shape)}"
            for name, tensor in tensors.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ],
    )
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    _make_new(model, set(left))
    return Loaded(checkpoint, tuple(left))


def _refuse(
    model: Portrait, checkpoint: Checkpoint, missing: list[str], unexpected: list[str], reshaped: list[str]
) -> None:
    """Raise CheckpointError if anything does not fit."""
    problems = []
    if missing:
        problems.append("missing:\n" + listed(missing))
    if unexpected:
        problems.append("unexpected:\n" + listed(unexpected))
    if reshaped:
        problems.append(f"of another shape ({len(reshaped)}):\n" + "\n".join(reshaped[:5]))
    if problems:
        other = same_backbone(model.config, checkpoint.config)
        hint = f"\nthe networks differ in: {', '.join(other)}" if other else ""
        raise CheckpointError(f"{checkpoint.path} does not fit this network; " + "\n".join(problems) + hint)


def _make_new(model: nn.Module, fresh: set[str]) -> None:
    """Give the parameters that came from no file a fresh start, each module by its own rule."""
    owners = {name.rpartition(".")[0] for name in fresh}
    for name, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if name not in owners or not any(tensor.is_meta for _, tensor in own):
            continue
        if half := [leaf for leaf, tensor in own if not tensor.is_meta]:
            raise CheckpointError(f"{name}: {half[0]} is there, the rest is not; a module is made new as a whole")
        module.to_empty(device="cpu", recurse=False)
        module.reset_parameters()


def save(model: Portrait, folder: str | Path, *, note: Mapping[str, Any] | None = None) -> None:
    """Write a whole network in our layout, with a note (the step, say). The folder appears when it is complete."""
    write_talkreel(Path(folder), model.config, model.state_dict(), note or {})


def export(network: Backbone, folder: str | Path) -> list[str]:
    """Write the CogVideoX in a denoiser or a reference network as diffusers has it.

    Returns the names of what that layout has no place for: the paper's parts.
    """
    return write_diffusers(Path(folder), network.config, network.state_dict())


def convert(source: str | Path, target: str | Path, layout: str, network: str = "denoiser") -> list[str]:
    """Write the weights at `source` in another layout. Returns the names that the layout has no place for."""
    checkpoint = read(source)
    if checkpoint.unexpected:
        raise CheckpointError(f"{source} has what this network does not:\n" + listed(checkpoint.unexpected))
    left = list(checkpoint.others)
    if layout == "talkreel":
        write_talkreel(Path(target), checkpoint.config, checkpoint.tensors, checkpoint.note)
    elif layout == "hallo3":
        write_hallo3(Path(target), checkpoint.config, checkpoint.tensors)
    else:
        prefix = f"{network}."
        part = {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}
        if not part:
            raise CheckpointError(f"{source} has no {network} network")
        left += [name for name in checkpoint.tensors if not name.startswith(prefix)]
        left += [prefix + name for name in write_diffusers(Path(target), checkpoint.config, part)]
    return left


def inspect(checkpoint: Checkpoint) -> str:
    """A checkpoint for people: layout, settings, and what is in it by module."""
    lines = [f"{checkpoint.path}: {checkpoint.layout} layout"]
    lines += [f"  {key}={value!r}" for key, value in flat(checkpoint.config).items()]
    sizes: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        sizes[module_of(name)] += tensor.numel()
        kinds.setdefault(module_of(name), set()).add(str(tensor.dtype).removeprefix("torch."))
    counts = by_module(checkpoint.tensors)
    lines.append(f"{len(checkpoint.tensors)} tensors, {sum(sizes.values()) / 1e6:.3f} M numbers")
    lines += [
        f"  {module}: {counts[module]} tensors, {size / 1e6:.3f} M, {'/'.join(sorted(kinds[module]))}"
        for module, size in sizes.items()
    ]
    if checkpoint.unexpected:
        lines.append(f"{len(checkpoint.unexpected)} with no place in this network:\n" + listed(checkpoint.unexpected))
    if checkpoint.others:
        lines.append(f"{len(checkpoint.others)} of other networks, or without effect:\n" + listed(checkpoint.others))
    if checkpoint.note:
        lines.append("note: " + json.dumps(dict(checkpoint.note)))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python model/checkpoint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("inspect", "convert"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", help="convert: a folder that is not there yet")
    parser.add_argument("--layout", choices=LAYOUTS, default="talkreel", help="convert: what to write")
    parser.add_argument(
        "--network", choices=("denoiser", "reference"), default="denoiser", help="to diffusers: which of the two"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "inspect":
            print(inspect(read(options.source)))
            return 0
        if options.target is None:
            parser.error("convert needs a TARGET")
        left = convert(options.source, options.target, options.layout, options.network)
        print(f"{options.target}: written, {options.layout} layout")
        if left:
            print(f"left behind, for it has no place in this layout ({len(left)} tensors):\n{listed(left)}")
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
