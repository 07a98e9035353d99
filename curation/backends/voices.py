"""What a voice sounds like: CAM++ speaker embeddings of 1-2 s of speech.

The network is CAM++ (Wang et al., Interspeech 2023, arXiv 2303.00332) with the weights that 3D-Speaker publishes
for Chinese and English; module names follow its checkpoint. Features are Kaldi's 80 log mel energies.
"""

from __future__ import annotations

from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

RATE = 16000
HOP = 160
"""Samples between feature frames."""
MARGIN = 2
"""Feature frames computed beyond either end, so that a chunk's features are those of the whole file."""
BATCH = 8


class VoiceEmbedder:
    """Turns chunks of one person's speech into unit vectors whose cosine tells voices apart."""

    def __init__(self, model: Path) -> None:
        """model: `campplus_cn_en_common.pt`, a plain state dict; read without unpickling code."""
        self.network = CAMPlusPlus()
        self.network.load_state_dict(torch.load(model, map_location="cpu", weights_only=True))
        self.network.eval()

    def __call__(self, waveform: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """Embeddings of spans of a recording.

        waveform: float32 [n] at 16 kHz. spans: int [C, 2] first and last sample, end exclusive, each ≥ 0.1 s and
        in the recording.
        Returns float32 [C, 192] of unit length.
        """
        result = np.zeros((len(spans), CAMPlusPlus.SIZE), np.float32)
        frames = np.maximum((spans[:, 1] - spans[:, 0]) // HOP, 1)
        for length in np.unique(frames):  # chunks of one length make a batch; nearly all have the same
            same = np.flatnonzero(frames == length)
            for rows in np.split(same, range(BATCH, len(same), BATCH)):
                features_BTF = np.stack([features(waveform, spans[row, 0], length) for row in rows])
                with torch.inference_mode():
                    result[rows] = F.normalize(self.network(torch.from_numpy(features_BTF)), dim=-1).numpy()
        return result


def features(waveform: np.ndarray, start: int, frames: int) -> np.ndarray:
    """Log mel energies of `frames` × 10 ms from sample `start`, their mean over time removed: [frames, 80]."""
    before = min(MARGIN, start // HOP)
    samples = waveform[start - before * HOP : start + (frames + MARGIN) * HOP]
    return mean_free(log_mel(samples)[before : before + frames])


def mean_free(features_TF: np.ndarray) -> np.ndarray:
    return features_TF - features_TF.mean(axis=0)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Kaldi's fbank [T, 80]: Povey window, samples in the scale of int16, no dither, edges mirrored."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(RATE, (samples * 32768).tolist())
    bank.input_finished()
    return np.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])


class CAMPlusPlus(nn.Module):
    SIZE = 192

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()
        self.xvector = nn.Sequential()
        self.xvector.add_module("tdnn", TimeDelay(320, 128))
        channels = 128
        for block, (layers, dilation) in enumerate([(12, 1), (24, 2), (16, 2)], start=1):
            self.xvector.add_module(f"block{block}", DenseBlock(channels, layers, dilation))
            channels = (channels + layers * DenseLayer.GROWTH) // 2
            self.xvector.add_module(f"transit{block}", Transit(2 * channels, channels))
        self.xvector.add_module("out_nonlinear", Activation(channels))
        self.xvector.add_module("stats", Statistics())
        self.xvector.add_module("dense", Projection(2 * channels, self.SIZE))

    def forward(self, features_BTF: torch.Tensor) -> torch.Tensor:
        """Log mel energies, mean removed -> [B, 192], not normalised."""
        return self.xvector(self.head(features_BTF.transpose(1, 2)))


class Head(nn.Module):
    """A small residual network that thins the 80 bands to 10 and keeps time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(Residual(stride=2), Residual(stride=1))
        self.layer2 = nn.Sequential(Residual(stride=2), Residual(stride=1))
        self.conv2 = nn.Conv2d(32, 32, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        x_BCFT = F.relu(self.bn1(self.conv1(x_BFT[:, None])))
        x_BCFT = self.layer2(self.layer1(x_BCFT))
        return F.relu(self.bn2(self.conv2(x_BCFT))).flatten(1, 2)


class Residual(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(32, 32, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(32, 32, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(32))

    def forward(self, x_BCFT: torch.Tensor) -> torch.Tensor:
        y_BCFT = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x_BCFT)))))
        return F.relu(y_BCFT + self.shortcut(x_BCFT))


class Activation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        return F.relu(self.batchnorm(x_BCT))


class TimeDelay(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, width, 5, stride=2, padding=2, bias=False)
        self.nonlinear = Activation(width)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        return self.nonlinear(self.linear(x_BCT))


class DenseBlock(nn.Module):
    def __init__(self, channels: int, layers: int, dilation: int) -> None:
        super().__init__()
        for layer in range(layers):
            dense = DenseLayer(channels + layer * DenseLayer.GROWTH, dilation)
            self.add_module(f"tdnnd{layer + 1}", dense)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x_BCT = torch.cat([x_BCT, layer(x_BCT)], dim=1)
        return x_BCT


class DenseLayer(nn.Module):
    GROWTH = 32

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = Activation(channels)
        self.linear1 = nn.Conv1d(channels, 4 * self.GROWTH, 1, bias=False)
        self.nonlinear2 = Activation(4 * self.GROWTH)
        self.cam_layer = ContextMask(4 * self.GROWTH, self.GROWTH, dilation)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x_BCT))))


class ContextMask(nn.Module):
    """Context-aware masking: a convolution gated by the mean of the whole chunk and of each 100 steps of it."""

    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(channels, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(channels, channels // 2, 1)
        self.linear2 = nn.Conv1d(channels // 2, width, 1)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        segments = F.avg_pool1d(x_BCT, 100, ceil_mode=True).repeat_interleave(100, dim=-1)
        context = x_BCT.mean(-1, keepdim=True) + segments[..., : x_BCT.shape[-1]]
        return self.linear_local(x_BCT) * self.linear2(F.relu(self.linear1(context))).sigmoid()


class Transit(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.nonlinear = Activation(channels)
        self.linear = nn.Conv1d(channels, width, 1, bias=False)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        return self.linear(self.nonlinear(x_BCT))


class Statistics(nn.Module):
    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        return torch.cat([x_BCT.mean(-1), x_BCT.std(-1)], dim=-1)


class Projection(nn.Module):
    """The last layer: its batch norm has no scale of its own, and no ReLU follows (3D-Speaker's `batchnorm_`)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, width, 1, bias=False)
        self.nonlinear = nn.Sequential()
        self.nonlinear.add_module("batchnorm", nn.BatchNorm1d(width, affine=False))

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        return self.nonlinear(self.linear(x_BC[..., None])[..., 0])
