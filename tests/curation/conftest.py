"""One cluster and one undisturbed run of the job, for all tests that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from curation import demo
from tests.curation import jobs


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    """The demo's footage: six real videos out of registry packages, and a broken one."""
    folder = tmp_path_factory.mktemp("films")
    demo.lay_out(folder)
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[jobs.Cluster]:
    with jobs.cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session")
def undisturbed(films, cluster, tmp_path_factory) -> tuple[Path, str]:
    """The output of a run on the demo's footage that nothing disturbed, up to `propose`, and what it printed."""
    output = tmp_path_factory.mktemp("undisturbed")
    said = jobs.run([f"input={films}/sources.csv", f"output={output}"], cluster.environment)
    return output, said


@pytest.fixture(scope="session")
def scored(films, cluster, tmp_path_factory) -> tuple[Path, str]:
    """The same of a whole run, scores and all."""
    output = tmp_path_factory.mktemp("scored")
    said = jobs.run([f"input={films}/sources.csv", f"output={output}", "until=score"], cluster.environment)
    return output, said
