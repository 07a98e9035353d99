"""The network on one and on two ranks: the same numbers, in less memory each."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import checkpoint
from model import portrait as plain
from model.settings import SettingsError
from tests.model.networks import inputs, shaken, small
from tests.training.small_training import PLAIN, Run, predicted
from tests.training.worlds import together
from training import parallel, stages
from training.lora import LoraConfig
from training.parallel import ParallelConfig
from training.saved import Saved
from training.shares import trainable
from training.state import folder_of

SCRIPTS = Path(__file__).parent
HALF = dataclasses.replace(PLAIN, dtype="bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights on disk, and what two ranks saw."""
    place = tmp_path_factory.mktemp("ranks")
    checkpoint.save(shaken(plain.build(small())), place / "weights")
    checkpoint.save(shaken(plain.build(small(identity="reference"))), place / "faceless")
    done = together(SCRIPTS / "ranks_parallel.py", str(place))
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture
def one() -> Iterator[parallel.World]:
    """This process as the only rank, under FSDP2."""
    world = parallel.join(HALF)
    yield world
    world.close()


def test_a_network_starts_the_same_on_one_rank_and_on_two(folder: Path) -> None:
    start, own = Saved(folder_of(folder / "start", 0)), Run(parallel.join(PLAIN)).portrait
    assert start.contents["parts"] == 2
    names = [name for name, _ in own.named_parameters()]
    for name, parameter in own.named_parameters():
        kept = start if f"model.{name}" in start.shapes else Saved(folder / "start" / "frozen")
        assert torch.equal(kept.whole(f"model.{name}"), parameter), name
    assert len({own.get_parameter(name).flatten()[0].item() for name in names if "to_q.weight" in name}) == 8


def test_a_start_is_that_of_the_modules_themselves() -> None:
    portrait = Run(parallel.join(PLAIN)).portrait
    block = portrait.denoiser.transformer_blocks[0]
    assert not block.audio_attention.to_out[0].weight.any()
    assert torch.equal(block.attn1.norm_q.weight, torch.ones(32))
    bound = portrait.config.width**-0.5
    assert 0.99 * bound < block.attn1.to_q.weight.abs().max() <= bound


def test_two_ranks_lose_what_one_does_over_twenty_steps(seen: dict[str, Any]) -> None:
    alone = torch.tensor(Run(parallel.join(PLAIN)).steps(0, 20))
    assert alone[-4:].mean() < 0.9 * alone[:4].mean()  # it does learn, so that errors could grow
    assert (torch.tensor(seen["spread"]["losses"]) - alone).abs().max() < 1e-6
    assert (torch.tensor(seen["copies"]) - alone[:3]).abs().max() < 1e-6


@pytest.mark.parametrize("rank", [0, 2])
def test_what_a_checkpoint_does_not_give_starts_as_ever(folder: Path, rank: int) -> None:
    world, adapters = parallel.join(PLAIN), LoraConfig(rank=rank)
    names = stages.trained(small(), "all").names
    started = parallel.build(small(), PLAIN, world, names, 5, adapters)
    empty = parallel.build(small(), PLAIN, world, names, None, adapters)
    for one in empty.state_dict().values():
        one.fill_(float("nan"))
    fresh = ("*.face_*",)
    assert parallel.load(empty, folder / "faceless", fresh, seed=5).fresh
    assert parallel.load(started, folder / "faceless", fresh).fresh
    for name, one in empty.state_dict().items():
        assert torch.equal(one, started.state_dict()[name]), name


def test_a_rank_of_two_holds_half_of_the_network(seen: dict[str, Any]) -> None:
    assert 0.5 <= seen["spread"]["held"] < 0.52


def test_the_length_of_the_gradient_is_that_of_the_whole_one(seen: dict[str, Any]) -> None:
    run = Run(parallel.join(PLAIN))
    run.steps(0, 20)
    run.losses(20)
    gradients = [one.grad.flatten() for one in trainable(run.portrait).values()]
    assert seen["spread"]["norm"] == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)
    assert seen["spread"]["shortened"] == pytest.approx(seen["spread"]["norm"] / 2, rel=1e-6)


def test_a_gradient_that_is_short_enough_stays_as_it_is() -> None:
    run = Run(parallel.join(PLAIN))
    run.losses(0)
    before = [one.grad.clone() for one in trainable(run.portrait).values()]
    norm = parallel.gradient_norm(run.portrait, run.world)
    parallel.shorten_gradients(run.portrait, norm, float(norm) * 1.5)
    assert all(torch.equal(one.grad, was) for one, was in zip(trainable(run.portrait).values(), before, strict=True))


