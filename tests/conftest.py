"""What all tests share: the real footage, where it lies beside the repo, and one Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def footage() -> Path:
    """The folder of real footage beside the repo; a test that wants it is skipped, by name, where there is none."""
    folder = ROOT.parent / "shared" / "footage"
    if not folder.is_dir():
        pytest.skip("../shared/footage is not there")
    return folder
