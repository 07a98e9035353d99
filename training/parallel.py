"""The network on many ranks: sharded, in mixed precision, recomputing what is not worth keeping, compiled if asked.

The modules themselves know nothing of it: everything is put on from outside, block by block, and parameters keep their
names. Gradients of the ranks add up: a rank's loss is its samples' share of the whole step's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model import checkpoint as weights
from model import portrait as plain
from model.config import ModelConfig
from model.portrait import Portrait
from training import context, draws, lora
from training.lora import LoraConfig
from training.ranks import ParallelConfig, World, join
from training.shares import local, put, settle, trainable

__all__ = [
    "ParallelConfig",
    "World",
    "accumulate",
    "build",
    "gradient_norm",
    "join",
    "load",
    "recompute",
    "shorten_gradients",
    "trainable",
]

_ATTENTION = frozenset(
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}").default
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
)

_PROGRAMS = 64


def build(
    network: ModelConfig,
    config: ParallelConfig,
    world: World,
    trained: Collection[str],
    seed: int | None,
    adapters: LoraConfig | None = None,
) -> Portrait:
    """A fresh network on all ranks: the same numbers on however many there are, and no rank ever holds it whole.

    trained: names of the parameters to train, float32; the others are frozen, and held in the type that is computed in.
    seed: of the numbers; None: they mean nothing until `load` or a checkpoint gives others, which spares minutes.
    adapters: of rank above 0, low-rank adapters of the linear layers among `trained` are trained instead.
    Raises ValueError for a name that is none, SettingsError for adapters of nothing.
    """
    portrait = plain.build(network, "meta")
    chosen = set(trained)
    if unknown := chosen - {name for name, _ in portrait.named_parameters()}:
        raise ValueError(f"not a parameter of this network: {min(unknown)}")
    if adapters is not None and adapters.rank:
        chosen = set(lora.adapt(portrait, adapters, chosen))
    _freeze(portrait, chosen, config.compute)
    if world.context_group is not None:
        context.split(portrait, world.context_group)
    recompute(portrait, config.recompute)
    if config.compile:
        _compile(_blocks(portrait))
    if portrait.reference is not None and not trainable(portrait.reference):
        portrait.reference.forward = torch.no_grad()(portrait.reference.forward)  # type: ignore[method-assign]
    if world.mesh is not None:
        _shard(portrait, config, world)
    portrait.to_empty(device=world.device)
    if seed is not None:
        _start(portrait, seed)
    return portrait


def load(portrait: Portrait, source: str | Path, fresh: Sequence[str] = (), seed: int | None = None) -> weights.Loaded:
    """Give the network the weights at `source`, of any layout; each rank takes its rows out of the mapped files.

    fresh: patterns of names that the source need not have: these, and adapters, start as a network built with `seed`
    does, or keep what they have (None). Raises CheckpointError.
    """
    whole = plain.build(portrait.config, "meta")
    loaded = weights.load(whole, source, fresh=fresh)
    settle(portrait)
    own = _tensors(portrait)
    for name, tensor in whole.state_dict().items():
        if name not in loaded.fresh:
            put(own[name], tensor)
    if seed is not None:
        _start(portrait, seed, set(loaded.fresh))
    return loaded


def accumulate(portrait: Portrait, last: bool) -> None:
    """To be called before the backward pass of each of a step's pieces; last: whether it is the last one.

    Every pass shares its gradients out among the ranks, block by block, so that a rank holds its own rows of their sum
    and of one block alone the whole. Replicas (shard=hsdp, none) add up their rows once, after the last.
    """
    if isinstance(portrait, FSDPModule):
        portrait.set_requires_all_reduce(last)


def gradient_norm(portrait: nn.Module, world: World) -> torch.Tensor:
    """The length of the gradient of all that is trained: float64 [], the same on all ranks; NaN or inf as it is."""
    gradients = [local(one.grad) if one.grad is not None else None for one in trainable(portrait).values()]
    found = [gradient for gradient in gradients if gradient is not None]
    squares = torch.zeros(len(gradients), dtype=torch.float64, device=world.device)
    if found:
        places = [place for place, gradient in enumerate(gradients) if gradient is not None]
        norms = torch.stack(torch._foreach_norm(found, 2, dtype=torch.float64))
        squares[torch.tensor(places, device=world.device)] = norms.square()
    if world.mesh is not None:
        dist.all_reduce(squares, group=world.mesh.get_group(world.mesh.ndim - 1))
    return squares.sum().sqrt()


def shorten_gradients(portrait: nn.Module, norm: torch.Tensor, longest: float) -> None:
    """Shorten the gradient, whose length is `norm`, to `longest` where it is longer."""
    gradients = [local(one.grad) for one in trainable(portrait).values() if one.grad is not None]
    factor = (longest / norm.clamp(min=longest)).float()
    torch._foreach_mul_(gradients, factor)


def _blocks(portrait: Portrait) -> list[nn.Module]:
    networks = [portrait.denoiser, portrait.reference]
    return [block for network in networks if network is not None for block in network.transformer_blocks]


def _tensors(portrait: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(portrait.named_parameters()), **dict(portrait.named_buffers())}


def _freeze(portrait: nn.Module, trained: Collection[str], frozen_type: torch.dtype) -> None:
    """Freeze all that is not trained; it needs no master in float32."""
    for name, parameter in list(portrait.named_parameters()):
        if name not in trained:
            owner, _, leaf = name.rpartition(".")
            frozen = nn.Parameter(parameter.detach().to(frozen_type), requires_grad=False)
            setattr(portrait.get_submodule(owner), leaf, frozen)


def recompute(portrait: Portrait, how: str) -> None:
    """Let each block's backward pass compute its forward pass again instead of keeping it. how: one of RECOMPUTED."""
    if how == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in a block is random
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _kept)
    for block in _blocks(portrait):
        _recomputed(block, options)


