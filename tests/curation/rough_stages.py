"""Stages that misbehave in real ways, told how by the row they are given."""

from __future__ import annotations

import ctypes
import os
import sys
import time


def build():
    """The stage: it does what its row says."""
    return behave


def build_nothing():
    raise FileNotFoundError("the model is not there")


def behave(deed: str, *rest: object):
    if deed == "exit":
        os._exit(3)
    if deed == "segfault":
        ctypes.string_at(0)
    if deed == "hang":
        time.sleep(1000)
    if deed == "fill memory":
        held = []
        while True:
            held.append(os.urandom(1 << 20) * 16)
    if deed == "raise":
        print("the decoder said this", file=sys.stderr)
        raise ValueError("what went wrong")
    if deed == "exit once":
        (mark,) = rest
        if not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(1)
    if deed == "pid":
        return os.getpid()
    if deed == "threads":
        return os.environ["OMP_NUM_THREADS"]
    if deed == "work":
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    return deed
