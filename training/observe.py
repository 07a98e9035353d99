"""What a run says of itself: a line on the console, a line a step in metrics.jsonl, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
import torch.distributed

from model.footprint import size
from model.settings import SettingsError, option
from training.cost import Work
from training.devices import Peak

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from training.ranks import World

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class ObserveConfig:
    """Section `observe` of the settings."""

    every: int = option(10, "steps between lines on the console, and between looks at the other ranks")
    tensorboard: bool = option(True, "write for TensorBoard, into the folder tensorboard of `output`")
    device_tflops: float = option(0.0, "what a device does at most, for MFU; 0: by its name (CPU: a product is timed)")
    device_gb: float = option(0.0, "what a device holds, for plan=true; 0: what there is here")
    assumed_mfu: float = option(0.4, "share of device_tflops that plan=true reckons time with")
    ranks: int = option(0, "ranks that plan=true reckons for; 0: as many as it is started on")

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""
        if self.every < 1:
            raise SettingsError(f"observe.every={self.every}: at least 1")
        for name in ("device_tflops", "device_gb", "ranks"):
            if getattr(self, name) < 0:
                raise SettingsError(f"observe.{name}={getattr(self, name)}: at least 0 (0: found out)")
        if not 0 < self.assumed_mfu <= 1:
            raise SettingsError(f"observe.assumed_mfu={self.assumed_mfu}: a share, above 0 and up to 1")


class Observer:
    """The record of a run. All ranks call it alike; the first one writes.

    step: done before, so that a run that goes on drops what its record says of later steps. steps: to be done in all.
    work: of a step. peak: of one device; None leaves MFU and HFU out. out: where the console's lines go.
    """

    def __init__(
        self,
        config: ObserveConfig,
        folder: str | Path,
        world: World,
        work: Work,
        peak: Peak | None,
        *,
        step: int = 0,
        steps: int = 0,
        out: TextIO | None = None,
    ) -> None:
        self.config, self.world, self.work, self.peak, self.steps = config, world, work, peak, steps
        self.path = Path(folder) / METRICS
        self.out = out or sys.stdout
        self._terminal = self.out.isatty()
        self._since: list[dict[str, float]] = []  # steps since the last line
        self._skipped: set[str] = set()
        self._all_skipped = 0
        self._mute = False
        self._board: SummaryWriter | None = None
        if world.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = _up_to(self.path, step)
            if config.tensorboard:
                self._board = _board(Path(folder) / "tensorboard", step)
            _replaced(self.path, kept)
            if peak is not None and peak.source == "measured":
                self._print(
                    f"MFU and HFU: of the {peak.flops / 1e9:.0f} GFLOP/s that a product of matrices was timed at"
                )
            elif peak is None:
                self._print(
                    "MFU and HFU: left out, for what the device does is not known; observe.device_tflops=… says it"
                )

    def step(
        self,
        step: int,
        loss: float,
        gradient_norm: float,
        lr: float,
        waited_s: float,
        seconds: float,
        tokens: int,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        """Record a step that is done.

        loss, gradient_norm: of all ranks together. seconds: of the whole step, waited_s of them for data on this rank.
        tokens: of all ranks. skipped: all samples that this rank has left out so far, with the reason.
        """
        for key in sorted(set(skipped or ()) - self._skipped):
            self._skipped.add(key)
            print(f"{self._rank()}sample {key} is left out: {(skipped or {})[key]}", file=self.out, flush=True)
        row = {"loss": loss, "gradient_norm": gradient_norm, "lr": lr, "seconds": seconds, "waited_s": waited_s}
        row["data_wait"] = waited_s / seconds if seconds else 0.0
        row["tokens_per_s"] = tokens / seconds if seconds else math.nan
        row |= self._shares(seconds)
        self._since.append(row)
        due = step % self.config.every == 0 or step == self.steps
        more: dict[str, float] = {}
        if due:
            more = self._of_all_ranks(sum(row["waited_s"] for row in self._since))
        if not self.world.is_main:
            self._since = [] if due else self._since
            return
        self._record(step, {**row, **more}, time_=True)
        if due:
            self._clear()
            self._print(self._line(step, more))
            self._since = []
        elif self._terminal:
            self.out.write(f"\r\x1b[Kstep {step}/{self.steps}  loss {loss:.4f}  {seconds:.2f} s")
            self.out.flush()

    def note(self, name: str, value: float, step: int) -> None:
        """Record a number that does not belong to every step: a validation loss, say. Every rank may call it."""
        if self.world.is_main:
            self._record(step, {name: value})

    def notes(self, values: Mapping[str, float], step: int, what: str = "validation") -> None:
        """Record such numbers and say them in a line."""
        if self.world.is_main and values:
            self._record(step, dict(values))
            self._print(f"step {step}  {what}: " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def say(self, line: str) -> None:
        """A line for the console, from the first rank alone."""
        if self.world.is_main:
            self._clear()
            self._print(line)

    def close(self) -> None:
        """Write what is left. Safe to call twice."""
        self._clear()
        if self._board is not None:
            self._board.close()
            self._board = None

    def _shares(self, seconds: float) -> dict[str, float]:
        if self.peak is None or not seconds:
            return {}
        most = self.peak.flops * self.world.ranks
        # A share of what a product was timed at is not comparable with one of what a device could do.
        names = ("mfu", "hfu") if self.peak.stated else ("mfu_of_measured", "hfu_of_measured")
        return dict(zip(names, (self.work.model / seconds / most, self.work.hardware / seconds / most), strict=True))

    def _of_all_ranks(self, waited: float) -> dict[str, float]:
        """What has to be asked of the other ranks: the fullest memory, the longest wait, how much is left out."""
        world = self.world
        own = torch.tensor([_peak_memory(world.device), waited, len(self._skipped)], dtype=torch.float64)
        rows = torch.zeros(world.ranks, len(own), dtype=torch.float64)
        rows[world.rank] = own
        if world.ranks > 1:
            torch.distributed.all_reduce(rows, group=world.control)
        memory, longest = rows[:, :2].max(dim=0).values.tolist()
        self._all_skipped = round(float(rows[:, 2].sum()) / world.context)
        return {"memory_bytes": memory, "longest_wait_s": longest, "skipped": self._all_skipped}

    def _line(self, step: int, more: Mapping[str, float]) -> str:
        """A line about the steps since the last one: their means; of memory and waiting, the worst rank's."""
        rows, seconds = self._since, sum(row["seconds"] for row in self._since)

        def mean(name: str) -> float:
            return sum(row[name] for row in rows) / len(rows)

        each = seconds / len(rows)
        parts = [
            f"step {step}/{self.steps}" if self.steps else f"step {step}",
            f"loss {mean('loss'):.4f}",
            f"gradient {mean('gradient_norm'):.3g}",
            f"lr {rows[-1]['lr']:.2e}",
            f"{each:.3g} s",
            f"{sum(row['tokens_per_s'] * row['seconds'] for row in rows) / max(seconds, 1e-9):,.0f} tokens/s",
        ]
        parts += [f"{name.upper()} {value:.1%}" for name, value in self._shares(each).items() if "_" not in name]
        parts += [f"data {more['longest_wait_s'] / max(seconds, 1e-9):.1%}", size(more["memory_bytes"])]
        if self._all_skipped:
            parts.append(f"{self._all_skipped} samples left out")
        if self.steps > step:
            parts.append(f"{_duration(each * (self.steps - step))} left")
        return "  ".join(parts)

    def _record(self, step: int, values: Mapping[str, float], time_: bool = False) -> None:
        """A line of the file and TensorBoard's numbers. A full disk ends the record, and not the training."""
        row: dict[str, Any] = {"step": step}
        if time_:
            row["time"] = round(time.time(), 3)
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            if not self._mute:
                self._print(f"{self.path}: cannot be written ({error.strerror or error}); training goes on without it")
            self._mute = True

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def _clear(self) -> None:
        if self._terminal and self.world.is_main:
            self.out.write("\r\x1b[K")

    def _rank(self) -> str:
        return f"rank {self.world.rank}: " if self.world.ranks > 1 else ""


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The record of a run, line by line; a last line that a kill cut off is left out."""
    return [json.loads(line) for line in _up_to(Path(folder) / METRICS, None)]


def _up_to(path: Path, step: int | None) -> list[str]:
    """The whole lines of a record that are about steps up to this one (None: all)."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and (step is None or row.get("step", 0) <= step):
            kept.append(line)
    return kept


def _replaced(path: Path, lines: list[str]) -> None:
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SettingsError(f"{path}: cannot be written: {error.strerror or error}") from error


def _board(folder: Path, step: int) -> SummaryWriter:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # where TensorFlow is installed, it need not speak
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError("observe.tensorboard: tensorboard is not installed; observe.tensorboard=false") from error
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _peak_memory(device: torch.device) -> int:
    """Bytes held at the fullest moment so far: by torch on the device, or by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * (1 if sys.platform == "darwin" else 1024)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )
