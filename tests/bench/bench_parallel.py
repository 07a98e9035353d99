#!/usr/bin/env python
"""Step time and memory of FSDP2 on two CPU ranks against one rank that holds everything, on the same samples.

  python tests/bench/bench_parallel.py          (about a minute and a half)

Every rank computes in one thread, so two ranks would take half the time if they had nothing to tell each other. Memory
is what a rank's tensors hold between steps (parameters and AdamW's state), and how much the process grew at its fullest
since before the network was built: the rest is torch's own.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import json
import os
import resource
import subprocess
import time

RANKS = 2
STEPS = 4
SIZES = {"width": 384, "heads": 6, "layers": 6, "latent_height": 12, "latent_width": 18, "patch": 2}
VARIANTS = ("one rank, plain", "two ranks, copies", "two ranks, FSDP2", "two ranks, FSDP2, one shared sample")


def measured(variant: str) -> None:
    """A rank of a variant: prints its figures as JSON."""
    import torch

    from model.config import preset
    from tests.training.small_training import Run
    from training import parallel
    from training.shares import local

    torch.set_num_threads(1)
    shard = "none" if "copies" in variant else "fsdp"
    context = RANKS if "shared" in variant else 1
    config = parallel.ParallelConfig(shard=shard, context=context, recompute="none", dtype="float32")
    world = parallel.join(config)
    network = preset("tiny", latent_frames=3, **SIZES)
    before, began = fullest(), time.perf_counter()
    run = Run(world, config, network=network)
    built = time.perf_counter() - began
    run.step(0)
    seconds = []
    for number in range(1, STEPS):
        start = time.perf_counter()
        run.step(number)
        seconds.append(time.perf_counter() - start)
    trained = parallel.trainable(run.portrait).values()
    tensors = [one for parameter in trained for one in (parameter, *run.optimizer.state[parameter].values())]
    held = sum(local(one).nbytes for one in tensors)
    if world.is_main:
        figures = {"step_s": min(seconds), "build_s": built, "held_mb": held / 1e6}
        figures["grown_mb"] = fullest() - before
        figures["parameters_m"] = sum(one.numel() for one in run.portrait.parameters()) / 1e6
        print(json.dumps(figures), flush=True)
    world.close()


def fullest() -> float:
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
    found = {}
    for variant in VARIANTS:
        command = [sys.executable] if variant.startswith("one") else torchrun
        environment = {**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, __file__, variant], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            sys.exit(f"{variant}: {done.stderr[-2000:]}")
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    base = found[VARIANTS[0]]
    print(f"{base['parameters_m']:.0f} M parameters, 4 samples a step, the quickest of {STEPS - 1} steps")
    for variant, figures in found.items():
        print(
            f"{variant:38} {figures['step_s']:6.2f} s a step ({figures['step_s'] / base['step_s']:.2f} x), "
            f"{figures['held_mb']:5.0f} MB held a rank ({figures['held_mb'] / base['held_mb']:.2f} x), "
            f"grew by {figures['grown_mb']:5.0f} MB ({figures['grown_mb'] / base['grown_mb']:.2f} x), "
            f"built in {figures['build_s']:.1f} s"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measured(sys.argv[1])
    else:
        main()
