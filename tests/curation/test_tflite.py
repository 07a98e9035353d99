"""What a TFLite file holds is read, and what is not known in it is refused by name."""

from __future__ import annotations

import struct
import zipfile

import cv2
import numpy as np
import onnxruntime
import pytest

from curation.backends import tflite
from curation.backends.flatbuffer import Table
from model import weights


@pytest.fixture(scope="module")
def networks() -> dict[str, bytes]:
    """Those of the face landmarker that are used."""
    with zipfile.ZipFile(weights.path("face-landmarker")) as bundle:
        return {name: bundle.read(name) for name in ("face_landmarks_detector.tflite", "face_blendshapes.tflite")}


def test_inputs_and_outputs_keep_their_shapes(networks) -> None:
    shapes = {
        "face_landmarks_detector.tflite": ([1, 256, 256, 3], [[1, 1, 1, 1434], [1, 1, 1, 1], [1, 1]]),
        "face_blendshapes.tflite": ([1, 146, 2], [[52]]),
    }
    for name, (taken, given) in shapes.items():
        run = tflite.network(networks[name])
        assert [list(array.shape) for array in run(np.zeros(taken, np.float32))] == given


def test_the_networks_give_what_opencv_gives_which_reads_such_files_itself(networks) -> None:
    for name, size in (("face_landmarks_detector.tflite", (1, 256, 256, 3)), ("face_blendshapes.tflite", (1, 146, 2))):
        values = np.random.default_rng(0).random(size).astype(np.float32)
        theirs = cv2.dnn.readNetFromTFLite(np.frombuffer(networks[name], np.uint8))
        theirs.setInput(values.transpose(0, 3, 1, 2) if len(size) == 4 else values)
        expected = theirs.forward(theirs.getUnconnectedOutLayersNames())
        found = {array.size: array for array in tflite.network(networks[name])(values)}
        assert expected
        for array in expected:
            assert found[array.size].ravel() == pytest.approx(array.ravel(), rel=1e-4, abs=1e-3)


def test_the_transpositions_between_the_convolutions_are_taken_out(networks, tmp_path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = tflite.onnx(networks["face_landmarks_detector.tflite"])
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    written = model.count(b"Transpose"), (tmp_path / "optimised.onnx").read_bytes().count(b"\x22\x09Transpose")
    assert written[0] > 100 and written[1] <= 4


def test_another_file_is_refused() -> None:
    for content in (b"", b"PK\x03\x04 no network", bytes(100)):
        with pytest.raises(ValueError, match="not a TFLite file"):
            tflite.onnx(content)


def test_an_operator_that_is_not_known_is_refused_by_its_number(networks, monkeypatch) -> None:
    monkeypatch.delitem(tflite.OPERATORS, 54)
    with pytest.raises(ValueError, match="operator 54 of TFLite is not known here"):
        tflite.onnx(networks["face_landmarks_detector.tflite"])


def test_a_table_has_its_fields_and_the_defaults_of_those_it_lacks() -> None:
    # A table with three fields: a byte 7, nothing, and a vector of two 32-bit numbers.
    offsets = struct.pack("<5H", 10, 12, 4, 0, 8)
    data = offsets + b"\0\0" + struct.pack("<i", 12) + struct.pack("<b3xI", 7, 4) + struct.pack("<I2i", 2, 30, -4)
    table = Table(data, 12)
    assert table.number(0, "b") == 7
    assert table.number(1, "i", 5) == 5 and table.number(9, "i", -1) == -1
    assert table.array(2, np.int32).tolist() == [30, -4]
    assert table.array(1, np.int32).tolist() == []
