"""What a training step holds, found out before it is run: forward and backward on tensors that have a size alone.

The network's own code runs, with its gradients and with what is computed twice to save memory, so every variant and
every setting is met. Kernels that compilation fuses hold less than is found here, and a kernel's own workspace is not
seen.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.codecs import frames_for
from model.config import ModelConfig
from model.flops import Shape
from model.portrait import Portrait, build
from training.stages import Trained

Prepare = Callable[[Portrait], object]
"""What is done to a network before it is trained."""
_FEW = 6  # blocks that are run as they are
_SLICES = 3, 5  # blocks: what each further one adds is the same


def activations(
    network: ModelConfig,
    trained: Trained,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    prepare: Prepare = lambda portrait: None,
    masked: bool = False,
) -> int:
    """Bytes that forward and backward hold at their fullest, beyond parameters, their gradients and what is given.

    prepare: what is done to the network before it is trained (recomputation, say). masked: as in `inputs`. Deep
    networks are reckoned from shallow ones of three and five blocks.
    """
    if network.layers <= _FEW:
        return _held(network, trained, shape, dtype, prepare, masked)
    slices = (dataclasses.replace(network, layers=layers) for layers in _SLICES)
    few, more = (_held(one, trained, shape, dtype, prepare, masked) for one in slices)
    return few + (more - few) * (network.layers - _SLICES[0]) // (_SLICES[1] - _SLICES[0])


def _held(
    network: ModelConfig,
    trained: Trained,
    shape: Shape,
    dtype: torch.dtype,
    prepare: Prepare,
    masked: bool,
) -> int:
    names = set(trained.names)
    with FakeTensorMode():
        portrait = build(network, "cpu", dtype)
        prepare(portrait)
        for name, parameter in portrait.named_parameters():
            parameter.requires_grad_(name in names)
            if name in names:
                parameter.grad = torch.empty_like(parameter)
        given = inputs(network, shape, dtype, masked)
        target = torch.empty(given["noisy_BFCHW"].shape)

        def step() -> None:
            error = portrait(**given).float() - target
            error.square().flatten(1).mean().backward()

        known = [*portrait.parameters(), *portrait.buffers(), target, *given.values()]
        gradients = [parameter.grad for parameter in portrait.parameters() if parameter.grad is not None]
        return most_held(step, [*known, *gradients])


def inputs(network: ModelConfig, shape: Shape, dtype: torch.dtype, masked: bool = False) -> dict[str, Any]:
    """What a network is given in a step of this shape, as its arguments; the numbers mean nothing.

    masked: texts do not fill their room, so that a mask says what of them is real.
    """
    batch, picture = shape.batch, (network.latent_channels, shape.height, shape.width)
    given: dict[str, Any] = {
        "noisy_BFCHW": torch.zeros(batch, shape.frames, *picture, dtype=dtype),
        "timestep_B": torch.zeros(batch, dtype=torch.int64),
        "text_BSD": torch.zeros(batch, shape.text, network.text_dim, dtype=dtype),
    }
    if masked:
        given["text_mask_BS"] = torch.ones(batch, shape.text, dtype=torch.bool)
    if network.has_reference and shape.reference:
        given["reference_BCHW"] = torch.zeros(batch, *picture, dtype=dtype)
    if network.condition_channels:
        motion = (network.condition_channels, shape.height, shape.width)
        given["motion_BFCHW"] = torch.zeros(batch, shape.frames, *motion, dtype=dtype)
    if network.has_face and shape.face:
        given["face_BC"] = torch.zeros(batch, network.face_dim, dtype=dtype)
    if network.has_audio and shape.audio:
        audio = network.audio
        window = (frames_for(shape.frames), audio.span, audio.layers, audio.dim)
        given["audio_BTWNC"] = torch.zeros(batch, *window, dtype=dtype)
    return given


def most_held(step: Callable[[], object], known: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of tensors that live at the fullest moment of a step; known: those that were there before."""
    with Ledger(known) as ledger:
        step()
    return ledger.most


class Ledger(TorchDispatchMode):
    """Counts the memory of the tensors that operations make, as long as they live.

    held, most: bytes, now and at the fullest moment. Views share what they are views of.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.held = self.most = 0
        self._alive: dict[int, weakref.ref] = {}
        for tensor in known:
            self._enter(tensor, counts=False)

    def __torch_dispatch__(
        self, func: Any, types: Collection[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._enter(leaf, counts=True)
        return made

    def _enter(self, tensor: torch.Tensor, counts: bool) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return
        size = storage.nbytes() if counts else 0

        def leave(_: object) -> None:
            self.held -= size
            self._alive.pop(address, None)

        self._alive[address] = weakref.ref(storage, leave)
        self.held += size
        self.most = max(self.most, self.held)
