"""A rank's share of a tensor: FSDP2 cuts parameters into rows, one run of rows a rank.

A tensor that is not sharded is one share, the whole: everything here takes both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Share:
    """The rows of a tensor that this rank holds.

    values: these rows, over the tensor's own memory. rows: which they are; a tensor without dimensions is row 0.
    shape: of the whole tensor. first: whether this rank is the first of those that hold these rows.
    """

    values: torch.Tensor
    rows: range
    shape: tuple[int, ...]
    first: bool

    def fill(self, values: torch.Tensor) -> None:
        """Give these rows other values, which may be of another type or on another device."""
        with torch.no_grad():
            self.values.copy_(values)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows, as a plain tensor over the same memory; of a replicated or plain tensor all rows."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def share(tensor: torch.Tensor, values: torch.Tensor | None = None) -> Share:
    """This rank's share of a tensor; values: of something that is cut as the tensor is, instead of its own.

    Rows are dealt out as torch.chunk does, in runs of one length; the last ranks may have fewer or none.
    """
    values, shape = local(tensor) if values is None else values, tuple(tensor.shape)
    count = shape[0] if shape else 1
    if not isinstance(tensor, DTensor):
        return Share(values, range(count), shape, not dist.is_initialized() or dist.get_rank() == 0)
    mesh, sharded = tensor.device_mesh, tensor.device_mesh.ndim - 1  # (shard,) or (replica, shard)
    length = -(-count // mesh.size(sharded))
    start = min(mesh.get_local_rank(sharded) * length, count)
    return Share(values, range(start, min(start + length, count)), shape, not sharded or mesh.get_local_rank(0) == 0)


def put(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Give a tensor the values of `whole`, of the same shape: each rank takes its own rows of it."""
    own = share(tensor)
    own.fill(whole[own.rows.start : own.rows.stop] if whole.ndim else whole)


def trainable(portrait: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name, in the network's order."""
    return {name: parameter for name, parameter in portrait.named_parameters() if parameter.requires_grad}


def settle(portrait: nn.Module) -> None:
    """Drop what was gathered of the parameters, so that the network has this rank's shares, and gathers anew.

    To be called before parameters are looked at or written to from outside: without a backward pass FSDP2 keeps some of
    them gathered, and would go on with the old values.
    """
    for module in portrait.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
