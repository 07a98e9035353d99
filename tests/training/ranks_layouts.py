"""Runs the trainings of a plan as `ranks_train.py` does, with blocks compiled by a backend that takes a second.

What is traced, shared and traced again is torch.compile's own; only the kernels are those of plain torch.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch

from tests.training import ranks_train

if __name__ == "__main__":
    ranks_train.SECONDS = 240.0  # tracing on four ranks takes a minute where others work, too
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    ranks_train.main(Path(sys.argv[1]))
