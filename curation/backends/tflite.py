"""Networks out of TFLite files, as ONNX, which onnxruntime runs: those of `face_landmarker.task`.

Numbers of fields and codes below are those of TensorFlow's lite/schema/schema.fbs and of ONNX's onnx.proto. Weights of
16 bits become 32. TFLite keeps pictures as height, width, channel and ONNX as channel, height, width: every
convolution is put between two transpositions, and onnxruntime takes out those that meet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime

from curation.backends.flatbuffer import NOTHING, Table
from model.protobuf import message

TYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    2: np.dtype(np.int32),
    4: np.dtype(np.int64),
}
"""TensorType."""
ELEMENTS = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}
"""TensorProto.DataType."""
OPSET = 13
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
FUSED = {0: None, 1: "Relu"}
"""ActivationFunctionType."""
PADDINGS = {0: "SAME_UPPER", 1: "VALID"}


def onnx(model: bytes) -> bytes:
    """The network of a TFLite file as an ONNX file; inputs and outputs keep their order and shape.

    Raises ValueError when it is no TFLite file, or has an operator that is not known here.
    """
    if model[4:8] != b"TFL3":
        raise ValueError("not a TFLite file")
    root = Table(model, struct.unpack_from("<I", model)[0])
    [graph] = root.tables(2)
    return _Builder(root, graph).built()


def network(model: bytes, threads: int = 1) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The network of a TFLite file, ready to run: its one input to its outputs. threads: of the computation.

    Raises ValueError as `onnx` does.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(onnx(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})


class _Builder:
    """Writes one graph. Values have the number of their tensor for a name; what lies between gets a new one."""

    def __init__(self, root: Table, graph: Table) -> None:
        self.codes = [max(code.number(0, "b"), code.number(3, "i")) for code in root.tables(1)]
        self.buffers = root.tables(4)
        self.graph, self.tensors = graph, graph.tables(0)
        self.constants: dict[int, np.ndarray] = {}
        self.nodes: list[bytes] = []
        self.kept: list[bytes] = []
        for index, tensor in enumerate(self.tensors):
            content = self.buffers[tensor.number(2, "I")].array(0, np.uint8)
            if len(content) and (kind := TYPES.get(tensor.number(1, "b"))) is not None:
                self.constants[index] = content.view(kind).reshape(self.shape(index))

    def built(self) -> bytes:
        for operator in self.graph.tables(3):
            self.add(operator)
        inputs = [self._described(int(index)) for index in self.graph.array(1, np.int32)]
        outputs = [self._described(int(index)) for index in self.graph.array(2, np.int32)]
        parts = [(1, node) for node in self.nodes] + [(2, "g")] + [(5, tensor) for tensor in self.kept]
        graph = message(*parts, *((11, value) for value in inputs), *((12, value) for value in outputs))
        return message((1, 8), (8, message((1, ""), (2, OPSET))), (7, graph))

    def add(self, operator: Table) -> None:
        code = self.codes[operator.number(0, "I")]
        inputs = [int(index) for index in operator.array(1, np.int32)]
        [output] = [int(index) for index in operator.array(2, np.int32)]
        options = operator.table(4) if operator.number(3, "B") else NOTHING
        if code == DEQUANTIZE and inputs[0] in self.constants:
            self.constants[output] = self.constants[inputs[0]].astype(np.float32)
            return
        if code not in OPERATORS:
            raise ValueError(f"operator {code} of TFLite is not known here")
        OPERATORS[code](self, inputs, output, options)

    def shape(self, tensor: int) -> list[int]:
        return self.tensors[tensor].array(0, np.int32).tolist()

    def name(self, tensor: int) -> str:
        """The value of a tensor, which is written down if it is a constant."""
        if tensor in self.constants:
            return self.keep(self.constants[tensor])
        return str(tensor)

    def keep(self, array: np.ndarray) -> str:
        """A constant."""
        name = f"c{len(self.kept)}"
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        sizes = [(1, size) for size in array.shape]
        self.kept.append(message(*sizes, (2, ELEMENTS[array.dtype]), (8, name), (9, array.tobytes())))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: int | None = None, **attributes: Any) -> str:
        """An operator of ONNX; its value has the tensor's name, or a new one."""
        name = f"n{len(self.nodes)}" if output is None else str(output)
        parts: list[tuple[int, Any]] = [(1, value) for value in inputs] + [(2, name), (4, kind)]
        parts += [(5, _attribute(key, value)) for key, value in attributes.items()]
        self.nodes.append(message(*parts))
        return name

    def active(self, kind: str, inputs: Sequence[str], output: int, fused: int, **attributes: Any) -> None:
        """An operator and the activation that TFLite has fused into it."""
        if fused not in FUSED:
            raise ValueError(f"activation {fused} of TFLite is not known here")
        after = FUSED[fused]
        value = self.node(kind, inputs, None if after else output, **attributes)
        if after:
            self.node(after, [value], output)

    def turned(self, value: str, order: Sequence[int], output: int | None = None) -> str:
        return self.node("Transpose", [value], output, perm=list(order))

    def _described(self, tensor: int) -> bytes:
        sizes = message(*((1, message((1, size))) for size in self.shape(tensor)))
        return message((1, str(tensor)), (2, message((1, message((1, 1), (2, sizes))))))


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return message((1, name), (4, value), (20, 3))
    if isinstance(value, list):
        return message((1, name), *((8, int(item)) for item in value), (20, 7))
    return message((1, name), (3, int(value)), (20, 2))


