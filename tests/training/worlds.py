"""Ranks for tests: one in this process, or two that a script is run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from training import parallel

ROOT = Path(__file__).resolve().parents[2]


def alone() -> parallel.World:
    """This process as the only rank."""
    return parallel.join(parallel.ParallelConfig(shard="none", recompute="none", compile=False, dtype="float32"))


def together(script: Path, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script on some ranks of this machine; what it printed and how it ended."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*torchrun, str(script), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
