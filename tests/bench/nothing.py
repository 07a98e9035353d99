"""A step that does nothing, to see what everything around the stages costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from curation.config import StageResources
from curation.inputs import Source
from curation.steps import Step


class Nothing(Step):
    """A step whose stage, in its own process, returns what it is given; nothing is written."""

    def __init__(self, name: str, resources: StageResources):
        self.name, self.resources, self.models, self.version = name, resources, [], "0"

    def builder(self) -> Callable[[], Callable[..., Any]]:
        return functools.partial(functools.partial, _same)

    def tasks(self, store: Any, source: Source, video: Any) -> dict[str, tuple]:
        return {source.source_id: (source.path,)}

    def save(self, store: Any, source: Source, video: Any, results: dict[str, Any]) -> Any:
        return Saved()


class Saved:
    status = "done"


def _same(path: str) -> str:
    return path
