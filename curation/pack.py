#!/usr/bin/env python
"""A selection of clips in, training samples out: WebDataset shards, or the tree that Hallo3's own trainer reads.

  python curation/pack.py output=/data selection=hallo3-stage1
  ray job submit --working-dir . -- python curation/pack.py output=/data selection=hallo3-stage1

A run that was stopped goes on where it was when the same command is given again; no finished shard is written twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time

from curation import pack_job, packing, pipeline
from curation.config import PackConfig
from curation.place import ShardError
from curation.shards import INDEX
from manifests.selection import SelectionError
from manifests.store import ManifestError
from model import settings, weights


def main(config: PackConfig) -> int:
    """Run the job; the exit status: 0 done (clips that failed are reported, not errors), 1 it could not be done."""
    try:
        config.check()
        return pack(config)
    except settings.SettingsError as error:
        print(f"pack.py: {error}", file=sys.stderr)
        return 2
    except (SelectionError, ManifestError, ShardError, weights.WeightsError, pipeline.JobError) as error:
        print(f"pack.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("pack.py: stopped; the same command goes on from here", file=sys.stderr)
    return 1


def pack(config: PackConfig) -> int:
    """A selection in, samples out."""
    started = time.monotonic()
    job = pack_job.planned_job(config)
    what = f"{job.samples} samples in {job.shards} shards" if config.format == "webdataset" else f"{job.samples} clips"
    print(f"{config.selection}: {len(job.clips)} clips chosen; {what}", flush=True)
    if config.dry_run:
        if config.format == "webdataset":
            print(f"about {job.samples * pack_job.sample_bytes(config) / 1e9:.2f} GB, in {config.place}")
        report(pack_job.refusals(job))
        return 0
    outcome = packing.run(job)
    report(outcome.failures)
    made = f"{outcome.made} made now" if outcome.made else "all of it was there already"
    if config.format == "hallo3":
        print(f"{outcome.samples} clips, {made}: {config.place}")
    else:
        print(f"{outcome.samples} samples in {outcome.shards} shards, {outcome.bytes / 1e9:.3f} GB; {made}")
        print_counts(outcome)
        print(f"index: {config.place}/{INDEX}")
    if outcome.made:
        print(f"core-seconds: pack {outcome.core_seconds:.1f}; {time.monotonic() - started:.1f} s from start to end")
    return 0


def print_counts(outcome: packing.Outcome) -> None:
    """Say how many samples are not simply cut out of their source."""
    counts = ((outcome.upscaled, "enlarged (upscale=true)"), (outcome.padded, "between black sides (pad=true)"))
    if said := [f"{count} {how}" for count, how in counts if count]:
        print(f"of them {', '.join(said)}")


def report(failures: list[dict]) -> None:
    """Say which clips are not there, and why."""
    if failures:
        print("\nNot packed:")
        for row in failures:
            print(f"  {row['clip_id']} of {row['path']}: {row['message']}")
        print()


if __name__ == "__main__":
    settings.main(PackConfig, __doc__ or "", main)
