"""What is looked at on the way: validation losses, the wrong-audio gap, and clips, every so many steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from model.config import ModelConfig
from model.portrait import Portrait
from training import data, validation
from training.config import TrainConfig
from training.data import Batch
from training.ema import Ema
from training.objective import Objective
from training.observe import Observer
from training.parallel import World
from training.validation import Clips


@dataclass(frozen=True)
class Checks:
    """The validation of a run. batch: its samples, always the same; clips: what draws some of them."""

    config: TrainConfig
    world: World
    observer: Observer
    batch: Batch | None
    clips: Clips | None

    @staticmethod
    def of(config: TrainConfig, network: ModelConfig, world: World, observer: Observer) -> Checks:
        """Raises DataError, CodecError where samples or codec cannot be had: before training, not after hours."""
        settings = config.validation
        drawing = bool(settings.clips_every and settings.clips)
        if not (settings.every and settings.samples) and not drawing:
            return Checks(config, world, observer, None, None)
        source = data.validation(config.data, network, config.seed)
        batch = source.batch(validation.chosen(source.keys, max(settings.samples, settings.clips if drawing else 0)))
        clips = None
        if drawing:
            codec = source.prepare.codec
            clips = Clips(settings, codec, config.folder, world, source.video, observer.say)
        return Checks(config, world, observer, batch, clips)

    def __call__(self, step: int, portrait: Portrait, objective: Objective, ema: Ema | None) -> None:
        """Look, if it is time after so many steps: at the average of the weights where there is one."""
        config = self.config.validation
        losses, drawing = self._due(step, config.every), self.clips is not None and self._due(step, config.clips_every)
        if self.batch is None or not (losses or drawing):
            return
        seed = self.config.seed
        with ema.applied(portrait) if ema is not None else nullcontext():
            if losses:
                found = validation.validate(portrait, objective, self.batch, config.levels, seed, self.world)
                self.observer.notes({f"validation/{name}": value for name, value in found.items()}, step)
            if drawing and self.clips is not None:
                self.clips.draw(portrait, objective, self.batch, step, seed)

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.config.steps)
