"""The training loop: from settings to a trained network in `output`.

What a step does follows from the settings, the step's number and what was learnt before. So parameters, optimizer,
average and the number of steps are all that is saved, and a run that goes on is the run that was never stopped.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import yaml

from model.config import ModelConfig
from model.portrait import Portrait
from model.settings import SettingsError
from training import cost, devices, guard, parallel, stages
from training.checks import Checks
from training.config import TrainConfig, different, flat
from training.data import Batch, Loader, Source
from training.ema import Ema
from training.finish import finish
from training.objective import Objective
from training.observe import Observer
from training.parallel import World
from training.saved import Saved, StateError
from training.stages import StageError, Trained
from training.state import Keeper, folder_of

CHECKPOINTS = "checkpoints"
SETTINGS = "settings.yaml"

Say = Callable[[str], None]


class TrainError(Exception):
    """A run that cannot begin or go on: why, and what to do."""


class GoneError(TrainError):
    """Another rank ended, or does not answer: that one's own words say why."""


@dataclass
class Run:
    """A run that is set up. step: how many are done."""

    config: TrainConfig
    network: ModelConfig
    what: Trained
    world: World
    source: Source
    objective: Objective
    portrait: Portrait
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    keeper: Keeper
    step: int = 0


def train(config: TrainConfig, say: Say = print) -> int:
    """Train until `config.steps` steps are done, or until asked to stop; returns how many are done.

    say: takes lines for people, of the first rank alone. Raises SettingsError before anything is loaded, then
    TrainError, StageError, and what reading shards, weights and checkpoints may raise.
    """
    config.check()
    config.check_start()
    network = config.network.sizes()
    what = stages.trained(network, config.stage, config.trained)
    world = parallel.join(config.parallel)
    tell = say if world.is_main else _silent
    try:
        run = prepared(config, network, what, world, tell)
        if run.step < config.steps:
            with asked_to_stop() as asked:
                loop(run, asked, tell)
        if run.step >= config.steps and world.is_main:
            tell(finish(config, config.folder / CHECKPOINTS))
        return run.step
    except torch.OutOfMemoryError as error:
        raise TrainError(f"rank {world.rank}: {str(error).splitlines()[0]} plan=true says what takes less") from error
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or (world.ranks > 1 and "gloo" in str(error).lower()):
            raise GoneError(
                f"rank {world.rank}: another rank ended or does not answer ({str(error).partition('. ')[0]}); the same "
                "command goes on from the last checkpoint"
            ) from error
        raise
    finally:
        world.close()


def prepared(config: TrainConfig, network: ModelConfig, what: Trained, world: World, say: Say) -> Run:
    """A run with its network as it starts, or as the newest checkpoint left it."""
    if config.batch % world.data_ranks:
        raise SettingsError(
            f"batch={config.batch} does not divide among {world.data_ranks} ranks with their own samples"
        )
    samples = Source(config.data, network, config.seed)
    for line in (samples.line(), *samples.remarks(), *what.lines()):
        say(line)
    objective = Objective(config.objective, network, config.batch, what.audio, config.parallel.compute)
    keeper = Keeper(config.folder / CHECKPOINTS, config.state, world)
    newest = keeper.latest()
    if newest is not None and not config.resume:
        raise TrainError(f"{config.folder} holds a run of {newest} steps: name another output=…, or resume=true")
    drawn = config.seed if newest is None and not config.initial else None
    portrait = parallel.build(network, config.parallel, world, what.names, drawn, config.lora)
    if config.lora.rank:
        count = sum(one.numel() for one in parallel.trainable(portrait).values())
        say(f"trained instead of these: adapters of rank {config.lora.rank}, {count / 1e6:.3f} M parameters")
    if newest is None and config.initial:
        loaded = parallel.load(portrait, config.initial, config.fresh, config.seed)
        say(f"starts from {config.initial}" + (f"; made new: {len(loaded.fresh)} tensors" if loaded.fresh else ""))
    optimizer = optimizer_of(portrait, config)
    ema = Ema(portrait, config.state.ema) if config.state.ema else None
    run = Run(config, network, what, world, samples, objective, portrait, optimizer, ema, keeper)
    if newest is not None:
        resume(run, newest, say)
    if world.is_main:
        _write_settings(config)
    return run


def resume(run: Run, step: int, say: Say) -> None:
    """Take up the checkpoint of a step. Raises TrainError where its run had other settings or samples."""
    config = run.config
    extra = Saved(folder_of(run.keeper.folder, step)).contents["extra"]
    changes = different(extra["settings"], flat(config))
    if extra["samples"] != run.source.version:
        changes.append("the shards hold other samples")
    if changes and not config.changed:
        raise TrainError(
            f"{config.folder} holds a run with other settings: {'; '.join(changes)}. Give them as they were, name "
            "another output=…, or go on all the same with changed=true"
        )
    run.keeper.restore(run.portrait, run.optimizer, run.ema, step)
    run.step = step
    say(f"goes on after step {run.step}" + (f" with changes: {'; '.join(changes)}" if changes else ""))


