"""A folder of tensors as safetensors files with an index, as the hub has them: mapped into memory, not read.

<stem>.safetensors, or <stem>-00001-of-00003.safetensors … and <stem>.safetensors.index.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

SHARD_BYTES = 5 * 1000**3


class ShardError(Exception):
    """A folder of tensors cannot be read: which file, and why."""


def read(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """Every tensor of a folder. They are views of the mapped files: memory is taken as they are used.

    Raises ShardError when a file is missing, cut off, or not what the index says.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return _mapped(folder / f"{stem}.safetensors")
    try:
        places = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{index}: not an index of safetensors: {error!r}") from error
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ShardError(f"{index}: {name!r} is not a file of this folder")
        tensors.update(_mapped(folder / name))
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise ShardError(f"{folder}: {len(missing)} tensors of the index are in no file, {missing[0]} for one")
    return tensors


def write(folder: Path, stem: str, tensors: Mapping[str, torch.Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as files of at most `shard_bytes`, in order; with an index when there are several."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().contiguous()
        size += tensor.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [f"{stem}.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, {"format": "pt"})
    if len(shards) > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise ShardError(f"{file}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise ShardError(f"{file}: not readable as safetensors ({error}); it may be cut off: fetch it again") from error
