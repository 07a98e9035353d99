"""The tensors of a step's samples, as they go from reading to the network.

B samples, F latent frames, T video frames with the margins of their speech, N motion latents or states of speech, C
channels, H×W latent positions, S text tokens, D their width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.samples import Sample


@dataclass(frozen=True)
class Batch:
    """The samples of a step that one rank computes, in the order of the step's whole batch.

    places: their indices in that. Tensors are float32 on the CPU, None for what the shards or the network do not have.
    audio: of T video frames, those beyond either end of the window among them. text: padded, with a mask of what is
    real; None where no sample of these shards is ever padded (`samples.fills`). boxes: of
    face and lips in each video frame: left, top, right, bottom in pixels; NaN where lost. dropped: what was taken from
    each sample (`text`, `audio`, `reference`, `face`, `motion`): there are zeros in its place, for the text that of
    nothing.
    """

    step: int
    keys: tuple[str, ...]
    places: tuple[int, ...]
    latent_BFCHW: torch.Tensor
    motion_BNCHW: torch.Tensor | None
    reference_BCHW: torch.Tensor | None
    face_BC: torch.Tensor | None
    audio_BTNC: torch.Tensor | None
    text_BSD: torch.Tensor
    text_mask_BS: torch.Tensor | None
    boxes_BT24: torch.Tensor | None
    dropped: tuple[frozenset[str], ...]

    @staticmethod
    def of(step: int, places: Sequence[int], samples: Sequence[Sample]) -> Batch:
        """Samples put together."""

        def stacked(name: str) -> Any:
            values = [getattr(sample, name) for sample in samples]
            return None if values[0] is None else torch.stack(values)

        return Batch(
            step,
            tuple(sample.key for sample in samples),
            tuple(places),
            stacked("latent_FCHW"),
            stacked("motion_NCHW"),
            stacked("reference_CHW"),
            stacked("face_C"),
            stacked("audio_TNC"),
            stacked("text_SD"),
            stacked("text_mask_S"),
            stacked("boxes_T24"),
            tuple(sample.dropped for sample in samples),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """On a device, floats as `dtype`; boxes stay float32, for they count pixels, and masks bool."""
        moved: dict[str, Any] = {
            name: value.to(
                device, dtype if name not in ("boxes_BT24", "text_mask_BS") else value.dtype, non_blocking=True
            )
            for name, value in self._tensors().items()
        }
        return dataclasses.replace(self, **moved)

    def split(self, size: int) -> list[Batch]:
        """In pieces of so many samples; the last may be smaller."""
        pieces = []
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            names = {"keys": self.keys[part], "places": self.places[part], "dropped": self.dropped[part]}
            tensors = {name: value[part] for name, value in self._tensors().items()}
            pieces.append(dataclasses.replace(self, **names, **tensors))  # type: ignore[arg-type]
        return pieces

    def pin(self) -> Batch:
        """In memory that a GPU copies from on its own."""
        return dataclasses.replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in found if isinstance(value, torch.Tensor)}
