"""Keeping a run: its checkpoints are whole or not there, and any number of ranks goes on from them.

A step's folder holds what training changes: the trained parameters, the optimizer's state, their average. What is
frozen is written once, to the folder `frozen` beside them. `latest` names the newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from model.config import flat
from model.portrait import Portrait
from model.settings import SettingsError, option
from training import saved
from training.ema import Ema
from training.lora import scale_of
from training.ranks import World
from training.saved import CONTENTS, Saved, StateError
from training.shares import Share, settle, share, trainable

__all__ = ["FROZEN", "Keeper", "StateConfig", "StateError", "folder_of", "latest_in"]

FROZEN = "frozen"
_LATEST = "latest"
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class StateConfig:
    """Section `state` of the settings: what is kept of a run, and when."""

    every: int = option(500, "steps from checkpoint to checkpoint (0: only at the end, and when stopped)")
    keep_last: int = option(3, "how many of the newest checkpoints stay")
    keep_every: int = option(0, "checkpoints of every so many steps stay for good (0: none)")
    asynchronous: bool = option(True, "write while training goes on; takes a copy of what is written in main memory")
    ema: float = option(0.9999, "decay of the average of the trained parameters (0: none is kept)")

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""
        for name, least in (("every", 0), ("keep_last", 1), ("keep_every", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"state.{name}={getattr(self, name)}: at least {least}")
        if not 0 <= self.ema < 1:
            raise SettingsError(f"state.ema={self.ema}: from 0 (none) to below 1")

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after so many steps."""
        return self.every > 0 and step > 0 and step % self.every == 0


@dataclass(frozen=True)
class _Job:
    """A folder to be written: what this rank puts into it, and its table of contents."""

    folder: Path
    shares: Mapping[str, Share]
    contents: Mapping[str, Any]

    @property
    def part(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.part")


@dataclass
class Keeper:
    """Writes and reads the checkpoints of a run in `folder`. All ranks call the same methods in the same order."""

    folder: Path
    config: StateConfig
    world: World
    _thread: threading.Thread | None = None
    _failed: list[StateError] = field(default_factory=list)

    def save(
        self,
        step: int,
        portrait: Portrait,
        optimizer: torch.optim.Optimizer | None = None,
        ema: Ema | None = None,
        extra: Mapping[str, Any] | None = None,
        wait: bool = False,
    ) -> None:
        """Write the state after `step` steps; extra: anything that JSON holds, given back by `restore`.

        Without `wait` a copy is taken, and written while training goes on. Raises StateError, on all ranks, when this
        checkpoint or the one before could not be written; what was kept before stays as it was.
        """
        self.wait()
        settle(portrait)
        about = {"model": flat(portrait.config), "adapters": scale_of(portrait)}
        if still := _still(portrait):
            there = self.latest() is not None and (self.folder / FROZEN / CONTENTS).exists()
            if not self.world.told(there):
                self._write(_Job(self.folder / FROZEN, _own(still), about), self.world.control)
        later = self.config.asynchronous and not wait
        shares = _own(_changing(portrait, optimizer, ema), copied=later)
        job = _Job(folder_of(self.folder, step), shares, {"step": step, **about, "extra": dict(extra or {})})
        if later:
            self._thread = threading.Thread(target=self._write_later, args=(job,), name=job.folder.name, daemon=True)
            self._thread.start()
        else:
            self._write(job, self.world.control)

    def wait(self) -> None:
        """Wait until all is written. Raises StateError when it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed:
            raise self._failed.pop()

    def latest(self) -> int | None:
        """The step to go on from, as `latest_in` has it; the same on all ranks."""
        step = latest_in(self.folder) if self.world.is_main else None
        told = self.world.told(-1 if step is None else step)
        return None if told < 0 else told

    def restore(
        self,
        portrait: Portrait,
        optimizer: torch.optim.Optimizer | None = None,
        ema: Ema | None = None,
        step: int | None = None,
    ) -> dict[str, Any]:
        """Bring everything to where it was after `step` steps (None: the latest), and return what was kept with it.

        The ranks may be more or fewer than those that wrote it. The optimizer's settings stay as they are. Raises
        StateError where the checkpoint is damaged, of another network, or of other trained parameters.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise StateError(f"{self.folder}: no checkpoint to go on from")
        state = Saved(folder_of(self.folder, step))
        settle(portrait)
        if still := _still(portrait):
            _fill(still, Saved(self.folder / FROZEN), "model.")
        _fill(_changing(portrait, None, None), state, "model.")
        if ema is not None:
            _fill(_changing(portrait, None, ema), state, "ema.")
        if optimizer is not None:
            _fill_optimizer(portrait, optimizer, state)
        return dict(state.contents["extra"])

    def _write_later(self, job: _Job) -> None:
        try:
            self._write(job, self.world.background)
        except StateError as error:
            self._failed.append(error)
        except RuntimeError as error:  # torch's word for ranks that do not answer
            self._failed.append(StateError(f"{job.folder}: not written: the other ranks are gone: {error}"))

    def _write(self, job: _Job, group: dist.ProcessGroup | None) -> None:
        """Write a folder: all ranks go from phase to phase together, and give up together."""
        for phase in (self._prepare, self._write_own, self._publish):
            problem = None
            try:
                phase(job)
            except (OSError, SafetensorError) as error:
                problem = getattr(error, "strerror", None) or str(error)
            if ranks := self.world.who(problem is not None, group):
                if self.world.is_main:
                    shutil.rmtree(job.part, ignore_errors=True)
                raise StateError(self._refusal(job, problem, ranks))

    def _prepare(self, job: _Job) -> None:
        if self.world.is_main:
            for leftover in (*self.folder.glob(".*-*.part"), *self.folder.glob(".*-*.gone"), job.part):
                shutil.rmtree(leftover, ignore_errors=True)
            job.part.mkdir(parents=True)

    def _write_own(self, job: _Job) -> None:
        saved.write_part(job.part, self.world.rank, job.shares)

    def _publish(self, job: _Job) -> None:
        """Give the folder its name, now that it is whole, and let go of what is no longer kept."""
        if not self.world.is_main:
            return
        saved.write_contents(job.part, self.world.ranks, job.contents)
        saved.to_disk(job.part)
        _remove(job.folder)
        job.part.rename(job.folder)
        saved.to_disk(self.folder)
        if "step" in job.contents:
            _point(self.folder, job.folder.name)
            self._prune(job.contents["step"])

    def _prune(self, step: int) -> None:
        """Remove checkpoints that are not kept. Those beyond `step` are of a run that was taken back: they stay."""
        before = [one for one in _steps(self.folder) if one <= step]
        every = self.config.keep_every
        for one in before[: -self.config.keep_last]:
            if not (every and one % every == 0):
                _remove(folder_of(self.folder, one))

    def _refusal(self, job: _Job, problem: str | None, ranks: Collection[int]) -> str:
        which = f"rank {self.world.rank}: {problem}" if problem else f"rank {min(ranks)} could not; see its own message"
        last = latest_in(self.folder)
        kept = f"{folder_of(self.folder, last).name} is whole" if last is not None else "there is none before it"
        return f"{job.folder}: not written: {which}; {kept}. Make room, and give the same command again to go on"


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08}"


