"""Ranks for tests: one in this process, or several that a script is run on.

Several are forked from one process that has imported everything: that spares every rank the seconds which importing
torch takes. That process computes nothing, so that there are no threads to lose.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # or every rank imports it again, which takes a second

from training import parallel

ROOT = Path(__file__).resolve().parents[2]
GRACE = 10.0
"""Seconds that ranks are left to end by themselves when one of them has failed."""


def alone() -> parallel.World:
    """This process as the only rank."""
    return parallel.join(parallel.ParallelConfig(shard="none", recompute="none", compile=False, dtype="float32"))


def together(script: Path, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script on some ranks of this machine; what it printed and how it ended: 0 if all ranks ended well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, __file__, str(ranks), str(script), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def forked(count: int, work: Callable[[int], int], seconds: float, grace: float | None = None) -> list[int]:
    """Let as many processes as there are ranks do the work, each in the environment that torchrun gives it.

    work: takes the rank, returns the exit status. Those that have not ended after `seconds` are ended, and so are those
    that go on for `grace` seconds after one has failed. Returns how they ended, less than 0 for a signal.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {_fork(rank, count, port, work): rank for rank in range(count)}
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while children:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                rank = children.pop(child)
                statuses[rank] = os.waitstatus_to_exitcode(status)
                if statuses[rank] and grace is not None:
                    deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            for child in children:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [statuses[rank] for rank in range(count)]


def _fork(rank: int, count: int, port: int, work: Callable[[int], int]) -> int:
    child = os.fork()
    if child:
        return child
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    status = 70
    try:
        status = work(rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _script(count: int, script: str, arguments: list[str]) -> int:
    """Run a script on so many ranks; the exit status."""
    torch.set_num_threads(1)
    runpy.run_path(script)  # what it imports is then there for all

    def work(_: int) -> int:
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        return 0

    return int(any(forked(count, work, 100.0, GRACE)))


if __name__ == "__main__":
    sys.exit(_script(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
