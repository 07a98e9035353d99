"""The packing job: what is left to do, who does it, and what is written when it is done.

Group by group of the plan: workers pack the group's clips into the staging folder, then its shards are put together,
while the next group is packed. What is there already is not made again.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import pack_folder, pack_models, pipeline, shards
from curation.config import RayConfig
from curation.inputs import Source
from curation.pack_job import Job, refusals
from curation.pack_step import PackStep
from curation.place import STAGING, Place, ShardError, writable
from curation.plan import Group, Shard
from curation.progress import Progress
from curation.shards import Written
from manifests.schema import Clip, columns


@dataclass
class Outcome:
    """What came of a run."""

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    upscaled: int = 0
    padded: int = 0
    """Samples that were enlarged, and samples between black sides; not counted for a tree."""
    made: int = 0
    """Shards (clips, of a tree) that this run made."""
    core_seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)


def run(job: Job, workers: Workers | None = None) -> Outcome:
    """Pack what is not packed yet; on Ray, unless other workers are given.

    Raises ShardError, JobError, WeightsError or ManifestError when the job cannot go on; before the first byte is
    written where the reason can be known by then.
    """
    return _Run(job, Place(job.config.place), workers or RayWorkers(job.config.ray))()


class _Run:
    """One run of the job."""

    def __init__(self, job: Job, place: Place, workers: Workers) -> None:
        self.job, self.place, self.workers = job, place, workers
        self.outcome = Outcome()
        self.begun = pack_folder.begun(place, job)
        self.failures = pack_folder.failures(place) if self.begun else {}
        self.written = shards.finished(place) if self.begun else {}

    def __call__(self) -> Outcome:
        again = self._retried() or self._for_nothing()
        self.written = {name: line for name, line in self.written.items() if name not in again}
        open_groups = [group for group in self.job.groups if any(self._is_open(shard.name) for shard in group.shards)]
        if open_groups:
            pack_models.check(self.job.config)
        if not self.begun:
            pack_folder.claim(self.place, self.job)
        if open_groups:
            pack_folder.reopen(self.place, self.job)
            self._take_back(again)
            self._work(open_groups)
        self._conclude()
        return self.outcome

    def _retried(self) -> set[str]:
        """The shards that lack a failed clip's samples, where those are to be tried again."""
        if not self.job.config.retry:
            return set()
        planned = (shard for group in self.job.groups for shard in group.shards)
        return {shard.name for shard in planned if any(window.clip_id in self.failures for window in shard.windows)}

    def _for_nothing(self) -> set[str]:
        """A shard to make anew where only the empty caption's vectors are lost: its worker makes them, too."""
        planned = {shard.name for group in self.job.groups for shard in group.shards}
        full = [line for line in self.written.values() if line.samples]
        if "text" not in self.job.config.contents or planned - set(self.written) or not full:
            return set()
        return set() if shards.nothing_kept(self.place) else {min(full, key=lambda line: (line.bytes, line.name)).name}

    def _take_back(self, again: Collection[str]) -> None:
        for shard in again:
            shards.forget(self.place, shard)
        if self.job.config.retry:
            self.place.clear(f"{STAGING}/manifests")
            self.failures = {}

    def _is_open(self, shard: str) -> bool:
        return shard not in self.written

    def _work(self, groups: Sequence[Group]) -> None:
        ready = set(self.place.files(f"{STAGING}/samples", recursive=True))
        todo = [(group, self._left(group, ready)) for group in groups]
        sources = sum(len(set(left.values())) for _, left in todo)
        with self.workers, Progress(sources) as progress:
            pending: Callable[[], list[Written | str]] = list
            for number, (group, left) in enumerate(todo):
                if left:
                    self._pack(number, group, left, progress)
                    self.failures = pack_folder.failures(self.place)
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
            nothing = shards.publish_nothing(self.place)
            content = {**self.job.about, **nothing, "failures": self.outcome.failures}
            shards.write_index(self.place, content, ordered, self.job.config.varying)
        self.outcome.samples = sum(len(written.samples) for written in ordered)
        self.outcome.shards = sum(bool(written.samples) for written in ordered)
        self.outcome.bytes = sum(written.bytes for written in ordered)
        self.outcome.upscaled = sum(written.upscaled for written in ordered)
        self.outcome.padded = sum(written.padded for written in ordered)

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
            with writable(staging):
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
