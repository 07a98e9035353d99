"""A stage in a process of its own: whatever a row does to it, the others are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from curation.isolation import Cell, Limits, SetupError
from tests.curation import rough_stages

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cell():
    cell = Cell(rough_stages.build, Limits(seconds=60, memory_gb=0.5))
    yield cell
    cell.close()


def test_a_row_that_hangs_is_ended_in_time():
    cell = Cell(rough_stages.build, Limits(seconds=1))
    fault = cell("hang").fault
    assert (fault.error, fault.attempts) == ("TimeLimit", 1) and "longer than 1 s" in fault.message
    assert cell("fine").value == "fine"
    cell.close()


@pytest.mark.parametrize(
    ("deed", "error", "message", "attempts"),
    [
        ("exit", "WorkerDied", "exit status 3", 3),
        ("segfault", "WorkerDied", "SIGSEGV", 3),
        ("fill memory", "MemoryLimit", "more than 0.5 GB", 1),
        ("raise", "ValueError", "what went wrong", 1),
    ],
)
def test_a_row_that_cannot_be_done_says_why_and_costs_no_other(cell, deed, error, message, attempts):
    assert cell("fine").value == "fine"
    fault = cell(deed).fault
    assert (fault.error, fault.attempts) == (error, attempts)
    assert message in fault.message
    assert cell("fine").value == "fine"


def test_what_was_written_to_stderr_is_the_log_of_its_row_alone(cell):
    log = cell("raise").fault.log
    assert "the decoder said this" in log and "Traceback" in log
    assert "the decoder" not in cell("exit").fault.log


def test_a_process_that_was_killed_from_outside_is_tried_again(cell, tmp_path):
    outcome = cell("exit once", str(tmp_path / "mark"))
    assert outcome.fault is None and outcome.value == "exit once"


def test_the_stage_is_built_once(cell):
    assert cell("pid").value == cell("pid").value != os.getpid()


def test_cpu_time_is_counted(cell):
    assert 0.15 < cell("work").core_seconds < 1
    assert cell("fine").core_seconds < 0.1


def test_libraries_get_the_threads_they_were_given():
    cell = Cell(rough_stages.build, Limits(threads=3))
    assert cell("threads").value == "3"
    cell.close()


def test_a_stage_that_cannot_be_built_is_no_fault_of_the_row():
    cell = Cell(rough_stages.build_nothing, Limits())
    with pytest.raises(SetupError, match="FileNotFoundError: the model is not there"):
        cell("fine")
    cell.close()


def test_the_child_dies_with_its_parent():
    code = (
        "from curation.isolation import Cell, Limits; from tests.curation import rough_stages; import threading, time\n"
        "cell = Cell(rough_stages.build, Limits())\n"
        "print(cell('pid').value, flush=True)\n"
        "cell('hang')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    time.sleep(0.3)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)
