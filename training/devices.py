"""What devices can do: how fast they multiply, how much they hold."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from model.footprint import free

# Dense bfloat16 products with float32 sums, as the makers state them (without sparsity), in TFLOP/s. The first name
# that is part of the device's own counts, so that special builds stand before the plain ones.
BFLOAT16 = (
    ("B200", 2250.0),
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.0),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("MI300X", 1307.4),
)
_SIDE = 768
_ROUNDS = 5


@dataclass(frozen=True)
class Peak:
    """Operations a second of one device at most, and how that is known."""

    flops: float
    source: str  # "stated", "table" or "measured"

    @property
    def stated(self) -> bool:
        """Whether it is what the device could do, rather than what a product was seen to do."""
        return self.source != "measured"


def peak(device: torch.device, dtype: str, stated_tflops: float = 0.0) -> Peak | None:
    """The most a device can do in a type; None where nobody says: a share of an unknown is no figure.

    stated_tflops: what the user says; 0: nothing. By name only bfloat16 is known. A CPU has no such number: there it is
    what a product of matrices is measured to do, here and now, on as many threads as torch has.
    """
    if stated_tflops:
        return Peak(stated_tflops * 1e12, "stated")
    if device.type == "cpu":
        return Peak(_measured(getattr(torch, dtype)), "measured")
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    known = named(torch.cuda.get_device_name(device))
    return None if known is None else Peak(known, "table")


def named(name: str) -> float | None:
    """Bfloat16 operations a second of a device of this name; None where it is not in the table."""
    words = name.replace("-", " ").split()
    for entry, tflops in BFLOAT16:
        wanted = entry.split()
        if any(words[start : start + len(wanted)] == wanted for start in range(len(words))):
            return tflops * 1e12
    return None


def total_memory(device: torch.device) -> int | None:
    """Bytes a device has in all; on a CPU what is free now; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return free(device) if device.type == "cpu" else None


def _measured(dtype: torch.dtype) -> float:
    """Operations a second of the quickest of some products of square matrices."""
    left, right = torch.ones(2, _SIDE, _SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best
