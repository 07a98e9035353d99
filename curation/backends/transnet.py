"""TransNet V2, a network that finds shot transitions, gradual ones too (arXiv:2008.04838).

Parameters carry the published names, so the published weights load.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEIGHT = 48, 27  # pixels of the pictures it is shown
WINDOW, MARGIN = 100, 25  # frames it is shown at once; of these it judges all but the margins
_LOOKUP = 101  # frames around a frame that it is compared with
_DILATIONS = (1, 2, 4, 8)

# Layouts: B batch, C channels, T frames, H W rows and columns.


class TransNetV2(nn.Module):
    """Frames in, the chance that a transition lies at each of them out."""

    def __init__(self) -> None:
        super().__init__()
        filters = [16, 32, 64]
        inputs = [3] + [4 * count for count in filters]
        self.SDDCNN = nn.ModuleList(_Stack(n, count) for n, count in zip(inputs, filters, strict=False))
        self.frame_sim_layer = _FrameSimilarity(sum(inputs[1:]))
        self.color_hist_layer = _ColourHistograms()
        self.fc1 = nn.Linear(inputs[-1] * (HEIGHT // 8) * (WIDTH // 8) + 128 + 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)  # all frames of a transition; only there for the weights' sake

    def forward(self, frames_BTHWC: torch.Tensor) -> torch.Tensor:
        """frames: uint8 RGB, 27 x 48. Returns probabilities [B, T]."""
        x_BCTHW = frames_BTHWC.permute(0, 4, 1, 2, 3).float() / 255
        features = []
        for stack in self.SDDCNN:
            x_BCTHW = stack(x_BCTHW)
            features.append(x_BCTHW.mean((3, 4)))
        seen = [
            self.frame_sim_layer(torch.cat(features, 1).transpose(1, 2)),
            self.color_hist_layer(frames_BTHWC),
            x_BCTHW.permute(0, 2, 3, 4, 1).flatten(2),
        ]
        return self.cls_layer1(functional.relu(self.fc1(torch.cat(seen, 2))))[..., 0].sigmoid()


def load(path: Path) -> TransNetV2:
    """The network with the published weights (a state dict; nothing else is unpickled)."""
    network = TransNetV2()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


class _Stack(nn.Module):
    """Two blocks of dilated convolutions with a shortcut, then halving of the picture."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Dilated(inputs, filters), _Dilated(4 * filters, filters)])

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        shortcut = functional.relu(self.DDCNN[0](x_BCTHW))
        return functional.avg_pool3d(functional.relu(self.DDCNN[1](shortcut)) + shortcut, (1, 2, 2))


class _Dilated(nn.Module):
    """Convolutions over time with four dilations, side by side."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        for dilation in _DILATIONS:
            self.add_module(f"Conv3D_{dilation}", _Separable(inputs, filters, dilation))
        self.bn = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.bn(torch.cat([getattr(self, f"Conv3D_{d}")(x_BCTHW) for d in _DILATIONS], 1))


class _Separable(nn.Module):
    """A convolution over the picture, then one over time."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(inputs, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0), bias=False
        )
        self.layers = nn.Sequential(space, time)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.layers(x_BCTHW)


class _FrameSimilarity(nn.Module):
    """How much each frame's features are like those of its neighbours."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, 128)
        self.fc = nn.Linear(_LOOKUP, 128)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.fc(_neighbours(self.projection(x_BTC))))


class _ColourHistograms(nn.Module):
    """How much each frame's colours are like those of its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(_LOOKUP, 128)

    def forward(self, frames_BTHWC: torch.Tensor) -> torch.Tensor:
        red, green, blue = (frames_BTHWC.long() >> 5).flatten(2, 3).unbind(-1)
        bins_BTP = (red << 6) + (green << 3) + blue
        counts = torch.zeros(*bins_BTP.shape[:2], 512, device=bins_BTP.device)
        counts.scatter_add_(2, bins_BTP, torch.ones_like(bins_BTP, dtype=counts.dtype))
        return functional.relu(self.fc(_neighbours(counts)))


def _neighbours(x_BTC: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of each frame to those around it, 0 beyond the ends: [B, T, 101]."""
    unit = functional.normalize(x_BTC, dim=2)
    time = torch.arange(unit.shape[1], device=unit.device)
    similar_BTT = functional.pad(unit @ unit.transpose(1, 2), (_LOOKUP // 2, _LOOKUP // 2))
    return similar_BTT[:, time[:, None], time[:, None] + torch.arange(_LOOKUP, device=unit.device)]
