"""A checkpoint on disk: a folder with a file of each rank, which holds its rows of tensors, and a table of contents.

  step-00001000/state.json                what this is, and whatever was handed in to be kept with it
  step-00001000/part-00000.safetensors    rows of tensors; its metadata says which

Any number of ranks reads what any other number wrote: files are mapped, and only the rows asked for are touched.
Nothing in it is code or can run any.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.shares import Share

CONTENTS = "state.json"
_FORMAT = "talkreel-state"
_VERSION = 1
_HINT = "remove this folder, and training goes on from the checkpoint before"


class StateError(Exception):
    """A checkpoint cannot be written, read, or does not fit: which, why, what to do."""


def write_part(folder: Path, number: int, shares: Mapping[str, Share]) -> None:
    """Write a rank's shares. Raises OSError or SafetensorError where they cannot be written, or reach no disk."""
    places = {name: [share.rows.start, list(share.shape)] for name, share in shares.items()}
    file = _part(folder, number)
    tensors = {name: share.values.cpu().contiguous() for name, share in shares.items()}
    save_file(tensors, file, {"places": json.dumps(places)})
    to_disk(file)


def write_contents(folder: Path, parts: int, contents: Mapping[str, Any]) -> None:
    """Write the table of contents, of a checkpoint of so many parts. Raises OSError."""
    file = folder / CONTENTS
    kept = {"format": _FORMAT, "version": _VERSION, "parts": parts, **contents}
    file.write_text(json.dumps(kept, indent=2) + "\n")
    to_disk(file)


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot say it of a folder
            raise
    finally:
        os.close(handle)


class Saved:
    """A checkpoint to read from; `shapes`: its tensors' whole shapes.

    Raises StateError where it is not there, not whole, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents = _contents(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[tuple[range, Any]]] = {}  # rows and the file they are in, in order
        for number in range(self.contents["parts"]):
            self._open(_part(folder, number))
        for name, shape in self.shapes.items():
            pieces = self._pieces.setdefault(name, [])
            pieces.sort(key=lambda piece: piece[0].start)
            ends = [0, *(rows.stop for rows, _ in pieces)]
            if [rows.start for rows, _ in pieces] != ends[:-1] or ends[-1] != (shape[0] if shape else 1):
                raise StateError(f"{folder}: the rows of {name} are not all there, or some are there twice; {_HINT}")

    def _open(self, file: Path) -> None:
        try:
            part = safe_open(file, framework="pt")
            places = json.loads(part.metadata()["places"])
            if set(places) != set(part.keys()):
                raise ValueError("its table names other tensors than it holds")
            for name, (start, whole) in places.items():
                shape, held = tuple(whole), part.get_slice(name).get_shape()
                if tuple(held[1:]) != shape[1:] or self.shapes.setdefault(name, shape) != shape:
                    raise ValueError(f"{name} is {held} of {whole}")
                if count := held[0] if held else 1:
                    self._pieces.setdefault(name, []).append((range(start, start + count), part))
        except FileNotFoundError:
            raise StateError(f"{file}: no such file; {_HINT}") from None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise StateError(f"{file}: damaged: {error}; {_HINT}") from error

    def rows(self, name: str, wanted: range) -> torch.Tensor:
        """These rows of a tensor; of one without dimensions the whole. They are a copy."""
        pieces = self._pieces[name]
        if not self.shapes[name]:
            return pieces[0][1].get_tensor(name).clone()
        found = [
            part.get_slice(name)[max(wanted.start, rows.start) - rows.start : min(wanted.stop, rows.stop) - rows.start]
            for rows, part in pieces
            if rows.start < wanted.stop and wanted.start < rows.stop
        ]
        return torch.cat(found) if found else torch.empty(0, *self.shapes[name][1:])

    def whole(self, name: str) -> torch.Tensor:
        """All rows of a tensor."""
        shape = self.shapes[name]
        return self.rows(name, range(shape[0] if shape else 1))


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.safetensors"


def _contents(folder: Path) -> dict[str, Any]:
    file = folder / CONTENTS
    try:
        contents = json.loads(file.read_text())
        if contents["format"] != _FORMAT or not isinstance(contents["parts"], int):
            raise ValueError("not a state of training")
        if contents["version"] > _VERSION:
            raise ValueError(f"of version {contents['version']}; this program reads {_VERSION}: take a newer one")
    except FileNotFoundError:
        raise StateError(f"{folder}: no checkpoint of training, for it has no {CONTENTS}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{file}: not readable: {error}; {_HINT}") from error
    return contents
