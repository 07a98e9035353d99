"""The Ray Data graph of the job: sources in, one record a source out; what was found goes to the manifests.

What travels between the stages is a record of some hundred bytes a source, never a frame. Each worker is a Ray actor
that keeps its stage in a process of its own (curation/isolation.py), reads what earlier stages wrote from the
manifests and writes there itself. A record that Ray sends a second time, because a worker was lost, finds its work
done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import secrets
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.config import RayConfig
from curation.inputs import Source
from curation.isolation import Cell, Fault, SetupError
from curation.steps import Step
from manifests.schema import Failure, Video, short_hash
from manifests.store import ManifestError, ManifestStore, locate

ROOT = Path(__file__).resolve().parents[1]
_BLOCKS, _MOST_BLOCKS = 256, 16384  # so many at least, for there to be work for all; a block costs the driver 10 kB
_ROOMY = 4  # times the cores that one worker of each stage takes: from there on the stages need not share


@dataclass(frozen=True)
class Record:
    """What travels: a source (as JSON), and what came of it so far. state: '' (going on), done, failed,
    or stopped: the whole job cannot go on, for the reason in `message`.
    """

    source: str
    state: str = ""
    core_seconds: str = ""
    message: str = ""

    def spent(self, step: str, seconds: float) -> str:
        """`core_seconds` with one more step's."""
        return f"{self.core_seconds} {step}={seconds:.6g}".strip()

    def costs(self) -> list[tuple[str, float]]:
        """CPU seconds by step."""
        return [(name, float(seconds)) for name, seconds in (part.split("=") for part in self.core_seconds.split())]


def flow(todo: Worklist, steps: Sequence[Step], output: str, own: bool = True) -> Iterator[Record]:
    """Run the steps over a worklist; yields each source's record as it comes out of the last step.

    own: whether all of the cluster is this job's. On few cores the stages share them: each has a worker a core, and the
    operating system gives the cores to those that have work; else a worker that waits would hold on to a core.
    """
    import ray.data

    there = ray.cluster_resources()
    cores = there.get("CPU", 1.0)
    reserving = [step.resources.cpus for step in steps if step.resources.cpus]
    shared = cores < sum(reserving) * (_ROOMY if own else 1)
    shares = max(1, len(reserving)) if shared else 1
    _check(steps, shares, there)
    data: Any = ray.data.from_items(list(range(todo.blocks)), override_num_blocks=todo.blocks)
    for step in steps:
        wanted = step.resources
        most = wanted.workers or (max(1, math.floor(cores / wanted.cpus)) if wanted.cpus else 1)
        data = data.map_batches(
            Worker,
            fn_constructor_args=(step, output, todo if step is steps[0] else None, step is steps[-1]),
            batch_size=wanted.batch if wanted.batch > 1 else None,  # None: a block as it comes
            batch_format="pyarrow",
            num_cpus=wanted.cpus / shares,
            num_gpus=wanted.gpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(most, todo.blocks) if shared else 1,
                max_size=most,
                max_tasks_in_flight_per_actor=2,
            ),
        )
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            record = Record(**row)
            if record.state == "stopped":
                raise JobError(record.message)
            yield record


class JobError(Exception):
    """The job cannot go on: what, where, what to do."""


def _check(steps: Sequence[Step], shares: int, there: Mapping[str, float]) -> None:
    """Raise JobError where a worker wants more than the whole cluster has: Ray would wait for it forever."""
    for step in steps:
        for kind, wanted in (("CPU", step.resources.cpus / shares), ("GPU", step.resources.gpus)):
            if wanted > (has := there.get(kind, 0.0)):
                setting = f"resources.{step.name}.{kind.lower()}s"
                raise JobError(f"{setting}: a worker wants {wanted:g}, the whole cluster has {has:g}: ask for less")


