#!/usr/bin/env python
"""Read all shards of a folder and compare them with its index; exit status 1 where one is damaged.

python training/verify.py shards=/data/shards/hallo3-stage1
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # the repo root, not this folder, is where our packages are
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from model import settings
from training import shards


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of training/verify.py."""

    shards: str = settings.required("what curation/pack.py wrote: a folder, or s3://")


def main(config: VerifyConfig) -> int:
    wrong = count = 0
    try:
        for split in shards.SPLITS:
            try:
                index = shards.read_index(config.shards, split)
            except shards.NoSamplesError:
                continue
            for name, what in shards.damaged(index):
                print(f"{name}: {what or 'as packed'}", flush=True)
                wrong += what is not None
                count += 1
    except shards.DataError as error:
        print(f"verify.py: {error}", file=sys.stderr)
        return 1
    if not count:
        print(f"verify.py: {config.shards}: its index lists no shards", file=sys.stderr)
        return 1
    if wrong:
        print(
            f"verify.py: {wrong} of {count} shards of {config.shards} are damaged: copy or pack them again",
            file=sys.stderr,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    settings.main(VerifyConfig, __doc__ or "", main)
