"""Who a face is: a picture and five points of the face in it -> a vector that tells people apart.

The five points, (x, y) in pixels: centres of the subject's right and left eye, tip of the nose, right and left corner
of the mouth. Face detectors give them so; `five_points` takes them from MediaPipe's mesh. They set the face upright.
Vectors are as the networks give them, not of unit length.

B: faces. H, W, C: height, width, channels of a picture. P: point.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

_EYES, _NOSE, _MOUTH = ((33, 133), (362, 263)), 4, (61, 291)  # corners, tip, corners in MediaPipe's mesh
_FINEST = 16  # most a picture is shrunk by when a face is cut out: a face of 1500 pixels


class FaceEncoder(Protocol):
    """Turns a face into a vector.

    size: its length. same: cosine similarity from which on two faces are rather one person's than two people's.
    """

    size: int
    same: float

    def __call__(self, image_HWC: np.ndarray, points_P2: np.ndarray) -> np.ndarray:
        """The vector of one face, float32 [size]; NaN where the points are not known.

        image_HWC: uint8 RGB. points_P2: the five points [5, 2].
        """
        ...


def five_points(mesh_P3: np.ndarray) -> np.ndarray:
    """The five points [5, 2] of a face whose mesh of MediaPipe is known: [468 or 478, 2 or 3]."""
    eyes = [mesh_P3[list(corners), :2].mean(axis=0) for corners in _EYES]
    return np.stack([*eyes, mesh_P3[_NOSE, :2], *mesh_P3[list(_MOUTH), :2]])


def similarity(points_P2: np.ndarray, places_P2: np.ndarray) -> np.ndarray:
    """The turn, scale and shift [2, 3] that bring points closest to their places, by least squares.

    NaN where the points are not known or all the same.
    """
    points, places = points_P2 @ [1, 1j], places_P2 @ [1, 1j]  # in the complex plane, turn and scale are one number
    spread = points - points.mean()
    energy = np.vdot(spread, spread).real
    turn = np.vdot(spread, places) / energy if energy > 0 else np.nan
    shift = places.mean() - turn * points.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


class DlibFace:
    """dlib's face recognition network: 128 numbers, 13 ms a face on one core.

    Its users call two faces one person when they lie at most 0.6 apart; these vectors are about 1.5 long and all
    have much in common, so that this is a cosine of 0.92, and two strangers' is 0.83.
    """

    size = 128
    same = 0.92
    SIDE = 150
    # Where dlib's own alignment (get_face_chip, five other points, padding 0.25) puts these points: means of
    # MediaPipe's on 207 frontal and three-quarter faces.
    PLACES = np.array([[48.7, 47.2], [99.5, 47.9], [76.8, 74.2], [51.4, 105.2], [95.8, 105.7]])
    MEAN = (122.782, 117.001, 104.298)

    def __init__(self, model: Path) -> None:
        """model: `dlib_face_recognition_resnet_model_v1.dat`. Raises ValueError for another file."""
        self.network = DlibResNet()
        self.network.load(model)
        self.network.eval()

    def __call__(self, image_HWC: np.ndarray, points_P2: np.ndarray) -> np.ndarray:
        """The vector of one face, float32 [128]; NaN where the points are not known. See FaceEncoder."""
        matrix = similarity(points_P2, self.PLACES)
        if not np.isfinite(matrix).all():
            return np.full(self.size, np.nan, np.float32)
        return self.embed(_shrunk(image_HWC, matrix, self.SIDE)[None])[0]

    def embed(self, chips_BHWC: np.ndarray) -> np.ndarray:
        """Vectors [B, 128] of upright faces, uint8 RGB [B, 150, 150, 3]."""
        x_BHWC = (torch.from_numpy(chips_BHWC).float() - torch.tensor(self.MEAN)) / 256
        with torch.inference_mode():
            return self.network(x_BHWC.permute(0, 3, 1, 2)).numpy()


class InsightFace:
    """An ArcFace network of InsightFace's packs (1801.07698), which run in onnxruntime: 512 numbers.

    The face is cut out and scaled exactly as the package `insightface` does, which is not needed.
    """

    FILE = "w600k_r50.onnx"
    SIDE = 112
    PLACES = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    )

    def __init__(self, model: Path, same: float = 0.4, threads: int = 1) -> None:
        """model: the folder of an unpacked `buffalo_l`, or an ONNX file [n, 3, 112, 112] -> [n, size].

        same: see FaceEncoder; the default is usual for such networks, not measured on this one. threads: of the
        computation. Raises FileNotFoundError, or ValueError for a network of another shape.
        """
        file = model / self.FILE if model.is_dir() else model
        if not file.is_file():
            raise FileNotFoundError(f"no face network at {file}: unpack InsightFace's buffalo_l and name its folder")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # its errors are raised
        try:
            self._network = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each of its reasons, and no common one
            raise ValueError(f"{file}: no network that onnxruntime can run: {str(error).splitlines()[0]}") from error
        (picture, *more), (vector, *_) = self._network.get_inputs(), self._network.get_outputs()
        if more or picture.shape[1:] != [3, self.SIDE, self.SIDE] or len(vector.shape) != 2:
            raise ValueError(f"{file} is no ArcFace network: it makes {vector.shape} of {picture.shape}")
        self._input = picture.name
        self.size: int = vector.shape[1]
        self.same = same

    def __call__(self, image_HWC: np.ndarray, points_P2: np.ndarray) -> np.ndarray:
        """The vector of one face, float32 [size]; NaN where the points are not known. See FaceEncoder."""
        matrix = similarity(points_P2, self.PLACES)
        if not np.isfinite(matrix).all():
            return np.full(self.size, np.nan, np.float32)
        chip_HWC = cv2.warpAffine(image_HWC, matrix, (self.SIDE, self.SIDE))
        picture_BCHW = (chip_HWC.transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 127.5
        return self._network.run(None, {self._input: picture_BCHW})[0][0]


def _shrunk(image_HWC: np.ndarray, matrix_23: np.ndarray, side: int) -> np.ndarray:
    """The square [side, side, C] that a similarity cuts out; a large face is averaged, not sampled, as dlib does."""
    finer = int(np.clip(round(1 / math.hypot(*matrix_23[:, 0])), 1, _FINEST))
    # Pixels are counted by their centres: half a pixel before the first lies the edge, which is to stay.
    matrix_23 = finer * matrix_23 + [[0, 0, (finer - 1) / 2]]
    chip_HWC = cv2.warpAffine(image_HWC, matrix_23, (finer * side, finer * side))
    return cv2.resize(chip_HWC, (side, side), interpolation=cv2.INTER_AREA)


class DlibResNet(nn.Module):
    """The 29-layer residual network of dlib's dnn_face_recognition_ex.cpp, trained with a metric loss.

    dlib scales and shifts each convolution's output by fixed numbers; they are multiplied into it on loading.
    """

    WIDTHS = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256)
    HALVING = (3, 7, 10, 13)
    """Blocks that halve height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, self.WIDTHS[0], 7, stride=2)
        channels = (self.WIDTHS[0], *self.WIDTHS)
        self.blocks = nn.Sequential(
            *(DlibBlock(channels[n], width, n in self.HALVING) for n, width in enumerate(self.WIDTHS))
        )
        self.head = nn.Linear(self.WIDTHS[-1], DlibFace.size, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Upright faces [B, 3, 150, 150], RGB, mean colour removed, over 256 -> [B, 128]."""
        x_BCHW = F.max_pool2d(F.relu(self.stem(x_BCHW)), 3, stride=2)
        return self.head(self.blocks(x_BCHW).mean(dim=(2, 3)))

    @torch.no_grad()
    def load(self, model: Path) -> None:
        """Take the weights from dlib's own file. Raises ValueError when it is not of this network."""
        stored = _Stored(model)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                filters, bias = stored.take(layer.weight.numel() + layer.out_channels, 1, 1, 1).split(
                    [layer.weight.numel(), layer.out_channels]
                )
                scale, shift = stored.take(2 * layer.out_channels, 1, 1, 1).chunk(2)
                layer.weight.copy_(filters.view_as(layer.weight) * scale[:, None, None, None])
                layer.bias.copy_(bias * scale + shift)  # type: ignore[union-attr]  # ours have one
        self.head.weight.copy_(stored.take(self.WIDTHS[-1], DlibFace.size, 1, 1).view(-1, DlibFace.size).T)


class DlibBlock(nn.Module):
    """Two convolutions beside a shortcut. What is narrower, or shorter at its right or lower edge, counts as zero."""

    def __init__(self, channels: int, width: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.first = nn.Conv2d(channels, width, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = self.second(F.relu(self.first(x_BCHW)))
        if self.halves:
            x_BCHW = F.avg_pool2d(x_BCHW, 2)
        channels, height, width = (max(sizes) for sizes in zip(x_BCHW.shape[1:], y_BCHW.shape[1:], strict=True))
        return F.relu(_padded(x_BCHW, channels, height, width) + _padded(y_BCHW, channels, height, width))


def _padded(x_BCHW: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    missing = channels - x_BCHW.shape[1], height - x_BCHW.shape[2], width - x_BCHW.shape[3]
    return F.pad(x_BCHW, (0, missing[2], 0, missing[1], 0, missing[0]))


class _Stored:
    """The tensors of a network that dlib stored, in the order of its layers.

    A tensor is its format (2), four sizes, and little-endian float32; an integer is its length in bytes, then those.
    Between two tensors lie some hundred bytes about the layers, which say nothing new here.
    """

    GAP = 2000

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data = file.read_bytes()
        self.at = 0

    def take(self, *shape: int) -> torch.Tensor:
        """The next tensor, flat; raises ValueError when it has not this shape."""
        header = b"".join(_stored_integer(n) for n in (2, *shape))
        found = self.data.find(header, self.at, self.at + self.GAP)
        start, count = found + len(header), math.prod(shape)
        self.at = start + 4 * count
        if found < 0 or self.at > len(self.data):
            raise ValueError(f"{self.file} is not dlib_face_recognition_resnet_model_v1.dat: expected {shape} next")
        return torch.from_numpy(np.frombuffer(self.data, "<f4", count, start).copy())


def _stored_integer(number: int) -> bytes:
    length = (number.bit_length() + 7) // 8
    return bytes([length]) + number.to_bytes(length, "little")
