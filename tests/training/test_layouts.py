"""The loop on four ranks, in every layout: the same training as on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.packed import made
from tests.training.runs import NETWORK, losses, settings
from tests.training.worlds import ROOT
from training.observe import metrics

SCRIPT = ROOT / "tests" / "training" / "ranks_layouts.py"
STEPS = 5
ALONE = ("one", "again", "one-half")  # the others have four ranks

TWO_BY_TWO = ("parallel.shard=hsdp", "parallel.replicas=2", "micro=1")
SHARED = ("parallel.context=2", "parallel.recompute=selective")
HALF = ("parallel.dtype=bfloat16",)
COMPILED = ("parallel.compile=true",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are: alone, in ranks that share samples, and one begun by two replicas and gone on with alone."""
    place = tmp_path_factory.mktemp("layouts")
    shards = made(place / "shards", samples=12, network=NETWORK, per_shard=4)
    every = f"steps={STEPS}"
    _trained(
        place,
        {
            "one": settings(shards, place / "one", every),
            "context": settings(shards, place / "context", every, *SHARED),
            "begun": settings(shards, place / "hsdp", "steps=3", *TWO_BY_TWO),
            "again": settings(shards, place / "hsdp", every),
        },
    )
    return place


@pytest.fixture(scope="module")
def more(folder: Path) -> Path:
    """Everything at once: replicas whose ranks share samples, compiled, in bfloat16."""
    both = (*TWO_BY_TWO, *SHARED)
    shards, every = str(folder / "shards"), f"steps={STEPS}"
    _trained(
        folder,
        {
            "hsdp-context": settings(shards, folder / "hsdp-context", every, *both),
            "compiled": settings(shards, folder / "compiled", every, *both, *COMPILED),
            "one-half": settings(shards, folder / "one-half", every, *HALF),
            "half": settings(shards, folder / "half", every, *both, *HALF),
            "half-compiled": settings(shards, folder / "half-compiled", every, *both, *HALF, *COMPILED),
        },
    )
    return folder


def _trained(place: Path, cases: dict[str, list[str]]) -> None:
    """Run trainings, one after the other; each must end well."""
    plan = [{"name": name, "ranks": 1 if name in ALONE else 4, "settings": asked} for name, asked in cases.items()]
    (place / "plan.json").write_text(json.dumps(plan))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(SCRIPT), str(place / "plan.json")], env=environment, check=True)
    for name in cases:
        statuses = json.loads((place / f"{name}.json").read_text())["statuses"]
        assert set(statuses) == {0}, (place / f"{name}.rank-0.log").read_text()


def _apart(one: Path, other: Path) -> float:
    """How far two runs are apart: the largest difference of a step's loss."""
    found = losses(one), losses(other)
    assert len(found[0]) == len(found[1]) == len(set(found[0])) == STEPS
    return max(abs(a - b) for a, b in zip(*found, strict=True))


def _lengths(run: Path) -> list[float]:
    """The length of every step's gradient."""
    return [row["gradient_norm"] for row in metrics(run) if "loss" in row]


@pytest.mark.parametrize("name", ["hsdp", "context"])
def test_four_ranks_train_as_one_does(folder: Path, name: str) -> None:
    assert _apart(folder / "one", folder / name) < 1e-6
    assert _lengths(folder / name) == pytest.approx(_lengths(folder / "one"), rel=1e-4)


def test_what_two_replicas_saved_one_rank_goes_on_with(folder: Path) -> None:
    assert len(list((folder / "hsdp" / "checkpoints" / "step-00000003").glob("*.safetensors"))) == 4
    assert "goes on after step 3" in (folder / "again.rank-0.log").read_text()


@pytest.mark.soak
@pytest.mark.parametrize("name", ["hsdp-context", "compiled"])
def test_four_ranks_that_share_samples_in_replicas_train_as_one_does(more: Path, name: str) -> None:
    assert _apart(more / "one", more / name) < 1e-6
    assert _lengths(more / name) == pytest.approx(_lengths(more / "one"), rel=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["half", "half-compiled"])
def test_four_ranks_in_bfloat16_come_as_near_as_one_does(more: Path, name: str) -> None:
    assert 0 < _apart(more / "one", more / "one-half") < 0.02
    assert 0 < _apart(more / "one", more / name) < 0.02
    assert _apart(more / "one-half", more / name) < 0.02
