#!/usr/bin/env python
"""Raw footage in, manifests out: shots, speakers, faces, clips and all that can be measured of them, as Parquet.

  python curation/run.py input=/raw output=/data
  ray job submit --working-dir . -- python curation/run.py input=/raw output=/data

A run that was stopped goes on where it was when the same command is given again; nothing is done twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import time
from collections.abc import Sequence

from curation import pipeline
from curation.backlog import Backlog
from curation.config import CurationConfig, profile
from curation.funnel import funnel
from curation.inputs import InputError
from curation.progress import Progress
from curation.steps import Step, steps
from manifests.schema import Run
from manifests.store import ManifestError, ManifestStore
from model import settings, weights


def main(config: CurationConfig) -> int:
    """Run the job; the exit status: 0 done (failures are rows, not errors), 1 it could not be done."""
    try:
        return curate(config)
    except (InputError, ManifestError, weights.WeightsError, pipeline.JobError) as error:
        print(f"run.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("run.py: stopped; the same command goes on from here", file=sys.stderr)
    return 1


def curate(config: CurationConfig) -> int:
    """Raw footage in, manifests out."""
    store, work = ManifestStore(config.output), steps(config)
    backlog = Backlog(config, store, work)
    say(f"{config.input}: {backlog.files} files to do, {backlog.skipped} done before")
    if backlog.failed_before:
        say(f"{backlog.failed_before} files failed before and are left alone; retry=true tries them again")
    if config.dry_run:
        say(*estimate(backlog, work))
        return 0
    if config.until == "score" and not config.score.syncnet:
        say("sync_c, sync_d and sync_offset stay null: score.syncnet names no weights (syncnet_v2.model)")
    started, failed = time.time(), 0
    spent = dict.fromkeys((step.name for step in work), 0.0)
    if backlog.files:
        for name in {name: None for step in work for name in step.models}:
            weights.path(name)
        print("starting Ray and the workers", file=sys.stderr, flush=True)
        with (
            pipeline.cluster(config.ray) as own,
            pipeline.worklist(config.output, backlog, backlog.files, config.ray) as todo,
            Progress(backlog.files) as progress,
        ):
            for record in pipeline.flow(todo, work, config.output, own):
                failed += record.state == "failed"
                progress.add(record.state == "failed")
                for name, seconds in record.costs():
                    spent[name] += seconds
    store.compact(config.compact_above)
    seconds = time.time() - started
    write_run(store, config, work, backlog, started, seconds, failed, spent)
    say("", *funnel(store).lines(), "")
    if backlog.files:
        cores = ", ".join(f"{name} {cost:.1f}" for name, cost in spent.items())
        say(f"core-seconds: {cores}; {seconds:.1f} s from start to end")
    else:
        say("nothing was left to do: every input is in the manifests already")
    say(f"manifests: {config.output}/manifests")
    return 0


def estimate(backlog: Backlog, work: Sequence[Step]) -> list[str]:
    """What the job would do and cost, from a sample of the inputs."""
    from curation.cost import sampled

    cost = sampled(backlog, scored=work[-1].name == "score")
    lines = [f"would work on {backlog.files} files, {backlog.bytes / 1e9:.2f} GB, about {cost.hours:.2f} h of footage"]
    lines += [f"  {step.name}: version {step.version}, models: {', '.join(step.models) or 'none'}" for step in work]
    lines.append(f"about {cost.core_hours:.2f} core-hours ({cost.basis})")
    lines += [f"  cannot be opened: {path}: {why}" for path, why in cost.broken]
    return lines


def write_run(
    store: ManifestStore,
    config: CurationConfig,
    work: Sequence[Step],
    backlog: Backlog,
    started: float,
    seconds: float,
    failed: int,
    spent: dict[str, float],
) -> None:
    """Record this run: what was asked for, with which versions, and what it cost."""
    moment = datetime.datetime.fromtimestamp(started, datetime.UTC)
    libraries = (
        "talkreel",
        "av",
        "ray",
        "scenedetect-headless",
        "onnxruntime",
        "torch",
        "numpy",
        "pyarrow",
    )
    versions = {"python": platform.python_version()}
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    row = Run(
        run_id=f"{moment:%Y%m%dT%H%M%S}-{os.getpid()}",
        started=moment.isoformat(timespec="seconds"),
        seconds=seconds,
        command=shlex.join(sys.argv),
        config=json.dumps(dataclasses.asdict(config)),
        versions=json.dumps(versions),
        weights=json.dumps({name: weights.entry(name).sha256 for step in work for name in step.models}),
        files=backlog.files,
        skipped=backlog.skipped,
        failed=failed,
        core_seconds=json.dumps(spent),
    )
    store.write(Run, row.run_id, [row])


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    settings.main(CurationConfig, __doc__ or "", main, defaults=profile)