def test_a_gradient_that_is_not_finite_is_not_overlooked() -> None:
    run = Run(parallel.join(PLAIN))
    run.losses(0)
    run.portrait.denoiser.proj_out.bias.grad[0] = float("nan")
    assert torch.isnan(parallel.gradient_norm(run.portrait, run.world))


def test_losses_of_all_ranks_stand_in_the_order_of_the_samples(seen: dict[str, Any]) -> None:
    assert seen["words"]["everyone"] == [0.5, 10.0, 0.0, 30.0]


def test_ranks_agree(seen: dict[str, Any]) -> None:
    words = seen["words"]
    assert (words["anyone"], words["told"], words["who"], words["data"]) == ([True, False], 17, [1], [0, 2])


def test_each_rank_takes_its_rows_of_weights_on_disk(folder: Path, seen: dict[str, Any]) -> None:
    right = predicted(shaken(plain.build(small())), inputs(small()))
    assert torch.allclose(torch.tensor(seen["loaded"]["output"]), right.flatten(), atol=1e-5)
    assert seen["loaded"]["fresh"] > 0 and seen["loaded"]["kept"]


def test_only_the_sound_learns_in_stage_2_on_two_ranks_too(seen: dict[str, Any]) -> None:
    run = Run(parallel.join(PLAIN), stage="audio")
    before = {name: one.clone() for name, one in run.portrait.named_parameters()}
    alone = run.steps(0, 3)
    assert (torch.tensor(seen["audio"]) - torch.tensor(alone)).abs().max() < 1e-6
    changed = {name for name, one in run.portrait.named_parameters() if not torch.equal(before[name], one)}
    assert changed and changed <= set(run.names) and all("audio" in name for name in changed)


def test_a_frozen_reference_network_runs_without_a_graph() -> None:
    with_graph = []
    for stage in ("audio", "identity"):
        portrait = Run(parallel.join(PLAIN), stage=stage).portrait
        assert portrait.reference is not None
        block = portrait.reference.transformer_blocks[0]
        block.register_forward_hook(lambda *_: with_graph.append(torch.is_grad_enabled()))
        predicted(portrait, inputs(small()))
    assert with_graph == [False, True]


def test_bfloat16_keeps_masters_of_what_is_trained_and_nothing_more(seen: dict[str, Any]) -> None:
    half = seen["half"]
    assert half["trained"] == ["torch.float32"] and half["moments"] == "torch.float32"
    assert half["frozen"] == ["torch.bfloat16"]


def test_bfloat16_computes_in_bfloat16_and_comes_near_float32(one: parallel.World, seen: dict[str, Any]) -> None:
    exact = torch.tensor(Run(parallel.join(PLAIN), stage="identity").steps(0, 3))
    run = Run(one, HALF, stage="identity")
    losses = torch.tensor(run.steps(0, 3))
    assert 0 < (losses - exact).abs().max() < 0.02
    assert (torch.tensor(seen["half"]["losses"]) - losses).abs().max() < 2e-3
    block, kinds = run.portrait.denoiser.transformer_blocks[0], []
    block.register_forward_hook(lambda _, given, found: kinds.extend((given[3].rotary[0].dtype, found[1].dtype)))
    predicted(run.portrait, inputs(small()), torch.bfloat16)
    assert kinds == [torch.float32, torch.bfloat16]


