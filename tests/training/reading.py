"""Reading made-up shards in tests: a loader's first batches, and comparing them."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import torch

from curation.shards import INDEX
from model.config import ModelConfig
from tests.model.networks import small
from training.data import Batch, DataConfig, Source, loader

NETWORK = small()
QUIET = {"drop_text": 0.0, "drop_audio": 0.0, "drop_reference": 0.0, "drop_motion": 0.0, "mask_motion": 0.0}


def config(place: str, **asked) -> DataConfig:
    return DataConfig(**{"shards": place, "workers": 0, "shuffle": 5, **asked})


def first(
    count: int, place: str, *, batch: int = 4, seed: int = 1, network: ModelConfig = NETWORK, **asked
) -> list[Batch]:
    """A loader's first batches."""
    given = {name: asked.pop(name) for name in ("rank", "ranks", "step") if name in asked}
    samples = loader(config(place, **asked), network, seed, batch=batch, **given)
    found = list(itertools.islice(samples, count))
    samples.close()
    return found


def same(one: Batch, other: Batch) -> bool:
    for field in dataclasses.fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if not (torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) if isinstance(a, torch.Tensor) else a == b):
            return False
    return True


def joined(parts: list[Batch]) -> Batch:
    """The batches of all ranks as one."""
    values = {}
    for field in dataclasses.fields(Batch):
        found = [getattr(part, field.name) for part in parts]
        values[field.name] = (
            found[0]
            if field.name == "step" or found[0] is None
            else torch.cat(found)
            if isinstance(found[0], torch.Tensor)
            else sum(found, ())
        )
    return Batch(**values)


def stored(place: str, key: str, network: ModelConfig = NETWORK, **asked) -> dict[str, np.ndarray]:
    """A sample's arrays as they are stored."""
    source = Source(config(place, **asked), network)
    members = source.reader.sample(source.index.numbers[key])
    return {name: np.load(io.BytesIO(content)) for name, content in members.items() if name.endswith("npy")}


def alter(place: str, old: str, new: str) -> None:
    """Change the text of an index."""
    path = Path(place, INDEX)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
