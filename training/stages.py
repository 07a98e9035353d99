"""Which parameters a stage trains: declared by patterns of names, and checked against the network.

A pattern is fnmatch's (`*` stands for any text, dots too); one that begins with `!` takes names out again. Stage 1
(`identity`) trains the attention of both networks and the face's modules, stage 2 (`audio`) the sound's modules alone
(paper, Sec. 3.2 and 4.1); `all` trains everything at once, from a fresh start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from model import portrait
from model.config import ModelConfig
from model.layouts import module_of
from model.settings import SettingsError

STAGES = ("identity", "audio", "all")


class StageError(Exception):
    """What is to be trained does not get a gradient: which parameters, and what to do."""


@dataclass(frozen=True)
class Trained:
    """What is trained of a network.

    sizes: how many numbers each of its parameters has. names: those that are trained, in the network's order; the rest
    is frozen. idle: taken out because the output does not depend on them. audio: whether the network is given sound.
    """

    stage: str
    sizes: Mapping[str, int]
    names: tuple[str, ...]
    idle: tuple[str, ...]
    audio: bool

    def lines(self) -> list[str]:
        """The set with its counts by module, for people."""
        chosen = sum(self.sizes[name] for name in self.names)
        lines = [f"stage {self.stage}: trains {_millions(chosen)} of {_millions(sum(self.sizes.values()))} parameters"]
        counts: dict[str, list[int]] = {}
        for name in self.names:
            counts.setdefault(module_of(name), []).append(self.sizes[name])
        lines += [f"  {module}: {len(sizes)} tensors, {_millions(sum(sizes))}" for module, sizes in counts.items()]
        if self.idle:
            lines.append(f"  left out, for nothing depends on them: {len(self.idle)} tensors of the reference network")
        return lines


def trained(network: ModelConfig, stage: str, patterns: Sequence[str] = ()) -> Trained:
    """What a stage trains of a network; patterns: instead of the stage's own.

    Raises SettingsError for a pattern that matches nothing, and where nothing is left.
    """
    if stage not in STAGES:
        raise SettingsError(f"stage={stage!r}: there is {', '.join(STAGES)}")
    whole = portrait.build(network, "meta")
    sizes = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    idle = set(whole.idle_parameters())
    asked = matched(sizes, list(patterns) or patterns_of(stage, network))
    names = tuple(name for name in asked if name not in idle)
    if not names:
        raise SettingsError(f"stage {stage}: all that its patterns name is idle: {', '.join(asked[:3])} …")
    left_out = tuple(name for name in asked if name in idle)
    return Trained(stage, sizes, names, left_out, network.has_audio and stage != "identity")


def patterns_of(stage: str, network: ModelConfig) -> list[str]:
    """The stage's patterns for this variant of the network: each of them has something to match."""
    if stage == "all":
        return ["*"]
    if stage == "audio":
        if not network.has_audio:
            raise SettingsError("stage=audio: the network has no part that listens (audio.injection=none)")
        place = {
            "cross": "transformer_blocks.*.audio_attention",
            "self": "transformer_blocks.*.attn1.audio_keys",
            "adaln": "transformer_blocks.*.audio_adaptive",
            "adaln_zero": "transformer_blocks.*.audio_adaptive",
        }[network.audio.injection]
        return ["denoiser.audio_tokens.*", f"denoiser.{place}.*"]
    patterns = ["denoiser.transformer_blocks.*.attn1.*"]
    if network.audio.injection == "self":
        patterns.append("!denoiser.transformer_blocks.*.attn1.audio_keys.*")
    if network.has_reference:
        patterns.append("reference.transformer_blocks.*.attn1.*")
    if network.has_face:
        patterns.append("denoiser.face_tokens.*")
    if network.has_face_attention:
        patterns.append("denoiser.transformer_blocks.*.face_attention.*")
    if network.identity == "face_norm":
        patterns.append("denoiser.transformer_blocks.*.face_adaptive.*")
    return patterns


def matched(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that the patterns choose, in their own order. Raises SettingsError for a pattern without a match."""
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern.removeprefix("!"))}
        if not found:
            raise SettingsError(f"the pattern {pattern!r} matches no parameter; they are called like {names[0]}")
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    return [name for name in names if name in chosen]


def without_gradient(network: nn.Module, names: Iterable[str]) -> list[str]:
    """Which of these parameters got no gradient from the last backward pass."""
    parameters = dict(network.named_parameters())
    return [name for name in names if parameters[name].grad is None]


def _millions(count: int) -> str:
    return f"{count / 1e6:.3f} M"