class _Attention(TorchDispatchMode):
    """Counts attention, by its number of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func) and "backward" not in str(func):
            self.keys[args[1].shape[2]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("how", "self_attention", "listening"), [("none", 1, 1), ("selective", 1, 2), ("full", 2, 2)])
def test_selective_recomputing_keeps_what_self_attention_found(how: str, self_attention: int, listening: int) -> None:
    run = Run(parallel.join(PLAIN), config := dataclasses.replace(PLAIN, recompute=how))
    with _Attention() as counted:
        run.losses(0)
    network = run.network
    picture = network.latent_frames * network.grid[0] * network.grid[1]
    looked_at = network.grid[0] * network.grid[1]
    assert config.recompute == how
    assert counted.keys[7 + picture + looked_at] == self_attention * network.layers
    assert counted.keys[network.audio.tokens] == 2 * listening * network.layers  # face tokens are as many


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputing_changes_no_gradient(how: str) -> None:
    runs = [Run(parallel.join(PLAIN), dataclasses.replace(PLAIN, recompute=each)) for each in ("none", how)]
    for run in runs:
        run.losses(0)
    for name, parameter in trainable(runs[0].portrait).items():
        assert torch.equal(parameter.grad, runs[1].portrait.get_parameter(name).grad), name


@pytest.mark.parametrize("variant", ["even", "odd", "self", "norms", "hallo3"])
def test_two_ranks_that_share_samples_compute_what_one_does(variant: str, seen: dict[str, Any]) -> None:
    found = seen["context"][variant]
    assert found["data"] == 1
    assert found["output"] < 1e-5
    assert found["gradient"] < 1e-5


@pytest.mark.parametrize(("how", "seconds"), [("dies", 30.0), pytest.param("hangs", 40.0, marks=pytest.mark.soak)])
def test_ranks_end_when_one_of_them_is_lost(how: str, seconds: float) -> None:
    done = together(SCRIPTS / "ranks_lost.py", how)
    assert done.returncode != 0
    begun = max(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("begun"))
    assert time.time() - begun < seconds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shard": "hsdp"}, "parallel.replicas of at least 2"),
        ({"replicas": 2}, "parallel.replicas=2 is of parallel.shard=hsdp alone"),
        ({"shard": "hsdp", "replicas": 2}, "parallel.replicas=2 does not divide the 1 ranks"),
        ({"context": 2}, "parallel.context=2 does not divide the 1 ranks"),
        ({"context": 0}, "parallel.context=0: at least 1"),
        ({"timeout_s": 0.0}, "parallel.timeout_s=0.0"),
    ],
)
def test_ranks_that_do_not_divide_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parallel.join(ParallelConfig(**{"dtype": "float32", **settings}))


def test_a_name_that_is_no_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a parameter of this network: denoiser\.nose"):
        parallel.build(small(), PLAIN, parallel.join(PLAIN), ["denoiser.nose"], seed=0)


@pytest.fixture
def kernels_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced as ever, but run with plain torch's kernels, which are there at once."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize(
    ("stage", "recompute", "graphs"),
    [
        ("all", "selective", 3),  # the denoiser's blocks, the reference network's, and its last
        # And one: the first block's inputs need no gradient.
        pytest.param("audio", "none", 4, marks=pytest.mark.soak),
    ],
)
@pytest.mark.usefixtures("kernels_of_torch")
def test_kinds_of_blocks_are_compiled_not_blocks_nor_steps(
    one: parallel.World, stage: str, recompute: str, graphs: int
) -> None:
    config = dataclasses.replace(PLAIN, recompute=recompute)
    run, apart, found = compiled(one, config, stage=stage, network=small(layers=3))
    assert apart < 1e-6
    assert found == [graphs] * 3
    assert not torch._dynamo.utils.counters["graph_break"]
    for size in (1, 2, 1):  # as in validation: three more for each size, whatever became of the limit of eight
        with torch.no_grad():
            predicted(run.portrait, inputs(run.network, batch=size))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 6


@pytest.mark.usefixtures("kernels_of_torch")
def test_a_compiled_block_trains_what_is_trained_of_it_alone(one: parallel.World) -> None:
    portraits = []
    names = [f"denoiser.transformer_blocks.1.attn1.to_q.{leaf}" for leaf in ("weight", "bias")]
    for each in (False, True):
        portrait = parallel.build(small(), dataclasses.replace(PLAIN, compile=each), one, names, seed=5)
        torch._dynamo.reset()
        predicted(portrait, inputs(small())).square().sum().backward()
        portraits.append(portrait)
    right, found = ({name: one.grad for name, one in trainable(each).items()} for each in portraits)
    assert set(right) == set(found) == set(names)
    for name, gradient in right.items():
        assert gradient.full_tensor().any()
        assert torch.allclose(found[name].full_tensor(), gradient.full_tensor(), atol=1e-6), name


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_lose_what_plain_ones_do(
    one: parallel.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind of block alone: the compiler takes one to two seconds for each of some fifty kernels."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = small(identity="none")
    _, apart, found = compiled(one, dataclasses.replace(PLAIN, recompute="selective"), network=network)
    assert apart < 1e-5
    assert found == [1] * 3


def compiled(world: parallel.World, config: ParallelConfig, **options: Any) -> tuple[Run, float, list[int]]:
    """Three steps with compiled blocks: how far they are from the same with plain ones, and the graphs after each."""
    plain_losses = torch.tensor(Run(world, config, **options).steps(0, 3))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run, losses, graphs = Run(world, dataclasses.replace(config, compile=True), **options), [], []
    for number in range(3):
        losses.append(run.step(number))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return run, float((torch.tensor(losses) - plain_losses).abs().max()), graphs
