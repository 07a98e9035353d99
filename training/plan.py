"""What a run will take, said before it is started: parameters, memory, operations, time, samples. Nothing is trained.

Memory is reckoned for one rank, part by part, from what the trainer keeps: trained parameters, their gradients, two
moments of AdamW and the average in float32, frozen parameters in the type that is computed in, all of it divided by the
ranks that share one network; what FSDP2 has gathered at a time; and activations (`training.memory`: forward and
backward of shallow slices on tensors that have a size alone). CUDA's own context and torch's unused reserve come on
top.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from model.config import ModelConfig
from model.flops import Shape
from model.footprint import size
from model.portrait import Portrait, build
from model.settings import SettingsError
from training import cost, demands, devices, lora, memory, parallel, shards, stages
from training.config import TrainConfig
from training.cost import Work
from training.devices import Peak
from training.lora import LoraConfig
from training.ranks import ParallelConfig
from training.shards import DataError, Index
from training.stages import Trained

FULL = 0.92
"""Share of a device's memory that a run may plan with: CUDA's context and scattered pieces take the rest."""
_MASTER = 4  # bytes of a number in float32
_GATHERED = 2  # blocks that FSDP2 has gathered at a time: the one at work, and the next


@dataclass(frozen=True)
class Planned:
    """A plan. parts: bytes of one rank by what they are for. refusals: why it cannot be run as it is."""

    lines: tuple[str, ...]
    parts: Mapping[str, int]
    refusals: tuple[str, ...]


def show(config: TrainConfig) -> int:
    """Print the plan of a run; the exit status: 0 it fits, 1 it does not. Raises SettingsError and DataError."""
    if int(os.environ.get("RANK", "0")):
        return 0
    ranks = config.observe.ranks or int(os.environ.get("WORLD_SIZE", "1"))
    found = planned(config, shards.read_index(config.data.shards, config.data.split), ranks, _device(config))
    print("\n".join(found.lines))
    for refusal in found.refusals:
        print(f"cannot run: {refusal}", file=sys.stderr)
    return 1 if found.refusals else 0


def planned(config: TrainConfig, index: Index, ranks: int, device: torch.device) -> Planned:
    """The plan of a run on so many ranks, each with a device like this one."""
    network = config.network.sizes()
    trained = stages.trained(network, config.stage, config.trained)
    data_ranks = ranks // config.parallel.context
    refusals = list(_undivided(config, ranks, data_ranks))
    lines = list(trained.lines())
    lines += _frozen(trained)

    own = config.batch // max(data_ranks, 1) or 1
    micro = min(config.micro or own, own)
    shape = cost.shape_of(network, trained, micro)
    masked = not demands.fills(index, network)
    parts = rank_memory(config, network, trained, ranks, shape, pieces=-(-own // micro), masked=masked)
    needed, room = sum(parts.values()), int(config.observe.device_gb * 1e9) or devices.total_memory(device)
    lines.append(f"memory of a rank, reckoned ({ranks} ranks, {micro} of its {own} samples at once): {size(needed)}")
    lines += [f"  {name}: {size(count)}" for name, count in parts.items() if count]
    if room is None:
        lines.append("  what a device holds is not known here; observe.device_gb=… says it")
    else:
        lines.append(f"  of {size(room)}" + ("" if config.observe.device_gb else f" on {_name(device)}"))
        if needed > FULL * room:
            refusals.append(_too_much(config, needed, room, parts))

    whole = cost.shape_of(network, trained, config.batch)
    learnt = with_adapters(network, trained, config.lora)
    if config.lora.rank:
        count = sum(learnt.sizes[name] for name in learnt.names)
        lines.append(f"adapters of rank {config.lora.rank} instead: {count / 1e6:.3f} M")
    work = cost.work(network, learnt, whole, config.parallel.recompute)
    peak = devices.peak(device, config.parallel.dtype, config.observe.device_tflops)
    lines += _time(config, work, peak, ranks)
    lines += _samples(config, network, index)
    refusals += _shards(config, network, index)
    return Planned(tuple(lines), parts, tuple(refusals))


def rank_memory(
    config: TrainConfig,
    network: ModelConfig,
    stage: Trained,
    ranks: int,
    shape: Shape,
    pieces: int = 1,
    masked: bool = False,
) -> dict[str, int]:
    """Bytes that one rank holds at its fullest, by what they are for.

    shape: of the samples that it computes at once; pieces: how many times it does so in a step. masked: whether texts
    are padded.
    """
    how, trained = config.parallel, with_adapters(network, stage, config.lora)
    activations = memory.activations(network, trained, shape, how.compute, prepared(config, stage), masked)
    return weights_memory(config, trained, ranks, pieces) | {
        "activations": round(activations / how.context),
        "samples": sum(one.nbytes for one in _given(network, shape, how, masked).values()),
        "positions": sum(one.nbytes for one in build(network, "meta").buffers()),
    }


def weights_memory(config: TrainConfig, trained: Trained, ranks: int, pieces: int = 1) -> dict[str, int]:
    """Bytes of parameters on one rank, and of what there is for each of them; as in `rank_memory`."""
    how, names = config.parallel, set(trained.names)
    compute = torch.empty(0, dtype=how.compute).element_size()
    counted = sum(trained.sizes[name] for name in names)
    frozen = sum(trained.sizes.values()) - counted
    sharded = ranks > 1 or how.compute != torch.float32  # else the network is held as it is
    sharers = {"fsdp": ranks, "hsdp": ranks // how.replicas, "none": 1}[how.shard]
    groups: Counter[str] = Counter()
    learnt: Counter[str] = Counter()
    for name, count in trained.sizes.items():
        groups[_group(name)] += count
        learnt[_group(name)] += count if name in names else 0
    rest = groups.pop("", 0)
    largest = max(groups.values(), default=0)
    # A block's gradients are shared out as soon as they are there; those of a further piece are then added to the rest.
    most = max(learnt.values(), default=0)
    waiting = (compute + _MASTER) * most + (_MASTER * most / sharers if pieces > 1 else 0)
    parts = {
        "trained parameters": _MASTER * counted / sharers,
        "frozen parameters": compute * frozen / sharers,
        "gradients": _MASTER * counted / sharers,
        "optimizer": 2 * _MASTER * counted / sharers,
        "average": _MASTER * counted / sharers if config.state.ema else 0,
        "gathered": compute * (_GATHERED * largest + rest) if sharded else 0,
        "gradients gathered": waiting if sharded else 0,
    }
    return {name: round(count) for name, count in parts.items()}


def _given(network: ModelConfig, shape: Shape, how: ParallelConfig, masked: bool) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return memory.inputs(network, shape, how.compute, masked)


def prepared(config: TrainConfig, stage: Trained) -> memory.Prepare:
    """What the trainer does to a network before it is trained: adapters, and recomputation."""

    def prepare(portrait: Portrait) -> None:
        if config.lora.rank:
            lora.adapt(portrait, config.lora, set(stage.names))
        parallel.recompute(portrait, config.parallel.recompute)

    return prepare


def with_adapters(network: ModelConfig, stage: Trained, adapters: LoraConfig) -> Trained:
    """What is trained where adapters take the place of weights."""
    if not adapters.rank:
        return stage
    portrait = build(network, "meta")
    names = lora.adapt(portrait, adapters, set(stage.names))
    sizes = {name: parameter.numel() for name, parameter in portrait.named_parameters()}
    return dataclasses.replace(stage, sizes=sizes, names=tuple(names))


def _group(name: str) -> str:
    """The group of parameters that FSDP2 gathers together; what is in none: empty."""
    module = ".".join(name.split(".")[:3])
    if ".transformer_blocks." in name:
        return module
    return "denoiser.audio_tokens" if name.startswith("denoiser.audio_tokens.") else ""


def _frozen(trained: Trained) -> list[str]:
    chosen = set(trained.names)
    counts: Counter[str] = Counter()
    for name, count in trained.sizes.items():
        counts[cost.part_of(name)] += count if name not in chosen else 0
    lines = [f"  {part}: {count / 1e6:.3f} M" for part, count in counts.items() if count]
    return [f"frozen: {sum(counts.values()) / 1e6:.3f} M", *lines] if lines else []


def _undivided(config: TrainConfig, ranks: int, data_ranks: int) -> list[str]:
    """Ranks and samples that do not go together."""
    parallel_ = config.parallel
    for name, count in (("replicas", parallel_.replicas), ("context", parallel_.context)):
        if ranks % count:
            return [f"parallel.{name}={count} does not divide the {ranks} ranks"]
    if config.batch % data_ranks:
        return [f"batch={config.batch} does not divide among {data_ranks} ranks with samples of their own"]
    return []


def _too_much(config: TrainConfig, needed: int, room: int, parts: Mapping[str, int]) -> str:
    most = max(parts, key=lambda name: parts[name])
    cures = [
        ("micro=1", "micro", config.micro == 1),
        ("parallel.recompute=full", "recompute", config.parallel.recompute == "full"),
        ("parallel.dtype=bfloat16", "dtype", config.parallel.dtype == "bfloat16"),
        ("more ranks with parallel.shard=fsdp", "ranks", False),
        ("a larger parallel.context", "context", most != "activations"),
    ]
    helps = ", ".join(cure for cure, _, has in cures if not has)
    return (
        f"a rank needs {size(needed)}, most of it for {most}, and of {size(room)} a run may take "
        f"{size(FULL * room)}; what makes it less: {helps}"
    )


def _time(config: TrainConfig, work: Work, peak: Peak | None, ranks: int) -> list[str]:
    """Operations, and the time they take at a stated share of what the devices could do."""
    lines = [
        f"a step: {work.tokens:,} tokens, {work.model / 1e12:.4g} TFLOP of the model, "
        f"{work.hardware / 1e12:.4g} with what is computed again (parallel.recompute={config.parallel.recompute})"
    ]
    if peak is None:
        return [*lines, "  time: not known, for what the device does is not known; observe.device_tflops=… says it"]
    share = config.observe.assumed_mfu
    seconds = work.model / (ranks * peak.flops * share)
    source = {"stated": "as stated", "table": "by its name", "measured": "as a product of matrices was timed here"}
    return [
        *lines,
        f"  {seconds:.3g} s a step, {_hours(seconds * config.steps)} for {config.steps:,} steps, ASSUMING that {ranks} "
        f"devices of {peak.flops / 1e12:.4g} TFLOP/s ({source[peak.source]}) are used to {share:.0%} "
        "(observe.assumed_mfu)",
    ]


def _samples(config: TrainConfig, network: ModelConfig, index: Index) -> list[str]:
    asked = config.steps * config.batch
    room = f"{network.text_length} tokens"
    masked = f"texts are padded to {room} and masked, which CUDA's flash kernels of attention do not take"
    whole = f"every text fills its {room}: attention needs no mask"
    return [
        f"{index.place}: {len(index):,} samples in {len(index.shards):,} shards, {size(index.bytes)}; "
        f"{config.steps:,} steps of {config.batch} go through them {asked / len(index):.3g} times",
        whole if demands.fills(index, network) else masked,
    ]


def _shards(config: TrainConfig, network: ModelConfig, index: Index) -> list[str]:
    """What keeps the shards from being trained on."""
    refusals = []
    try:
        demands.check(index, network, config.data.latents == "encode")
    except DataError as error:
        refusals.append(str(error))
    wrong = shards.missing(index)
    if wrong and not config.data.incomplete:
        name, what = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} shards more" if len(wrong) > 1 else ""
        refusals.append(f"{index.place}: {name} {what}{more}; copy them again, or data.incomplete=true")
    return refusals


def _device(config: TrainConfig) -> torch.device:
    kind = config.parallel.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "parallel.device=cuda: there is none here; observe.device_gb and .device_tflops describe one"
        )
    return torch.device(kind)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine, free now"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours" if seconds < 72 * 3600 else f"{seconds / 86400:.3g} days"