def latest_in(folder: Path) -> int | None:
    """The step to go on from: the one that the file `latest` names, or else the newest that is whole; None: none is.

    To go back to an earlier step, write its folder's name into `latest`.
    """
    steps = _steps(folder)
    try:
        named = _STEP.fullmatch((folder / _LATEST).read_text().strip())
    except (OSError, UnicodeDecodeError):
        named = None
    if named and int(named[1]) in steps:
        return int(named[1])
    return steps[-1] if steps else None


def _steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints, in order: a folder has its name and its contents only when it is whole."""
    found = ((_STEP.fullmatch(path.parent.name), path) for path in folder.glob(f"step-*/{CONTENTS}"))
    return sorted(int(name[1]) for name, _ in found if name)


def _point(folder: Path, name: str) -> None:
    """Let `latest` name a checkpoint, at one stroke."""
    note = folder / f".{_LATEST}.part"
    note.write_text(name + "\n")
    saved.to_disk(note)
    note.rename(folder / _LATEST)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; whatever happens meanwhile, it is never there in part."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name}.gone")
        folder.rename(gone)
        shutil.rmtree(gone)


def _still(portrait: Portrait) -> dict[str, Share]:
    """What training does not change: frozen parameters, and buffers."""
    frozen = {name: one for name, one in portrait.named_parameters() if not one.requires_grad}
    return {f"model.{name}": share(one) for name, one in (*frozen.items(), *portrait.named_buffers())}


def _changing(portrait: Portrait, optimizer: torch.optim.Optimizer | None, ema: Ema | None) -> dict[str, Share]:
    """What training changes: the trained parameters, what the optimizer holds of each, and their average."""
    trained = trainable(portrait)
    shares = {f"model.{name}": share(one) for name, one in trained.items()}
    for name, parameter in trained.items():
        if ema is not None:
            shares[f"ema.{name}"] = share(parameter, ema.shadow[name])
        for key, value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items():
            shares[f"optimizer.{key}.{name}"] = share(value)
    return shares


def _own(shares: Mapping[str, Share], copied: bool = False) -> dict[str, Share]:
    """The shares that this rank writes, in main memory if they are copied."""
    own = {name: one for name, one in shares.items() if one.first and len(one.rows)}
    if copied:
        own = {name: dataclasses.replace(one, values=one.values.to("cpu", copy=True)) for name, one in own.items()}
    return own


def _fill(shares: Mapping[str, Share], state: Saved, prefix: str) -> None:
    """Fill the shares whose names begin with `prefix`. Raises StateError where the checkpoint has others."""
    wanted = {name: one for name, one in shares.items() if name.startswith(prefix)}
    held = {name: shape for name, shape in state.shapes.items() if name.startswith(prefix)}
    problems = [f"{name} is missing" for name in wanted if name not in held]
    problems += [f"{name} is left over" for name in held if name not in wanted]
    problems += [
        f"{name} is {list(held[name])}, not {list(one.shape)}"
        for name, one in wanted.items()
        if name in held and held[name] != one.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise StateError(
            f"{state.folder}: of another network, or of a run that trains other parameters: {problems[0]}{more}; "
            "go on with the settings it was written with, or start anew in another output"
        )
    for name, one in wanted.items():
        one.fill(state.rows(name, one.rows))


def _fill_optimizer(portrait: Portrait, optimizer: torch.optim.Optimizer, state: Saved) -> None:
    """Give the optimizer what it held of each parameter."""
    names = {parameter: name for name, parameter in trainable(portrait).items()}
    held: dict[int, dict[str, torch.Tensor]] = {}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = {name.split(".", 2)[1] for name in state.shapes if name.startswith("optimizer.")}
    for place, parameter in enumerate(order):
        for key in sorted(keys):
            stored = f"optimizer.{key}.{names[parameter]}"
            if stored not in state.shapes:
                continue
            if state.shapes[stored] == tuple(parameter.shape):
                value = torch.zeros_like(parameter, requires_grad=False)
                own = share(value)
                own.fill(state.rows(stored, own.rows))
            else:
                value = state.whole(stored)
            held.setdefault(place, {})[key] = value
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})
