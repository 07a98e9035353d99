"""The packing job: what is left to do, who does it, and what is written when it is done.

Group by group of the plan: workers pack the group's clips into the staging folder, then its shards are put together,
while the next group is packed. What is there already is not made again.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import pipeline, shards
from curation.config import RayConfig
from curation.inputs import Source
from curation.pack_job import Job, refusals
from curation.pack_step import PackStep
from curation.plan import Group, Shard
from curation.progress import Progress
from curation.shards import STAGING, Place, ShardError, Written
from manifests.schema import Clip, Failure, columns
from manifests.store import ManifestStore
from model import weights

_ABOUT = f"{STAGING}/about.json"


@dataclass
class Outcome:
    """What came of a run."""

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    made: int = 0
    """Shards (clips, of a tree) that this run made."""
    core_seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)


def run(job: Job, workers: Workers | None = None) -> Outcome:
    """Pack what is not packed yet; on Ray, unless other workers are given.

    Raises ShardError, JobError or ManifestError when the job cannot go on.
    """
    place = Place(job.config.place)
    _claim(place, job)
    failures = _failures(place)
    if job.config.retry:
        failures = _retried(place, job, failures)
    return _Run(job, place, failures, workers or RayWorkers(job.config.ray))()


def _claim(place: Place, job: Job) -> None:
    """Make the folder this job's; raises ShardError where it is another's."""
    there = shards.read_index(place) or json.loads(place.read(_ABOUT) or b"null")
    if there is None:
        if left := sorted(name for name in place.files() if name.endswith((".tar", ".json"))):
            raise ShardError(
                f"{place.name}: holds {left[0]}, which this job did not make: shards=… names another folder"
            )
        place.publish(_ABOUT, json.dumps(job.about).encode())
    elif there["version"] != job.about["version"]:
        odd = [name for name, value in job.about["settings"].items() if there["settings"].get(name) != value]
        other = ", ".join(odd) or (
            "weights" if there["weights"] != job.about["weights"] else "the selection was made anew"
        )
        raise ShardError(
            f"{place.name}: holds shards that were packed otherwise ({other}): shards=… names another folder, or "
            "delete it"
        )


def _failures(place: Place) -> dict[str, dict[str, Any]]:
    """What failed in this and earlier runs, by clip."""
    if index := shards.read_index(place):
        return {row["clip_id"]: row for row in index["failures"]}
    rows = ManifestStore(f"{place.name}/{STAGING}").arrow(Failure).to_pylist()
    kept = ("path", "error", "message")
    return {row["key"]: {"clip_id": row["key"], **{name: row[name] for name in kept}} for row in rows}


def _retried(place: Place, job: Job, failures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Take back the shards that lack a failed clip's samples; no failures are left."""
    retried = set(failures)
    _reopen(place, job)
    for group in job.groups:
        for shard in group.shards:
            if any(window.clip_id in retried for window in shard.windows):
                shards.forget(place, shard.name)
    place.clear(f"{STAGING}/manifests")
    return {}


def _reopen(place: Place, job: Job) -> None:
    """Go back from an index to its parts, so that shards may be added."""
    if shards.read_index(place):
        if job.config.format == "hallo3":
            from curation import hallo3

            for shard in (shard for group in job.groups for shard in group.shards):
                hallo3.unlisted(place, shard)
        for written in shards.finished(place).values():
            shards.write_part(place, written)
        place.publish(_ABOUT, json.dumps(job.about).encode())
        place.delete(shards.INDEX)