def _recomputed(block: nn.Module, options: dict[str, Any]) -> None:
    forward = block.forward

    def again(*given: Any, **named: Any) -> Any:
        return checkpoint(forward, *given, **options, **named)

    block.forward = again


def _kept(_context: Any, operation: Any, *arguments: Any, **_options: Any) -> CheckpointPolicy:
    """Keep what self-attention found: it is most of a long video's work in little memory.

    Attention to the few tokens of face and sound costs next to nothing to repeat, and its output is as large.
    """
    if operation in _ATTENTION and arguments[1].shape[-2] >= arguments[0].shape[-2]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _compile(blocks: Sequence[nn.Module]) -> None:
    """Compile what blocks compute, each kind of them once; FSDP2's hooks stay outside."""
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)
    # One program for each: whether inputs need gradients differs in the first blocks, sizes do in validation. With more
    # of them than the limit, which is 8, torch would go on without compiling.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _PROGRAMS)


def _shard(portrait: Portrait, config: ParallelConfig, world: World) -> None:
    """Shard by FSDP2: a group of parameters for each block, gathered when it is its turn, and one for the rest."""
    policy = MixedPrecisionPolicy(
        param_dtype=config.compute,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotary tables stay float32, masks boolean; the rest comes in the right type
    )
    groups = _blocks(portrait)
    if portrait.denoiser.audio_tokens is not None:  # as released it is as large as ten blocks
        groups.append(portrait.denoiser.audio_tokens)
    for module in groups:
        fully_shard(module, mesh=world.mesh, mp_policy=policy)
    fully_shard(portrait, mesh=world.mesh, mp_policy=policy, reshard_after_forward=False)
    for module in [*groups, portrait]:
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # gradients add up
        module.set_force_sum_reduction_for_comms(True)
    # A block's outputs are views, which only matters to code that writes into them, and none does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)


def _start(portrait: Portrait, seed: int, only: Collection[str] | None = None) -> None:
    """Fill a network with its start, module by module, each drawn from (seed, its name) alone.

    only: names of what to fill, beside adapters; None: everything.
    """
    own = _tensors(portrait)
    for name, module in plain.build(portrait.config, "meta").named_modules():
        leaves = [leaf for leaf, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        wanted = [leaf for leaf in leaves if only is None or f"{name}.{leaf}" in only]
        if not wanted:
            continue
        with torch.random.fork_rng(devices=[]):  # how a module starts is its own affair; it draws from the default
            torch.default_generator.manual_seed(draws.generator(seed, "start", name).initial_seed())
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
        for leaf in wanted:
            put(own[f"{name}.{leaf}"], getattr(module, leaf))
        module.to_empty(device="meta", recurse=False)
    for name, tensor in own.items():
        if name.endswith((lora.DOWN, lora.UP)):
            leaf = name.rpartition(".")[2]
            put(tensor, lora.start(leaf, tensor.shape, draws.generator(seed, "start", name)))
