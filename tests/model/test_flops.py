"""The formula against what torch counts."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import flops
from model.config import IDENTITIES, ModelConfig, preset
from model.portrait import build
from tests.model.networks import inputs, small

CASES: dict[str, dict[str, Any]] = {
    **{f"audio {kind}": {"audio.injection": kind} for kind in ("none", "cross", "self", "adaln", "adaln_zero")},
    **{f"identity {kind}": {"identity": kind} for kind in IDENTITIES},
    "released code": {"compat": "hallo3"},
    "deeper": {"layers": 5, "latent_height": 4},
    "patches of two frames, ofs": {"patch_frames": 2, "ofs_dim": 32, "audio.injection": "none"},
}


def counted(config: ModelConfig, frames: int, device: str, backward: bool) -> int:
    """What torch counts in a pass, attention written out as products."""
    portrait = build(config, device)
    given = inputs(config, batch=1 if device == "meta" else 2, frames=frames)
    leaves = {name: value.to(device).requires_grad_() for name, value in given.given().items()}
    noisy, text = (value.to(device).requires_grad_() for value in (given.noisy, given.text))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = portrait(noisy, given.timestep.to(device), text, **leaves)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def shape_of(config: ModelConfig, frames: int, batch: int) -> flops.Shape:
    return flops.Shape(frames, config.latent_height, config.latent_width, text=7, batch=batch)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_formula_is_what_torch_counts(changes: dict[str, Any]) -> None:
    config = small(**changes)
    frames = 4 if config.patch_frames == 2 else 3
    costs = flops.forward(config, shape_of(config, frames, batch=2))
    assert flops.total(costs) == pytest.approx(counted(config, frames, "cpu", backward=False), rel=0.01)
    assert flops.training(costs) == pytest.approx(counted(config, frames, "cpu", backward=True), rel=0.01)


def test_at_full_size_too() -> None:
    config = preset("hallo3", layers=3, text_length=226)
    costs = flops.forward(config, shape_of(config, 13, batch=1))
    assert flops.total(costs) == pytest.approx(counted(config, 13, "meta", backward=False), rel=0.01)
    assert flops.training(costs) == pytest.approx(counted(config, 13, "meta", backward=True), rel=0.01)


def test_frozen_parts_save_their_weights_gradients_and_parts_without_a_graph_all_of_them() -> None:
    costs = flops.forward(preset("hallo3"), flops.Shape(13, 60, 90, text=226))
    everything = flops.training(costs)
    audio = flops.training(costs, trained=["denoiser.audio"])
    others = sum(cost.weights for part, cost in costs.items() if part != "denoiser.audio")
    assert everything - audio == others
    reference = [part for part in costs if part.startswith("reference.")]
    stage2 = flops.training(costs, trained=["denoiser.audio"], without_graph=reference)
    assert audio - stage2 == sum(costs[part].weights + 2 * costs[part].attention for part in reference)
    with pytest.raises(ValueError, match=r"'denoiser.lips' is not a part of the network; there is denoiser.embed"):
        flops.training(costs, trained=["denoiser.lips"])


def test_what_is_not_given_costs_nothing() -> None:
    config = small()
    whole = flops.forward(config, shape_of(config, 3, 1))
    bare = flops.forward(config, flops.Shape(3, 8, 12, text=7, face=False, audio=False, reference=False))
    assert bare["denoiser.face"].total == bare["denoiser.audio"].total == 0
    assert not any(part.startswith("reference") for part in bare)
    assert bare["denoiser.attention"].total < whole["denoiser.attention"].total
