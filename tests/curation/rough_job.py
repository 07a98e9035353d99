"""A job whose stage does to its process what the rows say: python rough_job.py <output> <deed> …"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from curation import pipeline
from curation.config import RayConfig, StageResources
from curation.inputs import Source
from curation.steps import Step
from tests.bench.nothing import Nothing, Saved
from tests.curation import rough_stages


class Rough(Step):
    """A step whose stage misbehaves as its row says."""

    name = "rough"

    def __init__(self) -> None:
        self.resources = StageResources(seconds=20, memory_gb=0.5)
        self.models, self.version = [], "0"

    def builder(self) -> Callable[[], Callable[..., Any]]:
        return rough_stages.build

    def tasks(self, store: Any, source: Source, video: Any) -> dict[str, tuple]:
        return {source.source_id: (source.path,)}

    def save(self, store: Any, source: Source, video: Any, results: dict[str, Any]) -> Any:
        return Saved()


def main(output: str, deeds: list[str]) -> None:
    steps = [Rough(), Nothing("after", StageResources(cpus=0, workers=1))]
    sources = [Source(deed) for deed in deeds]
    with (
        pipeline.cluster(RayConfig()),
        pipeline.worklist(output, sources, len(sources), RayConfig()) as todo,
    ):
        for record in pipeline.flow(todo, steps, output):
            print(f"{Source.from_json(record.source).path}: {record.state}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