class _Run:
    """One run of the job."""

    def __init__(self, job: Job, place: Place, failures: dict[str, dict[str, Any]], workers: Workers) -> None:
        self.job, self.place, self.failures, self.workers = job, place, failures, workers
        self.outcome = Outcome()
        self.written = shards.finished(place)

    def __call__(self) -> Outcome:
        open_groups = [group for group in self.job.groups if any(self._is_open(shard.name) for shard in group.shards)]
        if open_groups:
            _reopen(self.place, self.job)
            self._work(open_groups)
        self._conclude()
        return self.outcome

    def _is_open(self, shard: str) -> bool:
        return shard not in self.written

    def _work(self, groups: Sequence[Group]) -> None:
        ready = set(self.place.files(f"{STAGING}/samples", recursive=True))
        todo = [(group, self._left(group, ready)) for group in groups]
        sources = sum(len(set(left.values())) for _, left in todo)
        for name in self.job.config.models():
            weights.path(name)
        with self.workers, Progress(sources) as progress:
            pending: Callable[[], list[Written | str]] = list
            for number, (group, left) in enumerate(todo):
                if left:
                    self._pack(number, group, left, progress)
                    self.failures = _failures(self.place)
                self._collect(pending())
                pending = self._assembling(group)
            self._collect(pending())

    def _left(self, group: Group, ready: set[str]) -> dict[str, str]:
        """Clips of a group with samples that are neither in a shard, staged (ready) nor failed; and their sources."""
        wanted = {
            window.clip_id
            for shard in group.shards
            if self._is_open(shard.name)
            for window in shard.windows
            if f"{shard.name}/{window.key}" not in ready and window.clip_id not in self.failures
        }
        rows = self.job.clips.filter(pc.is_in(self.job.clips["clip_id"], pa.array(sorted(wanted), pa.string())))
        return dict(zip(rows["clip_id"].to_pylist(), rows["path"].to_pylist(), strict=True))

    def _pack(self, number: int, group: Group, left: Mapping[str, str], progress: Progress) -> None:
        """Pack the clips of a group that are left."""
        homes = group.homes()
        rows = self.job.clips.filter(pc.is_in(self.job.clips["clip_id"], pa.array(sorted(left), pa.string())))
        open_homes = [
            {first: shard for first, shard in homes[clip_id].items() if self._is_open(shard)}
            for clip_id in rows["clip_id"].to_pylist()
        ]
        rows = rows.select(columns(Clip)).append_column("homes", pa.array([json.dumps(home) for home in open_homes]))
        content = pa.BufferOutputStream()
        pq.write_table(rows, content)
        orders = f"{STAGING}/orders/{number}.parquet"
        self.place.publish(orders, content.getvalue().to_pybytes())
        sources = [Source(path) for path in dict.fromkeys(left.values())]
        for record in self.workers.pack(PackStep(self.job.config, orders), sources, f"{self.place.name}/{STAGING}"):
            if record.state == "stopped":
                raise pipeline.JobError(record.message)
            progress.add(record.state == "failed")
            self.outcome.core_seconds += sum(seconds for _, seconds in record.costs())

    def _assembling(self, group: Group) -> Callable[[], list[Written | str]]:
        """Start to put a group's shards together; what is returned waits for them."""
        if self.job.config.format == "hallo3":
            return list
        wanted = [shard for shard in group.shards if self._is_open(shard.name)]
        return self.workers.assemble(self.place.name, wanted, set(group.clip_ids) & set(self.failures))

    def _collect(self, written: Sequence[Written | str]) -> None:
        for shard in written:
            if isinstance(shard, str):
                raise ShardError(shard)
            self.written[shard.name] = shard
            self.outcome.made += 1

    def _conclude(self) -> None:
        """Write the index, or the JSON of a tree, unless it is there."""
        refused = {row["clip_id"]: row for row in refusals(self.job)}
        self.outcome.failures = [row for _, row in sorted({**self.failures, **refused}.items())]
        if self.job.config.format == "hallo3":
            self._conclude_tree()
            return
        ordered = [self.written[shard.name] for group in self.job.groups for shard in group.shards]
        if shards.read_index(self.place) is None:
            shards.write_index(self.place, {**self.job.about, "failures": self.outcome.failures}, ordered)
        self.outcome.samples = sum(len(written.samples) for written in ordered)
        self.outcome.shards = sum(bool(written.samples) for written in ordered)
        self.outcome.bytes = sum(written.bytes for written in ordered)

    def _conclude_tree(self) -> None:
        lists = [shard for group in self.job.groups for shard in group.shards]
        known = shards.read_index(self.place)
        if known is None:
            from curation import hallo3

            counts = [hallo3.listed(self.place, shard, self.failures) for shard in lists]
            self.outcome.made = sum(counts)
            finished = [Written(shard.name, shard.split, 0, "", ()) for shard in lists]
            content = {**self.job.about, "failures": self.outcome.failures, "clips": sum(counts)}
            shards.write_index(self.place, content, finished)
        self.outcome.samples = (shards.read_index(self.place) or {})["clips"]


class Workers(Protocol):
    """Who does the work; open within a `with` block."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> Any: ...

    def pack(self, step: PackStep, sources: Sequence[Source], staging: str) -> Iterator[pipeline.Record]:
        """Do the step for each source; records as they are done. staging: where failures and lists are written."""
        ...

    def assemble(self, place: str, wanted: Sequence[Shard], absent: set[str]) -> Callable[[], list[Written | str]]:
        """Start to put shards together; what is returned waits for them."""
        ...


class RayWorkers:
    """A Ray cluster, the job's own or another's."""

    def __init__(self, config: RayConfig) -> None:
        self.config = config
        self._held = contextlib.ExitStack()
        self._own = True

    def __enter__(self) -> None:
        print("starting Ray and the workers", file=sys.stderr, flush=True)
        self._own = self._held.enter_context(pipeline.cluster(self.config))

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    def pack(self, step: PackStep, sources: Sequence[Source], staging: str) -> Iterator[pipeline.Record]:
        with contextlib.ExitStack() as held:
            with shards.writable(staging):
                todo = held.enter_context(pipeline.worklist(staging, sources, len(sources), self.config))
            yield from pipeline.flow(todo, [step], staging, self._own)

    def assemble(self, place: str, wanted: Sequence[Shard], absent: set[str]) -> Callable[[], list[Written | str]]:
        import ray

        task = ray.remote(num_cpus=0)(assembled)
        started = [task.remote(place, shard, absent) for shard in wanted]
        return lambda: ray.get(started)


def assembled(place: str, shard: Shard, absent: set[str]) -> Written | str:
    """The shard written, or why it could not be."""
    try:
        return shards.assemble(Place(place), shard, absent)
    except ShardError as error:
        return str(error)
