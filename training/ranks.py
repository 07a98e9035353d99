"""The ranks of a run: which one this is, whom it shares what with, and how they agree.

A rank computes the samples of its data rank; ranks of one context share samples and split their tokens. What is
gathered is gathered in an order that does not depend on how many ranks there are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from model.settings import SettingsError, option

SHARDING = ("fsdp", "hsdp", "none")
RECOMPUTED = ("none", "selective", "full")
_BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


@dataclass(frozen=True)
class ParallelConfig:
    """Section `parallel` of the settings: how a network is spread over ranks. None of it changes what is learnt."""

    shard: str = option(
        "fsdp", "fsdp: each rank holds its share of the network; hsdp: a few ranks together hold one; none", SHARDING
    )
    replicas: int = option(1, "shard=hsdp: how many whole networks there are; a node each, say")
    context: int = option(1, "ranks that share a sample and split its picture tokens (and the attention heads)")
    recompute: str = option(
        "selective",
        "what the backward pass computes again instead of keeping it: all but attention (selective), full, none",
        RECOMPUTED,
    )
    compile: bool = option(False, "torch.compile, block by block")
    dtype: str = option("bfloat16", "what is computed in; trained weights stay float32", ("bfloat16", "float32"))
    device: str = option("", "cuda or cpu; empty: cuda where there is one", ("", "cuda", "cpu"))
    timeout_s: float = option(600.0, "how long a rank waits for another before it gives up")

    def check(self) -> None:
        """Raises SettingsError where values make no sense or do not go together."""
        if self.shard == "hsdp" and self.replicas < 2:
            raise SettingsError("parallel.shard=hsdp needs parallel.replicas of at least 2; one network is shard=fsdp")
        if self.shard != "hsdp" and self.replicas != 1:
            raise SettingsError(f"parallel.replicas={self.replicas} is of parallel.shard=hsdp alone")
        if self.context < 1:
            raise SettingsError(f"parallel.context={self.context}: at least 1")
        if self.timeout_s <= 0:
            raise SettingsError(f"parallel.timeout_s={self.timeout_s}: more than 0")

    @property
    def compute(self) -> torch.dtype:
        """The type that is computed in."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16


@dataclass(frozen=True)
class World:
    """The ranks of a run, seen from one of them.

    mesh: over which parameters are sharded, (shard,) or (replica, shard); None: one rank that needs no sharding.
    context_group: ranks that share this one's samples. control: all ranks, for words on the CPU. background: the same
    for a thread that writes checkpoints, so that its words do not mix with the main thread's.
    """

    rank: int
    ranks: int
    device: torch.device
    mesh: DeviceMesh | None = None
    context: int = 1
    context_group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        return self.rank // self.context

    @property
    def data_ranks(self) -> int:
        return self.ranks // self.context

    def everyone(self, values_B: torch.Tensor, places: Sequence[int], total: int) -> torch.Tensor:
        """The values of all samples of a step, in global order: [total], float64, the same on every rank.

        values_B: of this rank's samples, which stand at `places` of the step. A sum over the result does not depend on
        who computed what: adding the zeros of other ranks changes no value.
        """
        table = torch.zeros(total, dtype=torch.float64, device=values_B.device)
        if self.rank % self.context == 0:  # its context's other ranks have the same
            table[torch.as_tensor(list(places), dtype=torch.int64, device=table.device)] = values_B.detach().double()
        if self.ranks > 1:
            dist.all_reduce(table)
        return table

    def anyone(self, flag: bool) -> bool:
        """Whether the flag is up on any rank: the same answer on every rank."""
        if self.ranks == 1:
            return flag
        said = torch.tensor(int(flag))
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self.control)
        return bool(said)

    def told(self, number: int) -> int:
        """Rank 0's number."""
        if self.ranks == 1:
            return number
        said = torch.tensor(number, dtype=torch.int64)
        dist.broadcast(said, src=0, group=self.control)
        return int(said)

    def who(self, flag: bool, group: dist.ProcessGroup | None = None) -> list[int]:
        """The ranks on which the flag is up; group: `background`, from a thread."""
        if self.ranks == 1:
            return [0] if flag else []
        said = torch.zeros(self.ranks, dtype=torch.int64)
        said[self.rank] = int(flag)
        dist.all_reduce(said, group=group or self.control)
        return said.nonzero().flatten().tolist()

    def close(self) -> None:
        """Leave the others."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join(config: ParallelConfig) -> World:
    """Find the other ranks, as torchrun's environment names them; without it this is the only one.

    One rank that computes in float32 needs nobody and nothing; else FSDP2 holds the parameters, on one rank too, for it
    also keeps float32 masters of what is computed in bfloat16. Raises SettingsError where ranks do not divide.
    """
    config.check()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    replicas = {"fsdp": 1, "hsdp": config.replicas, "none": ranks}[config.shard]
    for name, count in (("replicas", replicas), ("context", config.context)):
        if ranks % count:
            raise SettingsError(f"parallel.{name}={count} does not divide the {ranks} ranks")
    device = _device(config)
    if ranks == 1 and config.compute == torch.float32:
        return World(rank, ranks, device)
    limit = timedelta(seconds=config.timeout_s)
    if not dist.is_initialized():
        bound = device if device.type == "cuda" else None
        alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if ranks == 1 else {}
        dist.init_process_group(_BACKENDS[device.type], timeout=limit, device_id=bound, **alone)
    mesh = _mesh(device.type, {"replica": replicas, "shard": ranks // replicas}, limit)
    group = control = background = None
    if config.context > 1:
        sizes = {"data": ranks // config.context, "context": config.context}
        group = _mesh(device.type, sizes, limit).get_group("context")
    if ranks > 1:
        control, background = (dist.new_group(backend="gloo", timeout=limit) for _ in range(2))
    return World(rank, ranks, device, mesh, config.context, group, control, background)


def _device(config: ParallelConfig) -> torch.device:
    kind = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if own >= torch.cuda.device_count():
        raise SettingsError(
            f"rank {own} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
            "give torchrun as many --nproc_per_node, or set parallel.device=cpu"
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def _mesh(kind: str, sizes: dict[str, int], limit: timedelta) -> DeviceMesh:
    """A mesh of these sizes over all ranks, whose groups wait no longer than `limit`; a first size of 1 is left out."""
    names = tuple(name for place, (name, size) in enumerate(sizes.items()) if size > 1 or place == len(sizes) - 1)
    mesh = init_device_mesh(kind, tuple(sizes[name] for name in names), mesh_dim_names=names)
    for name in names:
        dist.distributed_c10d._set_pg_timeout(limit, mesh.get_group(name))  # a mesh's groups have the default otherwise
    return mesh