def optimizer_of(portrait: Portrait, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; its learning rate is set in every step."""
    settings = config.optimizer
    return torch.optim.AdamW(
        list(parallel.trainable(portrait).values()),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=settings.fused,
    )


def loop(run: Run, asked: Callable[[], bool], say: Say) -> None:
    """Train: step by step, until all are done or a stop is asked for."""
    config, world = run.config, run.world
    shape = cost.shape_of(run.network, run.what, config.batch)
    work = cost.work(run.network, run.what, shape, config.parallel.recompute)
    peak = devices.peak(world.device, config.parallel.dtype, config.observe.device_tflops)
    observer = Observer(config.observe, config.folder, world, work, peak, step=run.step, steps=config.steps)
    samples = Loader(run.source, batch=config.batch, rank=world.data_rank, ranks=world.data_ranks, step=run.step)
    checks = Checks.of(config, run.network, world, observer)
    batches, started_at = iter(samples), run.step
    try:
        while run.step < config.steps:
            began = time.perf_counter()
            batch = next(batches).to(world.device)
            waited = time.perf_counter() - began
            losses, norm = step(run, batch, first=run.step == started_at)
            lr = config.optimizer.lr_at(run.step)
            run.step += 1
            seconds = time.perf_counter() - began
            loss = float(losses.mean())
            observer.step(run.step, loss, norm, lr, waited, seconds, work.tokens, samples.skipped)
            checks(run.step, run.portrait, run.objective, run.ema)
            stop, last = world.anyone(asked()), run.step == config.steps
            if stop or last or config.state.due(run.step):
                save(run, wait=stop or last)
            if stop:
                say(f"asked to stop: saved after step {run.step}; the same command goes on from here")
                return
    except BaseException:
        with suppress(StateError):  # what is being written may well become whole; the error at hand is the one to tell
            run.keeper.wait()
        raise
    finally:
        samples.close()
        observer.close()


def step(run: Run, batch: Batch, first: bool) -> tuple[torch.Tensor, float]:
    """One step: forward, backward, and the optimizer's.

    Returns the losses of all ranks' samples, float64 [batch] in the batch's order, so that what they add up to does not
    depend on who computed what; and the length of the gradient.
    first: check that all that is trained got a gradient.
    """
    config, world, portrait = run.config, run.world, run.portrait
    given = run.objective.given(batch, config.seed)
    size = config.micro or len(batch)
    pieces = list(zip(batch.split(size), given.split(size), strict=True))
    parts = []
    for number, (part, part_given) in enumerate(pieces, 1):
        parallel.accumulate(portrait, last=number == len(pieces))
        losses_B = run.objective.losses(portrait, part, part_given)
        (losses_B.sum() / config.batch).backward()  # ranks add up their gradients
        parts.append(losses_B.detach())
    losses_B = torch.cat(parts)
    if first:
        _check_gradients(run)
    norm = parallel.gradient_norm(portrait, world)
    guard.check(
        run.step + 1,
        losses_B,
        float(norm),
        batch=batch,
        t_B=given.t_B,
        network=portrait,
        world=world,
        folder=config.folder,
        seed=config.seed,
    )
    if config.optimizer.clip:
        parallel.shorten_gradients(portrait, norm, config.optimizer.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = config.optimizer.lr_at(run.step)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema is not None:
        run.ema.update(portrait, run.step + 1)
    return world.everyone(losses_B, batch.places, config.batch), float(norm)


def save(run: Run, wait: bool) -> None:
    """Write a checkpoint: everything that the next step depends on."""
    extra = {"settings": flat(run.config), "samples": run.source.version, "made_with": run.source.made_with}
    run.keeper.save(run.step, run.portrait, run.optimizer, run.ema, extra, wait=wait)


def _check_gradients(run: Run) -> None:
    """Raises StageError, on all ranks, where something is trained that has no gradient."""
    missing = stages.without_gradient(run.portrait, parallel.trainable(run.portrait))
    if run.world.anyone(bool(missing)):
        raise StageError(
            f"{len(missing)} parameters that stage {run.what.stage} trains got no gradient: {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; trained=[…] names too much, or the samples lack what they are for"
        )


class Stop:
    """Whether a stop was asked for: by SIGTERM, or by Ctrl-C (a second one interrupts at once)."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def note(self, number: int, _frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Within, SIGTERM and Ctrl-C end no step: they are noted, and the loop looks."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_settings(config: TrainConfig) -> None:
    """Keep the settings in `output`, as a file that can be given again. Raises TrainError."""
    path = config.folder / SETTINGS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(
            yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        part.replace(path)
    except OSError as error:
        raise TrainError(f"{path}: cannot be written: {error.strerror or error}") from error


def _silent(_: str) -> None:
    pass
