"""What training reads: the packed samples of each step, the same on any number of ranks and workers.

A step's samples are positions of one endless sequence (`order`), so a loader begins at any step without replaying those
before it. A sample that is broken is passed over: another one, drawn by (seed, position), stands in, and it is named.
"""

from __future__ import annotations

import dataclasses
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from model.config import ModelConfig
from training import draws, shards
from training.batch import Batch
from training.members import BrokenSampleError
from training.order import STAND_INS, Order
from training.samples import Prepare, Sample
from training.shards import DataError, Reader
from training.source import DataConfig, Source, validation

__all__ = ["Batch", "DataConfig", "DataError", "Loader", "Source", "loader", "validation"]

_NAMED = 3


def loader(
    config: DataConfig, network: ModelConfig, seed: int, *, batch: int, rank: int = 0, ranks: int = 1, step: int = 0
) -> Loader:
    """A rank's share of every step's batch, from `step` on, without end. batch: samples of a step, over all ranks.

    Raises DataError where the shards cannot be trained on.
    """
    return Loader(Source(config, network, seed), batch=batch, rank=rank, ranks=ranks, step=step)


class Loader:
    """Iterates over a rank's batches. skipped: broken samples met so far on this rank, and what is wrong with each."""

    def __init__(self, source: Source, *, batch: int, rank: int = 0, ranks: int = 1, step: int = 0) -> None:
        if batch % ranks:
            raise DataError(
                f"batch={batch} cannot be shared out evenly among {ranks} ranks: make it a multiple of that"
            )
        self.source, self.skipped = source, dict[str, str]()
        config, remote = source.config, not shards.is_local(source.index.place)
        own = range(rank * (batch // ranks), (rank + 1) * (batch // ranks))
        steps = Steps(source.reader, source.prepare, source.order(), batch, own, config.read_ahead if remote else 1)
        ahead: dict[str, Any] = {}
        if config.workers:
            ahead = {
                "prefetch_factor": config.prefetch,
                "timeout": config.timeout_s,
                "worker_init_fn": _quiet,
                # What talks to a bucket has threads of its own, which a forked process would lack.
                "multiprocessing_context": "spawn" if remote else "fork",
            }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own affair
            self.stateful: StatefulDataLoader = StatefulDataLoader(
                steps,
                batch_size=None,
                sampler=Onwards(step),
                collate_fn=_as_it_is,
                num_workers=config.workers,
                pin_memory=torch.cuda.is_available(),
                generator=draws.generator(0, "workers"),  # or it would draw from the one that all share
                **ahead,
            )

    def __iter__(self) -> Iterator[Batch]:
        """Raises DataError where samples cannot be had, or their process died."""
        made: Iterator[Read] = iter(self.stateful)
        while True:
            try:
                read = next(made)
            except RuntimeError as error:  # torch's own words for a worker that died or does not answer
                if str(error).startswith("Caught"):  # an error of ours, with its traceback
                    raise
                said = str(error).splitlines()[0]
                raise DataError(
                    f"data.workers={self.source.config.workers}: {said}; out of memory, perhaps, or the shards cannot "
                    "be reached: fewer data.workers, a smaller data.prefetch, or a longer data.timeout_s"
                ) from error
            self.skipped |= read.skipped
            if read.problem:
                raise DataError(read.problem)
            assert read.batch is not None
            yield read.batch

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence stands: torchdata's own state, which holds the step and no more."""
        return self.stateful.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; it must be of as many workers."""
        self.stateful.load_state_dict(state)

    def close(self) -> None:
        """End the processes that read ahead."""
        if (reading := self.stateful._iterator) is not None and hasattr(reading, "_shutdown_workers"):
            reading._shutdown_workers()
            for worker in reading._workers:
                worker.kill()  # one that hangs in a read would be waited for when this process ends
        self.stateful._iterator = None


@dataclass(frozen=True)
class Read:
    """What came of reading a step. problem: why there is no batch, for people; errors would lose their words between
    processes."""

    batch: Batch | None
    skipped: dict[str, str]
    problem: str = ""

    def pin_memory(self) -> Read:
        """The name that torch's loader looks for."""
        return self if self.batch is None else dataclasses.replace(self, batch=self.batch.pin())


class Onwards:
    """The steps from one on, as a sampler that knows where it is."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __iter__(self) -> OnwardsFrom:
        return OnwardsFrom(self.step)


class OnwardsFrom:
    def __init__(self, step: int) -> None:
        self.step = step

    def __iter__(self) -> OnwardsFrom:
        return self

    def __next__(self) -> int:
        self.step += 1
        return self.step - 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class Steps(torch.utils.data.Dataset[Read]):
    """A rank's samples of any step. places: its own, of a step's whole batch. threads: samples read at once."""

    def __init__(
        self, reader: Reader, prepare: Prepare, order: Order, batch: int, places: Sequence[int], threads: int
    ) -> None:
        self.reader, self.prepare, self.order = reader, prepare, order
        self.batch, self.places, self.threads = batch, places, threads

    def __getitem__(self, step: int) -> Read:
        if self.threads > 1 and len(self.places) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                read = list(pool.map(lambda place: self._sample(step, place), self.places))
        else:
            read = [self._sample(step, place) for place in self.places]
        skipped = {key: why for _, broken in read for key, why in broken.items()}
        samples = [sample for sample, _ in read if sample is not None]
        if len(samples) < len(read):
            named = "; ".join(f"{key} {why}" for key, why in list(skipped.items())[:_NAMED])
            what = f"step {step}: a sample is broken, and all {STAND_INS} that could stand in for it"
            return Read(None, skipped, f"{self.reader.index.place}: {what}: {named}")
        return Read(Batch.of(step, self.places, samples), skipped)

    def _sample(self, step: int, place: int) -> tuple[Sample | None, dict[str, str]]:
        """The sample at a place of a step, or the first that can stand in for it, and those that are broken."""
        position = step * self.batch + place
        broken: dict[str, str] = {}
        for number in self._candidates(position):
            key = self.reader.index.key(number)
            if key in broken:
                continue
            try:
                return self.prepare(key, self.reader.sample(number), step), broken
            except BrokenSampleError as error:
                broken[key] = str(error)
        return None, broken

    def _candidates(self, position: int) -> Iterator[int]:
        yield self.order(position)
        yield from self.order.stand_ins(position)


def _as_it_is(read: Read) -> Read:
    return read


def _quiet(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the process that trains: whoever stops a job sends them to all of its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
