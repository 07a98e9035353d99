"""Everything that training accepts, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from model.config import PRESETS, ModelConfig, preset
from model.settings import Setting, SettingsError, describe, option, required
from training.data import DataConfig
from training.lora import LoraConfig
from training.objective import ObjectiveConfig
from training.observe import ObserveConfig
from training.parallel import ParallelConfig
from training.stages import STAGES
from training.state import StateConfig
from training.validation import ValidationConfig

NEUTRAL = (
    "data.shards",  # it may have moved; whether it is the same is told by what is in it
    "data.workers",
    "data.read_ahead",
    "data.prefetch",
    "data.incomplete",  # it allows; what then differs is said by name
    "data.timeout_s",
    "observe.*",
    "output",
    *(f"parallel.{name}" for name in ("shard", "replicas", "context", "recompute", "compile", "device", "timeout_s")),
    "micro",
    "optimizer.fused",
    "plan",
    "resume",
    "changed",
    "steps",
    "validation.*",
    *(f"state.{name}" for name in ("every", "keep_last", "keep_every", "asynchronous")),
)
"""Settings that may change when training goes on: nothing but rounding and speed depends on them."""


@dataclass(frozen=True)
class NetworkConfig:
    """Section `network`: the sizes of what is trained."""

    preset: str = option("tiny", "sizes to start from", tuple(PRESETS))
    changes: list[str] = option([], "settings of model/config.py beside them: [audio.injection=self, layers=6]")

    def sizes(self) -> ModelConfig:
        """The network. Raises SettingsError for changes that do not exist or do not go together."""
        known = dict(describe(ModelConfig))
        values: dict[str, Any] = {}
        for change in self.changes:
            key, equals, text = change.partition("=")
            if not equals:
                raise SettingsError(f"network.changes: {change!r} is not of the form name=value")
            values[key] = _value(key, text, known.get(key))
        try:
            return preset(self.preset, **values)
        except SettingsError as error:
            raise SettingsError(f"network: {str(error).removeprefix('model: ')}") from error


@dataclass(frozen=True)
class OptimizerConfig:
    """Section `optimizer`: AdamW with a constant learning rate behind a warm-up."""

    lr: float = option(1e-5, "learning rate")
    warmup: int = option(100, "steps over which the learning rate rises to it, evenly")
    beta1: float = option(0.9, "AdamW's memory of gradients")
    beta2: float = option(0.95, "AdamW's memory of their squares")
    eps: float = option(1e-8, "AdamW's epsilon")
    weight_decay: float = option(1e-4, "AdamW's weight decay, on all that is trained")
    clip: float = option(1.0, "longest gradient; a longer one is shortened to it (0: as it is)")
    fused: bool = option(True, "one kernel for all parameters")

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""
        for name in ("lr", "warmup", "eps", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise SettingsError(f"optimizer.{name}={getattr(self, name)}: at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"optimizer.{name}={getattr(self, name)}: from 0 to below 1")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / max(self.warmup, 1))


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training/train.py."""

    output: str = required("folder of checkpoints, logs, validation clips, and at last of the trained network")
    stage: str = option("all", "what is trained: identity (stage 1), audio (stage 2) or all", STAGES)
    trained: list[str] = option([], "patterns of parameter names, instead of the stage's: [denoiser.*, !*.norm1.*]")
    initial: str = option("", "weights to start from: a checkpoint of ours, CogVideoX's or Hallo3's; empty: random")
    fresh: list[str] = option([], "patterns of names that `initial` need not have: [*.audio_*]; they are made new")
    steps: int = option(20_000, "steps to be done in all")
    batch: int = option(8, "samples of a step, over all ranks")
    micro: int = option(1, "samples that a rank computes at once; 0: all of its own")
    seed: int = option(0, "of the order of samples and of all that is drawn")
    resume: bool = option(True, "go on from the newest checkpoint in `output`; false: there must be none")
    changed: bool = option(False, "go on although settings differ that change the result")
    plan: bool = option(False, "only say what it will take: parameters, memory, time, samples")
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    state: StateConfig = field(default_factory=StateConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    @property
    def folder(self) -> Path:
        return Path(self.output)

    def check(self) -> None:
        """Raises SettingsError where values make no sense."""
        for name, least in (("steps", 0), ("batch", 1), ("micro", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name}={getattr(self, name)}: at least {least}")
        if "://" in self.output:
            raise SettingsError(f"output={self.output}: a folder of a file system; only shards may be in a bucket")
        for section in (
            self.data,
            self.lora,
            self.objective,
            self.optimizer,
            self.parallel,
            self.state,
            self.observe,
            self.validation,
        ):
            section.check()

    def check_start(self) -> None:
        """Raises SettingsError where a part of a network would be trained on top of random numbers, unasked."""
        if self.stage != "all" and not self.initial and self.fresh != ["*"]:
            raise SettingsError(
                f"stage={self.stage} trains a part of a network that has learnt the rest: initial=… names its weights "
                "(fresh=[*] begins with random ones all the same)"
            )


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings by their dotted names."""
    values: dict[str, Any] = {}
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value, f"{prefix}{setting.name}.")
        else:
            values[prefix + setting.name] = value
    return values


def different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings of two flat configs that differ and change the result, for people: `seed=1 (was 0)`."""
    names = [name for name in {**now, **before} if not any(fnmatchcase(name, neutral) for neutral in NEUTRAL)]
    return [
        f"{name}={now.get(name, 'nothing')} (was {before.get(name, 'nothing')})"
        for name in names
        if now.get(name) != before.get(name)
    ]


def _value(key: str, text: str, setting: Setting | None) -> Any:
    """A change's value as its setting has it; preset() says it when there is no such setting."""
    if setting is None or setting.type == "str":
        return text
    value = yaml.safe_load(text)
    if type(value).__name__ != setting.type:
        raise SettingsError(f"network.changes: {key}={text}: {setting.type} is expected")
    return value
