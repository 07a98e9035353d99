"""SyncNet: how well lips and voice fit, and by how many pictures the sound is early.

The network of Chung and Zisserman, "Out of time: automated lip sync in the wild", ACCV-W 2016, for the weights
its authors publish (`syncnet_v2.model`) and the crops that they cut (joonson/syncnet_python).

Shapes: T pictures, B windows of five pictures or of 20 sound frames, C channels, D numbers of a feature.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.utils import fusion

from curation.measures.sync import RATE, SyncScore, distances, mfcc, score

FPS = 25
SIDE = 224
"""Pixels of a crop, both ways."""
WINDOW = 5
"""Pictures that the lips are read from at once."""
LEAST = 7
"""Pictures below which a track is too short to be smoothed; a score needs one less."""

_SCALE = 0.4  # by how much of the half face the crop reaches beyond the face at either side, and twice that below
_TAPS = 13
_GREY = 110  # beyond the picture's edges
_HEARD, _STEP = 20, 4  # sound frames of a window, and from one window to the next
_ADVICE = "take the file syncnet_v2.model as SyncNet's authors publish it"


class SyncNetError(Exception):
    """A file does not hold SyncNet's weights: which, why, what to do."""


class SyncNet:
    """Scores how lips and voice fit.

    model: the authors' `syncnet_v2.model`; read without unpickling code. device: as torch names it. threads: of a
    CPU's computation. batch: windows computed at once; a GPU likes more.
    """

    def __init__(self, model: Path, device: str = "cpu", threads: int = 1, batch: int = 8) -> None:
        self._network = load(model).to(device)
        self._device, self._threads, self._batch = torch.device(device), threads, batch

    def __call__(self, crops: Iterable[np.ndarray], waveform_N: np.ndarray) -> SyncScore | None:
        """Sync-D, Sync-C and offset of a clip, or None where picture or sound is too short: under 0.24 s.

        crops: uint8 [224, 224, 3] RGB, 25 a second, taken one by one (see `crops`). waveform: float32 [N] mono at
        16 kHz, from the time of the first picture on. Of the longer of the two, the rest is not looked at.
        """
        with _exact(self._threads):
            cut = itertools.islice(crops, len(waveform_N) * FPS // RATE)
            lips = [self._network.lips(self._put(windows)) for windows in _seen(cut, self._batch)]
            if not lips:
                return None
            lips_TD = torch.cat(lips)
            heard_TCK = _heard(waveform_N)[: len(lips_TD)]
            parts = np.split(heard_TCK, range(self._batch, len(heard_TCK), self._batch))
            voice_TD = torch.cat([self._network.voice(self._put(windows)) for windows in parts])
        return score(distances(lips_TD.cpu().numpy(), voice_TD.cpu().numpy()))

    def _put(self, windows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(windows).to(self._device).float()


def _seen(crops: Iterator[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    """Windows of five pictures: uint8 [B, 15, 224, 224], channels last in memory.

    The very last window is left out, as the authors do.
    """
    held = list(itertools.islice(crops, WINDOW))
    while more := list(itertools.islice(crops, batch)):
        held = held[-WINDOW:] + more
        shifted = (np.stack(held[shift : shift + len(more)]) for shift in range(WINDOW))
        yield np.concatenate(list(shifted), axis=-1).transpose(0, 3, 1, 2)


def _heard(waveform_N: np.ndarray) -> np.ndarray:
    """Windows of 20 sound frames, one a picture: float32 [T, 1, 13, 20]."""
    cepstra_NC = mfcc(waveform_N).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(cepstra_NC, _HEARD, axis=0)[::_STEP, None].copy()


@contextlib.contextmanager
def _exact(threads: int) -> Iterator[None]:
    """Within, torch keeps no gradients, rounds nothing to 19 bits on a GPU and repeats itself to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


class Cropper:
    """`crops` for frames that come one by one with their boxes: each is cut once the six behind it are known.

    A gap of more than 12 pictures is cut where the face was last seen; `crops`, which knows what follows, would move.
    """

    def __init__(self) -> None:
        self._boxes: list[np.ndarray] = []
        self._held: deque[np.ndarray] = deque(maxlen=_TAPS // 2 + 1)
        self._place = np.zeros(3)
        self._crops: list[np.ndarray] = []

    def see(self, image_HWC: np.ndarray, box: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3], and the face in it: left, top, right, bottom; NaN while it is lost."""
        self._held.append(image_HWC)
        self._boxes.append(box)
        if len(self._boxes) > _TAPS // 2:
            self._cut()

    def finish(self) -> list[np.ndarray]:
        """The crops of all frames; none of fewer than LEAST."""
        while LEAST <= len(self._boxes) > len(self._crops):
            self._cut()
        return self._crops

    def _cut(self) -> None:
        at = len(self._crops)
        first = max(0, at - _TAPS // 2)
        near = places(np.stack(self._boxes[first : at + _TAPS // 2 + 1]))
        if len(near):
            self._place = near[at - first]
        self._crops.append(crop(self._held[at - len(self._boxes)], *self._place.tolist()))


# --- the network ------------------------------------------------------------------------------------------


class Network(nn.Module):
    """The two streams, under the names that the authors' checkpoint has.

    Their 3-D convolutions span all five pictures of a window or one: here the five are channels of a picture.
    """

    SIZE = 1024

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_block(1, 64, 3, padding=1),
            nn.Identity(),  # the authors have a pooling over 1 x 1 here
            *_block(64, 192, 3, padding=1),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_block(192, 384, 3, padding=1),
            *_block(384, 256, 3, padding=1),
            *_block(256, 256, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            *_block(256, 512, (5, 4)),
        )
        self.netcnnlip = nn.Sequential(
            *_block(WINDOW * 3, 96, 7, stride=2),
            nn.MaxPool2d(3, stride=2),
            *_block(96, 256, 5, stride=2, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_block(256, 256, 3, padding=1),
            *_block(256, 256, 3, padding=1),
            *_block(256, 256, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            *_block(256, 512, 6),
        )
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, self.SIZE))
            for _ in range(2)
        )

    def voice(self, cepstra_B1CT: torch.Tensor) -> torch.Tensor:
        """[B, 1, 13, 20] -> [B, D]."""
        return self.netfcaud(self.netcnnaud(cepstra_B1CT).flatten(1))

    def lips(self, windows_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 15, 224, 224], values 0..255, channels of picture by picture, red before green -> [B, D]."""
        return self.netfclip(self.netcnnlip(windows_BCHW).flatten(1))


def _block(
    inputs: int, outputs: int, size: int | tuple[int, int], stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def load(model: Path) -> Network:
    """The network with a checkpoint's weights, its batch norms folded into the layers before them.

    model: a state dict as torch has saved it since 0.4, with or without its 14 counters `num_batches_tracked`.
    Raises SyncNetError when it is none, or not SyncNet's.
    """
    try:
        state = torch.load(model, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SyncNetError(f"{model}: {error.strerror or error}; {_ADVICE}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise SyncNetError(f"{model} is no dictionary of weights that is safe to read; {_ADVICE}") from error
    if not isinstance(state, dict) or not all(isinstance(weight, torch.Tensor) for weight in state.values()):
        raise SyncNetError(f"{model} holds something else than a dictionary of weights; {_ADVICE}")
    network = Network().eval()
    try:  # a plain dictionary names no version: torch then asks for no counters
        told = network.load_state_dict({str(name): _flat(name, state[name]) for name in state}, strict=False)
    except RuntimeError as error:
        mismatch = str(error).splitlines()[1].strip(" \t.")
        raise SyncNetError(f"{model} holds another network's weights: {mismatch}; {_ADVICE}") from error
    if told.missing_keys or told.unexpected_keys:
        example = f"it lacks {told.missing_keys[0]}" if told.missing_keys else f"it has {told.unexpected_keys[0]}"
        raise SyncNetError(f"{model} holds another network's weights: {example}; {_ADVICE}")
    for stream, layers in list(network.named_children()):
        setattr(network, stream, _folded(layers))
    return network


def _flat(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A 3-D convolution's weights [outputs, colour, picture, row, column] as those of a 2-D one; the rest as it is.

    The authors' pictures are OpenCV's, blue first, and ours are not.
    """
    if weight.ndim != 5:
        return weight
    if name == "netcnnlip.0.weight":
        weight = weight.flip(1)
    return weight.transpose(1, 2).flatten(1, 2)


def _folded(layers: nn.Module) -> nn.Sequential:
    """The layers with every batch norm worked into the weights of the layer before it."""
    kept: list[nn.Module] = []
    for layer in layers.children():
        before = kept[-1] if kept else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            kept[-1] = fusion.fuse_conv_bn_eval(before, layer)
        elif isinstance(layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            kept[-1] = fusion.fuse_linear_bn_eval(before, layer)
        else:
            kept.append(layer)
    return nn.Sequential(*kept)


# --- crops ------------------------------------------------------------------------------------------------


def crops(frames: Iterable[np.ndarray], boxes_T4: np.ndarray) -> Iterator[np.ndarray]:
    """The face in every frame as SyncNet's authors cut it out.

    frames: uint8 [H, W, 3], as many as boxes or fewer; looked at one by one. boxes: float [T, 4] left, top, right,
    bottom in pixels; NaN rows, where the face is lost, lie evenly between their neighbours.
    Yields uint8 [224, 224, 3], channels as in the frames; nothing for fewer than LEAST boxes or without any face.
    """
    for image_HWC, place in zip(frames, places(boxes_T4), strict=False):
        yield crop(image_HWC, *place.tolist())


def places(boxes_T4: np.ndarray) -> np.ndarray:
    """Half the longer side and the centre (x, y) of each face, a median over 13 pictures: float [T, 3].

    Beyond the track's ends the median sees zeros, as scipy.signal.medfilt does: the first pictures get the least of
    what follows. Empty for a track that cannot be smoothed (see `crops`).
    """
    seen_T = np.isfinite(boxes_T4).all(axis=1)
    if len(boxes_T4) < LEAST or not seen_T.any():
        return np.zeros((0, 3))
    time_T = np.arange(len(boxes_T4))
    left, top, right, bottom = (np.interp(time_T, time_T[seen_T], edge[seen_T]) for edge in boxes_T4.T)
    raw_T3 = np.stack([np.maximum(right - left, bottom - top), left + right, top + bottom], axis=1) / 2
    padded = np.pad(raw_T3, ((_TAPS // 2, _TAPS // 2), (0, 0)))
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _TAPS, axis=0), axis=-1)


def crop(image_HWC: np.ndarray, half: float, x: float, y: float) -> np.ndarray:
    """A square of 2.8 times `half`, a face's half size, whose top is the face's own; grey beyond the picture.

    Corners are cut to whole pixels as the authors do, counted from the corner of their padding.
    Returns uint8 [224, 224, 3]. Raises ValueError when nothing of it lies in the picture.
    """
    pad = int(half * (1 + 2 * _SCALE))
    rows, columns = image_HWC.shape[:2]
    top, bottom = int(y + pad - half) - pad, int(y + pad + half * (1 + 2 * _SCALE)) - pad
    left, right = int(x + pad - half * (1 + _SCALE)) - pad, int(x + pad + half * (1 + _SCALE)) - pad
    inside = image_HWC[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if not inside.size:
        raise ValueError(f"no face to cut out at ({x:.0f}, {y:.0f}), {2 * half:.0f} pixels high, of {columns}x{rows}")
    edges = max(-top, 0), max(bottom - rows, 0), max(-left, 0), max(right - columns, 0)
    if any(edges):
        inside = cv2.copyMakeBorder(inside, *edges, cv2.BORDER_CONSTANT, value=(_GREY,) * 3)
    return cv2.resize(inside, (SIDE, SIDE))
