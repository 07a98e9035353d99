"""Three layouts of weights on disk: CogVideoX's (diffusers), Hallo3's published one, and our own; read and written.

Files are mapped into memory and no file's code is run.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model import cogvideox_layout, hallo3, safetensor_shards
from model.config import ModelConfig, flat, from_flat
from model.portrait import build
from model.safetensor_shards import ShardError
from model.settings import SettingsError

LAYOUTS = ("talkreel", "diffusers", "hallo3")
_HALLO3_FILE = "mp_rank_00_model_states.pt"
_STEM = "model"
_FORMAT = "talkreel-portrait"


class CheckpointError(Exception):
    """Weights cannot be read or do not fit: which, where, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they lie in a file, under the names of a Portrait."""

    layout: str
    path: Path
    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]
    unexpected: tuple[str, ...] = ()  # names of the file that this network has no place for
    others: tuple[str, ...] = ()  # names of the file that belong to other networks, or have no effect
    note: Mapping[str, Any] = field(default_factory=dict)  # what was written with it


def read(source: str | Path) -> Checkpoint:
    """The weights at `source`, mapped. Raises CheckpointError."""
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if (file := _hallo3_file(path)) is not None:
        return _read_hallo3(file)
    for folder in (path, path / "transformer"):
        if (folder / "config.json").is_file():
            try:
                config = json.loads((folder / "config.json").read_text())
                if config.get("_class_name") == cogvideox_layout.CLASS:
                    return _read_diffusers(folder, config)
                if config.get("format") == _FORMAT:
                    tensors, settings = safetensor_shards.read(folder, _STEM), from_flat(config["model"])
                    return Checkpoint("talkreel", folder, settings, tensors, note=config.get("note", {}))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SettingsError) as error:
                raise CheckpointError(f"{folder / 'config.json'}: not a network of this kind: {error}") from error
            except ShardError as error:
                raise CheckpointError(str(error)) from error
    raise CheckpointError(
        f"{path}: expected a config.json of {cogvideox_layout.CLASS} or of ours, or {_HALLO3_FILE}; it has neither"
    )


def _hallo3_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix in (".pt", ".pth", ".bin") else None
    return next((file for file in (path / _HALLO3_FILE, path / "1" / _HALLO3_FILE) if file.is_file()), None)


def _read_hallo3(file: Path) -> Checkpoint:
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        published = content.get("module", content)
        config = hallo3.config_of(published)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: holds more than tensors, and is not opened: {error}") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{file}: not readable as a torch file ({error}); it may be cut off") from error
    except (KeyError, ValueError, TypeError, AttributeError, SettingsError) as error:
        raise CheckpointError(f"{file}: not a Hallo3 checkpoint: {error}") from error
    names = list(build(config, "meta").state_dict())
    unexpected = hallo3.unread(published, names)
    used = {hallo3.source_of(name).name for name in names} | set(unexpected)
    others = tuple(name for name in published if name not in used)
    return Checkpoint("hallo3", file, config, hallo3.read(published, names), tuple(unexpected), others)


def _read_diffusers(folder: Path, published: Mapping[str, Any]) -> Checkpoint:
    config = cogvideox_layout.config_of(published)
    tensors = safetensor_shards.read(folder, cogvideox_layout.STEM)
    return Checkpoint("diffusers", folder, config, {f"denoiser.{name}": value for name, value in tensors.items()})


def write_talkreel(
    folder: Path, config: ModelConfig, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]
) -> None:
    """Our layout: config.json with all settings, and safetensors. The folder appears when it is complete."""
    _write(folder, {"format": _FORMAT, "version": 1, "model": flat(config), "note": dict(note)}, _STEM, tensors)


def write_diffusers(folder: Path, config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """diffusers' layout of one network (names without `denoiser.`). Returns the names it has no place for."""
    known = set(build(config.backbone(), "meta").denoiser.state_dict())
    backbone = {name: tensor for name, tensor in tensors.items() if name in known}
    if absent := sorted(known - set(backbone)):
        raise CheckpointError(f"{folder}: nothing to write for\n" + listed(absent))
    _write(folder, cogvideox_layout.published_of(config), cogvideox_layout.STEM, backbone)
    return [name for name in tensors if name not in known]


def write_hallo3(folder: Path, config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """The published layout, 1/mp_rank_00_model_states.pt, with the tables the released code's loading asks for."""
    try:
        published = hallo3.write(tensors)
    except KeyError as error:
        raise CheckpointError(f"Hallo3's layout has no place for {error.args[0]}; is it compat=hallo3?") from error
    for ours, theirs in hallo3.NETWORKS.items():
        if any(name.startswith(ours) for name in tensors):
            published |= hallo3.idle(config, theirs)
    part = _fresh_folder(folder)
    (part / "1").mkdir()
    torch.save({"module": published}, part / "1" / _HALLO3_FILE)
    part.rename(folder)


def _write(folder: Path, config: Mapping[str, Any], stem: str, tensors: Mapping[str, torch.Tensor]) -> None:
    part = _fresh_folder(folder)
    (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    safetensor_shards.write(part, stem, tensors)
    part.rename(folder)


def _fresh_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, to be renamed to it when all is written."""
    if folder.exists():
        raise CheckpointError(f"{folder} is there already; name a new folder, or remove it first")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def by_module(names: Iterable[str]) -> Counter[str]:
    """Names counted by module, all blocks of a network as one."""
    return Counter(module_of(name) for name in names)


def module_of(name: str) -> str:
    """`transformer_blocks.*.attn1.to_q` of `transformer_blocks.3.attn1.to_q.weight`."""
    return re.sub(r"(transformer_blocks|layers|adaLN_modulations)\.\d+\.", r"\1.*.", name).rpartition(".")[0] or name


def listed(names: Iterable[str], most: int = 100) -> str:
    """Names by module, for people."""
    counted = list(by_module(names).items())
    lines = [f"  {module}: {count} tensor{'s' * (count > 1)}" for module, count in counted[:most]]
    return "\n".join(lines + ([f"  … and {len(counted) - most} modules more"] if len(counted) > most else []))
