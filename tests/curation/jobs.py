"""Running the job as its user does, and comparing what came out."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from manifests.schema import TABLES, Run, columns
from manifests.store import ManifestStore

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster on this machine's loopback."""

    address: str
    dashboard: str
    process: subprocess.Popen

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address}


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """`ray start --head` with two cores and a small object store, ended by the ids of its own processes."""
    port, dashboard = free_port(), free_port()
    # A submitted job looks for its cluster in this folder, and in the machine's own it would find the one started last.
    # Sockets lie there too, and their paths must be short: pytest's folders are too deep.
    own = tempfile.mkdtemp(prefix="ray-")
    command = [
        *[sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"],
        *["--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "2"],
        *["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--disable-usage-stats"],
        *["--object-store-memory", str(80 * 1024 * 1024), "--temp-dir", own],
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find `python`
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": path}
    log = (folder / "cluster.log").open("w")
    process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: listens(port) and listens(dashboard) and raylets(process.pid), 90)
        yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", process)
    finally:
        kill_tree(process.pid)
        shutil.rmtree(own, ignore_errors=True)
        log.close()


def start(arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
    """`python curation/run.py …`, on the environment's cluster or a Ray of its own; scores only if asked for."""
    if not any(argument.startswith("until=") for argument in arguments):
        arguments = [*arguments, "until=propose"]
    return subprocess.Popen(
        [sys.executable, "curation/run.py", *arguments],
        cwd=ROOT,
        env=environment or own_ray(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(arguments: list[str], environment: dict[str, str] | None = None, status: int = 0, limit: float = 500) -> str:
    """What a whole run prints; fails when its exit status is another."""
    job = start(arguments, environment)
    try:
        said, _ = job.communicate(timeout=limit)
    finally:
        kill_tree(job.pid)
    assert job.returncode == status, said
    return said


def own_ray() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return environment


def rows(output: Path, without: tuple[str, ...] = ()) -> dict[str, list[tuple]]:
    """Every row of every table but `runs`, which is about the runs themselves; sorted."""
    store = ManifestStore(str(output))
    found = {}
    for table in TABLES:
        if table is not Run:
            names = [name for name in columns(table) if name not in without]
            found[table.table] = sorted(
                (tuple(map(repr, row.values())) for row in store.arrow(table, names).to_pylist()),
            )
    return found


def stage_processes(job: int) -> list[psutil.Process]:
    """The processes below a job's cluster in which stages run."""
    found = []
    for process in psutil.Process(job).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "curation.isolation import serve" in " ".join(process.cmdline()):
                found.append(process)
    return found


def ray_workers(job: int) -> list[psutil.Process]:
    """The Ray workers below a process that hold a stage."""
    found = []
    for process in psutil.Process(job).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def raylets(cluster: int) -> list[int]:
    """The ids of the raylets below a process."""
    return [process.pid for process in psutil.Process(cluster).children(recursive=True) if process.name() == "raylet"]


class StoreWatch(threading.Thread):
    """The most memory that Ray's object store has really used, in bytes, while the watch runs."""

    def __init__(self, cluster: Cluster):
        super().__init__(daemon=True)
        (self.raylet,) = raylets(cluster.process.pid)
        self.peak, self.over = 0, threading.Event()

    def __enter__(self) -> StoreWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.peak = max(self.peak, self.used())

    def used(self) -> int:
        """Resident bytes of the store's shared memory."""
        used, inside = 0, False
        for line in Path(f"/proc/{self.raylet}/smaps").read_text().splitlines():
            if line.split(" ", 1)[0].count("-") == 1:
                inside = "/plasma" in line
            elif inside and line.startswith("Rss:"):
                used += int(line.split()[1]) * 1024
        return used


def kill_tree(pid: int) -> None:
    """End a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, 10)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s")
        time.sleep(0.1)


def copy_of(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