class Worker:
    """One actor of a step. The first step's is handed numbers of the worklist's blocks, the others records."""

    def __init__(self, step: Step, output: str, todo: Worklist | None, last: bool):
        self.step, self.todo, self.last = step, todo, last
        self.store = ManifestStore(output)
        self.cell = Cell(step.builder(), step.limits)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        blocks = [batch] if self.todo is None else [self.todo.read(index) for index in batch["item"].to_pylist()]
        for block in blocks:
            for row in block.to_pylist():
                yield pa.Table.from_pylist([dataclasses.asdict(self.advance(Record(**row)))], _RECORD)

    def advance(self, record: Record) -> Record:
        """The record after this step."""
        if record.state:
            return record
        try:
            return self._advance(record)
        except (SetupError, ManifestError) as error:  # no row will fare better
            return dataclasses.replace(record, state="stopped", message=str(error))

    def _advance(self, record: Record) -> Record:
        source = Source.from_json(record.source)
        video = next(iter(self.store.read(Video, source.source_id)), None)
        state = "done" if self.last else ""
        if self.step.is_done(source, video):
            return dataclasses.replace(record, state=state)
        if source.problem:
            self._fail(source, source.source_id, Fault("BadName", source.problem, 0, ""))
            return self._lost(record, video, "")
        results: dict[str, Any] = {}
        spent = 0.0
        for key, arguments in self.step.tasks(self.store, source, video).items():
            outcome = self.cell(*arguments)
            spent += outcome.core_seconds
            if outcome.fault is None:
                results[key] = outcome.value
                self.store.forget(Failure, failure_id(self.step.name, source, key))
            else:
                self._fail(source, key, outcome.fault)
                if not self.step.survives:
                    return self._lost(record, video, record.spent(self.step.name, spent))
        saved = self.step.save(self.store, source, video, results)
        state = "done" if saved.status == "duplicate" else state
        return Record(record.source, state, record.spent(self.step.name, spent))

    def _fail(self, source: Source, key: str, fault: Fault) -> None:
        """Record that the step could not do a task of the source."""
        row = Failure(
            failure_id=failure_id(self.step.name, source, key),
            stage=self.step.name,
            key=key,
            path=source.path,
            bytes=source.bytes,
            modified=source.modified,
            **dataclasses.asdict(fault),
        )
        self.store.write(Failure, row.failure_id, [row])

    def _lost(self, record: Record, video: Video | None, spent: str) -> Record:
        """The record of a source that goes no further; what an earlier run found in the file as it was then goes."""
        if video is not None:
            self.step.drop(self.store, video)
        return Record(record.source, "failed", spent or record.core_seconds)


def failure_id(stage: str, source: Source, key: str) -> str:
    """Names the failure of a task: the source itself, or a clip of it."""
    return short_hash(stage, source.path, *([] if key == source.source_id else [key]))


# The worklist: what is to be done, on disk, so that the driver never holds a million sources ---------------------

_RECORD = pa.schema([(field.name, pa.string()) for field in dataclasses.fields(Record)])


@dataclass(frozen=True)
class Worklist:
    """A Parquet file of records whose row groups are the blocks that travel through the job."""

    place: str
    blocks: int

    def read(self, index: int) -> pa.Table:
        """The records of one block."""
        filesystem, path = locate(self.place)
        with filesystem.open_input_file(path) as source:
            return pq.ParquetFile(source).read_row_group(index)


@contextlib.contextmanager
def worklist(output: str, sources: Iterable[Source], expected: int, limits: RayConfig) -> Iterator[Worklist]:
    """The sources as a worklist below the output, deleted afterwards.

    expected: about how many there are. Where they are few each is a block, so that all workers have some at once.
    """
    place = f"{output.rstrip('/')}/worklists/{uuid.uuid4().hex}.parquet"
    filesystem, path = locate(place)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    most = max(1, min(limits.block_files, expected // _BLOCKS))
    least = min(most, -(-expected // _MOST_BLOCKS))
    blocks = 0
    with filesystem.open_output_stream(path) as sink, pq.ParquetWriter(sink, _RECORD) as writer:
        for block in _blocks(sources, least, most, limits.block_mb * 1e6):
            blocks += 1
            rows = [dataclasses.asdict(Record(source.to_json())) for source in block]
            writer.write_table(pa.Table.from_pylist(rows, _RECORD), row_group_size=len(rows))
    try:
        yield Worklist(place, blocks)
    finally:
        filesystem.delete_file(path)


def _blocks(sources: Iterable[Source], least: int, most: int, most_bytes: float) -> Iterator[list[Source]]:
    """Blocks of `least` to `most` sources, of no more bytes than `most_bytes` where `least` allows."""
    block: list[Source] = []
    size = 0
    for source in sources:
        if len(block) >= most or (len(block) >= least and size + source.bytes > most_bytes):
            yield block
            block, size = [], 0
        block.append(source)
        size += max(source.bytes, 0)
    if block:
        yield block


# Ray -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(config: RayConfig) -> Iterator[bool]:
    """A connection to the cluster that the config names, or to a Ray of this job's own; whether it is that."""
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    own = address == "local"
    if own:
        # Ray listens on the machine's address: nobody without this run's token may talk to it.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Records that wait before a slow stage lie in the driver's memory: let none run far ahead of the next.
    os.environ.setdefault("RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD", "0")
    import ray  # reads its environment on import
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _hushed():
        ray.init(
            address=address,
            num_cpus=config.cpus if own else None,
            include_dashboard=False if own else None,
            # What travels is small: the object store need not take a third of the memory, as it would by default.
            object_store_memory=256 * 1024 * 1024 if own else None,
            runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
            log_to_driver=False,
        )
    try:
        yield own
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep what Ray's native code writes to stderr off the screen, unless there is an error."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
