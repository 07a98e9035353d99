"""Separators in the format of MDX-Net, written on the spot: networks of one or two operators of ONNX."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.protobuf import message

# Fields and kinds of onnx/onnx.proto. A node: (operator, inputs, output, attributes of whole numbers).
Node = tuple[str, Sequence[str], str, dict[str, int | list[int]]]
FLOAT, INT, INTS = 1, 2, 7
SHAPE = ("n", 4, 3072, 256)
"""What Kim_Vocal_2 takes and gives."""
BOTH, NEITHER, LEFT, RIGHT = (1, 1, 1, 1), (0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1)


def written(
    file: Path,
    nodes: Sequence[Node],
    taken: Sequence[int | str] = SHAPE,
    given: Sequence[int | str] | None = None,
    **constants: np.ndarray,
) -> Path:
    """A network from "input" to "output"; constants: float32, by the name that nodes call them by."""
    graph = [
        *((1, _node(*node)) for node in nodes),
        (2, "graph"),
        *((5, _constant(name, array)) for name, array in constants.items()),
        (11, _value("input", taken)),
        (12, _value("output", taken if given is None else given)),
    ]
    file.write_bytes(message((1, 8), (8, message((1, ""), (2, 13))), (7, message(*graph))))
    return file


def scaled(file: Path, planes: Sequence[float] = BOTH, shape: Sequence[int | str] = SHAPE) -> Path:
    """A network that multiplies each of the four planes by a number."""
    factors = np.array(planes, np.float32).reshape(1, 4, 1, 1)
    return written(file, [("Mul", ["input", "factors"], "output", {})], shape, factors=factors)


def rectified(file: Path, shape: Sequence[int | str] = SHAPE) -> Path:
    """A network that sets what is negative to zero: not linear, so what is put in twice shows."""
    return written(file, [("Relu", ["input"], "output", {})], shape)


def blurred(file: Path, frames: int, shape: Sequence[int | str] = SHAPE) -> Path:
    """A network that takes the mean of each frame and of so many on either side."""
    sizes: dict[str, int | list[int]] = {"kernel_shape": [1, 2 * frames + 1], "pads": [0, frames, 0, frames]}
    return written(file, [("AveragePool", ["input"], "output", {**sizes, "count_include_pad": 1})], shape)


def _node(kind: str, inputs: Sequence[str], output: str, attributes: dict[str, int | list[int]]) -> bytes:
    parts = [*((1, name) for name in inputs), (2, output), (4, kind)]
    return message(*parts, *((5, _attribute(name, value)) for name, value in attributes.items()))


def _attribute(name: str, value: int | list[int]) -> bytes:
    if isinstance(value, int):
        return message((1, name), (3, value), (20, INT))
    return message((1, name), *((8, number) for number in value), (20, INTS))


def _constant(name: str, array: np.ndarray) -> bytes:
    numbers = struct.pack(f"<{array.size}f", *array.ravel())
    return message(*((1, size) for size in array.shape), (2, FLOAT), (8, name), (9, numbers))


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    sizes = message(*((1, message((1 if isinstance(size, int) else 2, size))) for size in shape))
    return message((1, name), (2, message((1, message((1, FLOAT), (2, sizes))))))
