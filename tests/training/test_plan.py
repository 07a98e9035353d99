"""What a run will take: operations as torch counts them, memory as it is measured, and a reason where it cannot fit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import flops
from model.config import ModelConfig, preset
from model.footprint import size
from model.portrait import Portrait, build
from model.settings import SettingsError
from tests.model.memory import most_held
from tests.model.networks import small
from tests.training import runs
from tests.training.packed import made
from training import cost, memory, plan, stages
from training.config import NetworkConfig, TrainConfig
from training.data import DataConfig
from training.lora import LoraConfig
from training.observe import ObserveConfig
from training.ranks import ParallelConfig
from training.shards import read_index
from training.stages import Trained

NETWORK = small(layers=3)
SMALL = NetworkConfig("tiny", runs.changes(NETWORK))
SHAPE = flops.Shape(3, 8, 12, text=10, batch=2)


def settings(recompute: str = "none", **changes: Any) -> TrainConfig:
    parallel = ParallelConfig(recompute=recompute, dtype="float32")
    return TrainConfig(output="run", data=DataConfig(shards="nowhere"), parallel=parallel, **changes)


def prepared(
    network: ModelConfig, trained: Trained, recompute: str = "none", dtype: torch.dtype = torch.float32
) -> Portrait:
    """A real network as the trainer has it, with gradients to add to."""
    portrait = build(network, dtype=dtype)
    plan.prepared(settings(recompute), trained)(portrait)
    for name, parameter in portrait.named_parameters():
        parameter.requires_grad_(name in set(trained.names))
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    if portrait.reference is not None and not any(name.startswith("reference.") for name in trained.names):
        portrait.reference.forward = torch.no_grad()(portrait.reference.forward)  # type: ignore[method-assign]
    return portrait


def trained_step(portrait: nn.Module, given: dict[str, torch.Tensor]) -> None:
    (portrait(**given).float() - 1.0).square().mean().backward()


def counted(network: ModelConfig, trained: Trained, recompute: str = "none", written_out: bool = True) -> int:
    """What torch counts of a training step; written_out: attention as products, else only what is not attention."""
    portrait = prepared(network, trained, recompute)
    shape = dataclasses.replace(SHAPE, audio=trained.audio)
    given = memory.inputs(network, shape, torch.float32)
    backend = SDPBackend.MATH if written_out else SDPBackend.FLASH_ATTENTION
    with FlopCounterMode(display=False) as counter, sdpa_kernel(backend):
        trained_step(portrait, given)
    return counter.get_total_flops()


@pytest.mark.parametrize("injection", ["cross", "self", "adaln"])
@pytest.mark.parametrize("stage", stages.STAGES)
def test_operations_of_the_model_are_what_torch_counts(stage: str, injection: str) -> None:
    network = small(layers=3, **{"audio.injection": injection})
    trained = stages.trained(network, stage)
    shape = dataclasses.replace(SHAPE, audio=trained.audio)
    assert cost.work(network, trained, shape).model == pytest.approx(counted(network, trained), rel=0.03)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_operations_of_the_hardware_have_those_that_are_done_again(stage: str) -> None:
    trained = stages.trained(NETWORK, stage)
    shape = dataclasses.replace(SHAPE, audio=trained.audio)
    again = cost.work(NETWORK, trained, shape, "full").hardware - cost.work(NETWORK, trained, shape).hardware
    assert again > 0.2 * cost.work(NETWORK, trained, shape).hardware
    assert again == pytest.approx(counted(NETWORK, trained, "full") - counted(NETWORK, trained), rel=0.05)


def test_selective_recomputation_spares_self_attention() -> None:
    trained = stages.trained(NETWORK, "all")
    full, selective = (cost.work(NETWORK, trained, SHAPE, how).hardware for how in ("full", "selective"))
    costs = flops.forward(NETWORK, SHAPE)
    assert full - selective == sum(costs[f"{name}.attention"].attention for name in ("denoiser", "reference"))
    # All but attention itself is done again either way.
    linear = {how: counted(NETWORK, trained, how, written_out=False) for how in ("none", "full", "selective")}
    assert linear["none"] < linear["full"] == linear["selective"]


def test_a_part_is_trained_where_most_of_it_is() -> None:
    costs = flops.forward(NETWORK, SHAPE)
    assert cost.parts(stages.trained(NETWORK, "audio"), costs) == ["denoiser.audio"]
    identity = {"denoiser.attention", "denoiser.face", "reference.attention"}
    assert set(cost.parts(stages.trained(NETWORK, "identity"), costs)) == identity
    assert set(cost.parts(stages.trained(NETWORK, "all"), costs)) == set(costs)


def test_tokens_are_those_of_the_paper() -> None:
    network = preset("hallo3", compat="")
    trained = stages.trained(network, "audio")
    assert cost.tokens(network, cost.shape_of(network, trained, 1)) == 226 + 13 * 30 * 45
    assert cost.tokens(network, cost.shape_of(network, trained, 8)) == 8 * 17_776


TOLERANCE = 0.1


@pytest.mark.parametrize(("name", "recompute"), [("tiny", "full"), ("small", "selective")])
def test_activations_are_reckoned_as_they_are_measured(name: str, recompute: str) -> None:
    network = preset(name, layers=7 if name == "tiny" else 3, latent_height=24, latent_width=36)
    trained = stages.trained(network, "all")
    shape = cost.shape_of(network, trained, 1, 2)
    reckoned = memory.activations(network, trained, shape, torch.float32, plan.prepared(settings(recompute), trained))
    portrait, given = prepared(network, trained, recompute), memory.inputs(network, shape, torch.float32)
    measured = most_held(lambda: trained_step(portrait, given))
    assert reckoned == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("stage", ["identity", "audio"])
def test_activations_of_a_stage_too(stage: str) -> None:
    network = preset("tiny", layers=7, latent_height=24, latent_width=36)
    trained = stages.trained(network, stage)
    shape = cost.shape_of(network, trained, 2, 3)
    reckoned = memory.activations(network, trained, shape)
    portrait, given = prepared(network, trained), memory.inputs(network, shape, torch.float32)
    assert reckoned == pytest.approx(most_held(lambda: trained_step(portrait, given)), rel=TOLERANCE)


def test_the_ledger_knows_what_lives_and_what_does_not() -> None:
    known = torch.zeros(1000)
    with memory.Ledger([known]) as ledger:
        view = known.view(10, 100)[:, :50]  # of what was there before: nothing
        kept = torch.zeros(1000)
        assert ledger.held == 4000
        for _ in range(3):
            gone = torch.ones(5000)
            del gone
        added = kept + 1
        kept.add_(1)
        assert (ledger.held, ledger.most) == (8000, 24_000)
        del added, view
        assert ledger.held == 4000


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    network = changes.pop("network", NetworkConfig("hallo3", ["compat="]))
    observe = ObserveConfig(**{"device_gb": 80.0, "device_tflops": 989.4, "ranks": 8, **changes.pop("observe", {})})
    known = {"stage": "identity", "batch": 8, "micro": 1, "steps": 20_000, **changes}
    return TrainConfig(
        output=str(tmp_path / "run"),
        data=DataConfig(shards=made(tmp_path / "shards", samples=2, network=network.sizes())),
        network=network,
        observe=observe,
        **known,
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, plan.Planned]:
    """The plan of stage 1 at full size on eight devices of 80 GB, made on a machine without one."""
    asked = config(tmp_path_factory.mktemp("full"))
    return asked, planned(asked)


def planned(asked: TrainConfig) -> plan.Planned:
    index = read_index(asked.data.shards, asked.data.split)
    return plan.planned(asked, index, asked.observe.ranks, torch.device("cpu"))


def test_the_published_network_is_planned_without_memory_for_it(full: tuple[TrainConfig, plan.Planned]) -> None:
    asked, found = full
    trained = stages.trained(asked.network.sizes(), "identity")
    counted_ = sum(trained.sizes[name] for name in trained.names)
    assert found.parts["gradients"] == found.parts["trained parameters"] == round(4 * counted_ / 8)
    assert found.parts["optimizer"] == 2 * found.parts["gradients"]
    assert found.parts["frozen parameters"] == round(2 * (sum(trained.sizes.values()) - counted_) / 8)
    text = "\n".join(found.lines)
    for said in ("stage identity: trains", "frozen: ", "memory of a rank", "142,208 tokens", "TFLOP", "2 samples"):
        assert said in text
    assert "ASSUMING that 8 devices of 989.4 TFLOP/s (as stated) are used to 40%" in text
    assert not found.refusals


def test_time_is_operations_over_what_is_assumed(full: tuple[TrainConfig, plan.Planned]) -> None:
    asked, found = full
    network = asked.network.sizes()
    trained = stages.trained(network, "identity")
    work = cost.work(network, trained, cost.shape_of(network, trained, 8), "selective")
    seconds = work.model / (8 * 989.4e12 * 0.4)
    assert any(f"{seconds:.3g} s a step" in line for line in found.lines)


def test_what_cannot_fit_is_refused_with_a_reason(tmp_path: Path) -> None:
    asked = config(tmp_path, micro=8, observe={"device_gb": 0.004, "ranks": 1}, network=SMALL)
    found = planned(asked)
    (refusal,) = found.refusals
    assert f"a rank needs {size(sum(found.parts.values()))}, most of it for activations" in refusal
    assert "of 4 MB" in refusal and "what makes it less: micro=1, parallel.recompute=full" in refusal


def test_a_plan_that_fits_is_shown_by_one_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(tmp_path, stage="all", network=SMALL, observe={"ranks": 2})
    assert plan.show(asked) == 0
    assert "stage all: trains" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert plan.show(asked) == 0 and not capsys.readouterr().out


def test_a_plan_fails_where_shards_are_gone_or_ranks_do_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config(tmp_path, batch=9, network=SMALL)
    next(Path(asked.data.shards).glob("*.tar")).unlink()
    assert plan.show(asked) == 1
    said = capsys.readouterr().err
    assert "cannot run: batch=9 does not divide among 8 ranks" in said
    assert "train-000000.tar is not there" in said


def test_adapters_are_what_is_trained_where_they_are(tmp_path: Path) -> None:
    network = preset("tiny", layers=3, latent_height=12, latent_width=18)
    stage = stages.trained(network, "all")
    asked = settings(lora=LoraConfig(rank=4))
    learnt = plan.with_adapters(network, stage, asked.lora)
    few, whole = (plan.weights_memory(asked, each, 1) for each in (learnt, stage))
    assert few["optimizer"] == 8 * sum(learnt.sizes[name] for name in learnt.names) < 0.2 * whole["optimizer"]
    assert few["frozen parameters"] == 4 * sum(stage.sizes.values())


def test_a_device_that_is_not_here_is_to_be_described(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    asked = config(tmp_path, parallel=ParallelConfig(device="cuda"))
    with pytest.raises(SettingsError, match="device_gb"):
        plan.show(asked)


def test_a_further_piece_of_a_step_takes_a_rank_s_share_of_a_block_s_gradient_more() -> None:
    stage = stages.trained(NETWORK, "all")
    asked = TrainConfig(output="run", data=DataConfig(shards="nowhere"))  # bfloat16: FSDP2, on one rank too
    once, twice, often = (plan.weights_memory(asked, stage, 2, pieces) for pieces in (1, 2, 8))
    blocks = Counter[str]()
    for name in stage.names:
        blocks[name.partition(".")[0] + name.partition("_blocks.")[2][:1]] += stage.sizes[name]
    more = twice["gradients gathered"] - once["gradients gathered"]
    assert 0 < more <= 4 * max(blocks.values()) / 2
    assert more < 0.2 * once["gradients"]
    assert often == twice
    assert {name: size for name, size in twice.items() if name != "gradients gathered"} == {
        name: size for name, size in once.items() if name != "gradients gathered"
    }


def test_a_mask_of_the_text_is_planned_where_texts_are_padded(tmp_path: Path) -> None:
    room = NETWORK.text_length
    said = {}
    for filled in (0, room):
        place = made(tmp_path / str(filled), samples=2, network=NETWORK, filled=filled)
        found = plan.planned(settings(network=SMALL), read_index(place), 1, torch.device("cpu"))
        said[filled] = found.lines[-1]
    assert said[0].startswith(f"texts are padded to {room} tokens and masked")
    assert said[room] == f"every text fills its {room} tokens: attention needs no mask"
    with_mask = memory.inputs(NETWORK, SHAPE, torch.float32, masked=True)
    assert with_mask["text_mask_BS"].shape == (2, 10)
    assert memory.inputs(NETWORK, SHAPE, torch.float32).keys() == with_mask.keys() - {"text_mask_BS"}
