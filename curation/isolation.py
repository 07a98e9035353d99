"""A stage in a process of its own: a crash, a hang or a memory overrun costs the row at hand and nothing else.

Decoders are native code fed with files from anywhere; one broken film must not take a job of ten thousand down, nor
go unrecorded. `Cell` starts a child process, builds the stage in it once, and hands it one row at a time over a pipe.
What the child and its decoder write to standard error is kept, row by row, as the log of a failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).resolve().parents[1]
_LOG_BYTES = 4000
_WATCH_SECONDS = 0.2
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """What a row may cost; beyond it the row is a failure."""

    seconds: float = 3600.0
    memory_gb: float = 4.0
    attempts: int = 3
    threads: int = 1


@dataclass(frozen=True)
class Fault:
    """Why a row could not be done."""

    error: str
    message: str
    attempts: int
    log: str


@dataclass(frozen=True)
class Outcome:
    """What came of a row: a value or a fault, and the CPU time it took."""

    value: Any
    fault: Fault | None
    core_seconds: float


class SetupError(Exception):
    """The stage itself could not be built: no row of the job can be done."""


class Cell:
    """A child process that holds one stage.

    build: a picklable function that returns the stage; called once in each child.
    A row that raises is not tried again; one that kills its process is, up to `limits.attempts` times, since a
    process may also be killed from outside; one that runs out of time or memory is not.
    """

    def __init__(self, build: Callable[[], Callable[..., Any]], limits: Limits):
        self.build, self.limits = build, limits
        self.process: subprocess.Popen | None = None
        self.pipe: Connection | None = None
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the cell)

    def __call__(self, *row: Any) -> Outcome:
        """The outcome of the stage on one row; raises SetupError when the stage cannot be built."""
        core_seconds = 0.0
        for attempt in range(1, self.limits.attempts + 1):
            kind, value, spent = self._try(row)
            core_seconds += spent
            if kind == "done":
                return Outcome(value, None, core_seconds)
            if kind == "unbuilt":
                raise SetupError(value)
            error, message = value
            last = kind != "died" or attempt == self.limits.attempts
            if last:
                return Outcome(None, Fault(error, message, attempt, self._log_tail()), core_seconds)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the child."""
        if self.pipe is not None:
            self.pipe.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = self.pipe = None

    def _try(self, row: tuple) -> tuple[str, Any, float]:
        """(done | raised | died | stopped | unbuilt, value or (error, message), CPU seconds)."""
        if self.process is None:
            self._start()
        assert self.process is not None and self.pipe is not None
        self.log.seek(0)
        self.log.truncate()
        try:
            self.pipe.send(row)
            overrun = self._watch()
            if overrun is None:
                return self.pipe.recv()
        except (EOFError, ConnectionError):
            code = self._reap()
            return "died", ("WorkerDied", f"the process that worked on it died ({_manner(code)})"), 0.0
        spent = _cpu_seconds(self.process.pid)
        self.close()
        return "stopped", overrun, spent

    def _watch(self) -> tuple[str, str] | None:
        """Wait for the answer; (error, message) when the row runs over its time or memory."""
        assert self.process is not None and self.pipe is not None
        started = time.monotonic()
        while not self.pipe.poll(_WATCH_SECONDS):
            if time.monotonic() - started > self.limits.seconds:
                return "TimeLimit", f"took longer than {self.limits.seconds:g} s and was stopped"
            if _memory_gb(self.process.pid) > self.limits.memory_gb:
                return "MemoryLimit", f"used more than {self.limits.memory_gb:g} GB of memory and was stopped"
        return None

    def _start(self) -> None:
        ours, theirs = Pipe()
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = {name: str(self.limits.threads) for name in _THREADS}
        # -c rather than -m: the module must not exist twice in the child, or its classes would not match.
        code = f"from curation.isolation import serve; serve({theirs.fileno()}, {os.getpid()})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=self.log,
            stdout=self.log,
            env={**os.environ, **threads, "PYTHONPATH": path},
        )
        theirs.close()
        self.pipe = ours
        ours.send(self.build)

    def _reap(self) -> int:
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.poll()
        self.close()
        return -signal.SIGKILL if code is None else code

    def _log_tail(self) -> str:
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - _LOG_BYTES))
        text = self.log.read().decode("utf-8", "replace").strip()
        return re.sub(r"0x[0-9a-f]{6,}", "0x…", text)  # addresses differ from run to run, and say nothing

    def __del__(self) -> None:
        self.close()


def made(build: Callable[[], Any]) -> Any:
    """What the function makes; raises SetupError, in one line, when it cannot."""
    try:
        return build()
    except Exception as error:
        traceback.print_exc()
        raise SetupError(f"{type(error).__name__}: {error}") from error


def serve(descriptor: int, parent: int) -> None:
    """The child's side: build the stage, then answer rows until the parent goes away."""
    faulthandler.enable()
    _die_with(parent)
    pipe = Connection(descriptor)
    build = pipe.recv()
    stage = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            row = pipe.recv()
            before = time.process_time()
            try:
                if stage is None:
                    stage = made(build)
                answer = ("done", stage(*row), time.process_time() - before)
            except SetupError as error:
                pipe.send(("unbuilt", str(error), 0.0))
                return
            except Exception as error:
                traceback.print_exc()
                message = str(error) or f"no message ({type(error).__name__})"
                answer = ("raised", (type(error).__name__, message), time.process_time() - before)
            sys.stderr.flush()
            pipe.send(answer)


def _die_with(parent: int) -> None:
    """See to it that this process ends when its parent does, and first when memory runs out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        raise SystemExit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _memory_gb(pid: int) -> float:
    try:
        return psutil.Process(pid).memory_info().rss / 1e9
    except psutil.NoSuchProcess:
        return 0.0


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _manner(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name