# --- operators ------------------------------------------------------------------------------------------------

Convert = Callable[[_Builder, list[int], int, Table], None]


def _convolution(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    """CONV_2D; weights: output, height, width, input."""
    picture, weights, *bias = inputs
    if 1 in build.shape(picture)[1:3] and build.constants[weights].shape[1:3] == (1, 1):
        return _linear(build, inputs, output, options, fused=3)  # no picture but a row
    kernel = build.constants[weights].transpose(0, 3, 1, 2)
    _pictured(build, "Conv", picture, [kernel, *(build.constants[b] for b in bias)], output, options, 3, (4, 5))


def _depthwise(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    """DEPTHWISE_CONV_2D; weights: 1, height, width, channel."""
    picture, weights, *bias = inputs
    kernel = build.constants[weights].transpose(3, 0, 1, 2)
    constants = [kernel, *(build.constants[b] for b in bias)]
    group = build.shape(picture)[3]
    _pictured(build, "Conv", picture, constants, output, options, 4, (5, 6), group=group)


def _largest(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    """MAX_POOL_2D."""
    kernel = [options.number(4, "i"), options.number(3, "i")]
    _pictured(build, "MaxPool", inputs[0], [], output, options, 5, None, kernel_shape=kernel)


def _pictured(
    build: _Builder,
    kind: str,
    picture: int,
    constants: list[np.ndarray],
    output: int,
    options: Table,
    fused: int,
    dilations: tuple[int, int] | None,
    **attributes: Any,
) -> None:
    """An operator that ONNX has for channel, height, width. fused, dilations (x, y): fields of the options."""
    attributes |= {"auto_pad": PADDINGS[options.number(0, "b")]}
    attributes |= {"strides": [options.number(2, "i"), options.number(1, "i")]}
    if dilations:
        attributes["dilations"] = [options.number(dilations[1], "i", 1), options.number(dilations[0], "i", 1)]
    values = [build.turned(build.name(picture), TO_NCHW), *(build.keep(array) for array in constants)]
    result = build.node(kind, values, **attributes)
    after = FUSED[options.number(fused, "b")]
    build.turned(build.node(after, [result]) if after else result, TO_NHWC, output)


def _linear(build: _Builder, inputs: list[int], output: int, options: Table, fused: int = 0) -> None:
    """A product with a matrix of weights (output, 1, 1, input), of each place of a row. fused: field of the options."""
    values, weights, bias = inputs
    matrix = build.constants[weights].reshape(-1, build.shape(weights)[-1]).T
    product = build.node("MatMul", [build.name(values), build.keep(matrix)])
    build.active("Add", [product, build.name(bias)], output, options.number(fused, "b"))


def _elementwise(kind: str) -> Convert:
    def convert(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
        build.active(kind, [build.name(index) for index in inputs], output, options.number(0, "b"))

    return convert


def _plain(kind: str) -> Convert:
    def convert(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
        build.node(kind, [build.name(index) for index in inputs], output)

    return convert


def _bent(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    """PRELU: a x + (1 - a) relu(x), by channel.

    As convolutions, which stay in the layout that onnxruntime is fast in; its PRelu does not, and takes longer than
    all the rest.
    """
    picture = build.turned(build.name(inputs[0]), TO_NCHW)
    slopes_C = build.constants[inputs[1]].reshape(-1).astype(np.float32)

    def times(value: str, factors_C: np.ndarray) -> str:
        return build.node("Conv", [value, build.keep(factors_C.reshape(-1, 1, 1, 1))], group=len(factors_C))

    if (slopes_C <= 1).all():
        above = build.node("Relu", [times(picture, 1 - slopes_C)])
    else:
        above = times(build.node("Relu", [picture]), 1 - slopes_C)
    build.turned(build.node("Add", [times(picture, slopes_C), above]), TO_NHWC, output)


def _squared_difference(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    difference = build.node("Sub", [build.name(index) for index in inputs])
    build.node("Mul", [difference, difference], output)


def _reciprocal_root(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    build.node("Reciprocal", [build.node("Sqrt", [build.name(inputs[0])])], output)


def _reshape(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    build.node("Reshape", [build.name(inputs[0]), build.keep(np.array(build.shape(output)))], output)


def _transpose(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    build.turned(build.name(inputs[0]), build.constants[inputs[1]].tolist(), output)


def _pad(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    """Zeros; pads: of each axis those before and after. Of channels: as a convolution, like PRELU."""
    pads_A2 = build.constants[inputs[1]]
    if len(pads_A2) == 4 and not pads_A2[:3].any():
        channels = build.shape(inputs[0])[3]
        kernel = np.pad(np.eye(channels, dtype=np.float32), [pads_A2[3], (0, 0)])[..., None, None]
        wider = build.node("Conv", [build.turned(build.name(inputs[0]), TO_NCHW), build.keep(kernel)])
        build.turned(wider, TO_NHWC, output)
    else:
        build.node("Pad", [build.name(inputs[0]), build.keep(pads_A2.T.reshape(-1))], output)


def _join(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    build.active("Concat", [build.name(i) for i in inputs], output, options.number(1, "b"), axis=options.number(0, "i"))


def _mean(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    axes = np.atleast_1d(build.constants[inputs[1]]).tolist()
    build.node("ReduceMean", [build.name(inputs[0])], output, axes=axes, keepdims=options.number(0, "?"))


def _sum(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    axes = build.keep(np.atleast_1d(build.constants[inputs[1]]))
    build.node("ReduceSum", [build.name(inputs[0]), axes], output, keepdims=options.number(0, "?"))


def _slice(build: _Builder, inputs: list[int], output: int, options: Table) -> None:
    """STRIDED_SLICE; bits of the first two options: axes taken from their beginning, and to their end."""
    begins, ends, steps = (build.constants[index].tolist() for index in inputs[1:])
    whole = np.iinfo(np.int64).max
    begins = [0 if options.number(0, "i") >> axis & 1 else begin for axis, begin in enumerate(begins)]
    ends = [whole if options.number(1, "i") >> axis & 1 else end for axis, end in enumerate(ends)]
    bounds = [build.keep(np.array(values)) for values in (begins, ends, range(len(begins)), steps)]
    part = build.node("Slice", [build.name(inputs[0]), *bounds])
    build.node("Reshape", [part, build.keep(np.array(build.shape(output)))], output)


DEQUANTIZE = 6
OPERATORS: dict[int, Convert] = {
    0: _elementwise("Add"),
    2: _join,
    3: _convolution,
    4: _depthwise,
    14: _plain("Sigmoid"),
    17: _largest,
    18: _elementwise("Mul"),
    22: _reshape,
    34: _pad,
    39: _transpose,
    40: _mean,
    41: _elementwise("Sub"),
    42: _elementwise("Div"),
    45: _slice,
    54: _bent,
    59: _plain("Neg"),
    74: _sum,
    75: _plain("Sqrt"),
    76: _reciprocal_root,
    99: _squared_difference,
}
"""By BuiltinOperator; the shapes of a reshape are its output's."""
