"""The diffusion that CogVideoX and Hallo3 are trained on: schedule, v-prediction, guidance, samplers.

Noise levels go from t = 0, almost clean, to t = 999, pure noise: x_t = α_t x_0 + σ_t ε with α² = ᾱ, σ² = 1 - ᾱ. The
network predicts v = α ε - σ x_0 (Salimans and Ho 2022, arXiv 2202.00512), which stays meaningful where α is 0.
Every draw is from a generator that the caller gives.

x: any shape; a tensor t has one level for each entry of x's first dimension. Samplers compute in the type of x: let it
be float32, whatever the network computes in. B: sample.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

LEVELS = 1000
SPACINGS = ("trailing", "linspace")

Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""x and t (int64 [B], the same in all places) -> v of x's shape."""
Progress = Callable[[int, int], None]
"""Called after each step with the number of steps done and of all."""


@dataclass(frozen=True)
class Schedule:
    """Noise levels: scaled-linear betas, shifted, and rescaled so that the last level is pure noise.

    start, end: the first and last beta. shift: the signal-to-noise ratio is divided by it: 1 for CogVideoX-5B and
    Hallo3, 3 for CogVideoX-2B. zero_snr: the rescaling of Lin et al. 2023 (arXiv 2305.08891, algorithm 1). spacing:
    which levels a sampler visits: `trailing` (999, 979 … for 50 steps) or `linspace` (999 … 0, evenly).
    """

    start: float = 0.00085
    end: float = 0.012
    shift: float = 1.0
    zero_snr: bool = True
    spacing: str = "trailing"

    @functools.cached_property
    def alphas_bar(self) -> torch.Tensor:
        """ᾱ of every level: float64 [1000]."""
        betas = torch.linspace(self.start**0.5, self.end**0.5, LEVELS, dtype=torch.float64) ** 2
        alphas_bar = torch.cumprod(1 - betas, dim=0)
        alphas_bar = alphas_bar / (self.shift + (1 - self.shift) * alphas_bar)
        if self.zero_snr:
            alphas = alphas_bar.sqrt()
            first, last = alphas[0], alphas[-1]
            alphas_bar = ((alphas - last) * first / (first - last)) ** 2
        return alphas_bar

    def levels(self, t: int | torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """α and σ of level t, or of the level of each sample of x, shaped to be multiplied with x.

        They are float32, or float64 with an x of that type.
        """
        at = torch.as_tensor(t, device=x.device)
        shape = at.shape + (1,) * (x.ndim - at.ndim)
        dtype = torch.promote_types(x.dtype, torch.float32)
        alphas, sigmas = self.alphas_bar.sqrt(), (1 - self.alphas_bar).sqrt()
        return alphas.to(x.device, dtype)[at].view(shape), sigmas.to(x.device, dtype)[at].view(shape)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """x at level t, of x0's type."""
        alpha, sigma = self.levels(t, x0)
        return (alpha * x0 + sigma * noise).to(x0.dtype)

    def velocity(self, x0: torch.Tensor, noise: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """What the network shall predict at level t, of x0's type."""
        alpha, sigma = self.levels(t, x0)
        return (alpha * noise - sigma * x0).to(x0.dtype)

    def x0(self, x: torch.Tensor, v: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """The clean sample that a prediction stands for, of x's type."""
        alpha, sigma = self.levels(t, x)
        return (alpha * x - sigma * v).to(x.dtype)

    def noise(self, x: torch.Tensor, v: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """The noise that a prediction stands for, of x's type."""
        alpha, sigma = self.levels(t, x)
        return (sigma * x + alpha * v).to(x.dtype)

    def timesteps(self, steps: int) -> list[int]:
        """The levels that a sampler of so many steps visits, noisiest first. Raises ValueError."""
        if not 1 <= steps <= LEVELS:
            raise ValueError(f"{steps} steps: a sampler makes 1 to {LEVELS}")
        if self.spacing == "trailing":
            return [round(LEVELS - step * LEVELS / steps) - 1 for step in range(steps)]
        if self.spacing == "linspace":
            return [round((LEVELS - 1) * step / max(steps - 1, 1)) for step in reversed(range(steps))]
        raise ValueError(f"spacing {self.spacing!r}: there is {' and '.join(SPACINGS)}")

    def walk(self, steps: int) -> Iterator[tuple[int, float, float, float, float]]:
        """For each step of a sampler: t, then α and σ there, then α and σ where it leads: at last to 1 and 0."""
        visited = self.timesteps(steps)
        places = [(math.sqrt(bar), math.sqrt(1 - bar)) for bar in self.alphas_bar[visited].tolist()]
        for t, (here, there) in zip(visited, itertools.pairwise([*places, (1.0, 0.0)]), strict=True):
            yield t, *here, *there


def guide(
    uncond: torch.Tensor, text: torch.Tensor, full: torch.Tensor, text_scale: float, audio_scale: float
) -> torch.Tensor:
    """Classifier-free guidance in two directions: towards the prompt, and from there towards the sound.

    uncond, text, full: predictions of any one shape, without conditions, with the prompt, with prompt and sound.
    With both scales equal `text` falls out, and one forward pass may be spared: then pass `full` for it.
    """
    return uncond + text_scale * (text - uncond) + audio_scale * (full - text)


@torch.no_grad()
def ddim(
    model: Model, x: torch.Tensor, schedule: Schedule, steps: int, progress: Progress | None = None
) -> torch.Tensor:
    """Sample by DDIM (Song et al. 2020, arXiv 2010.02502, η = 0). x: the noise to start from; returns x_0."""
    for step, (t, alpha, sigma, alpha_next, sigma_next) in enumerate(schedule.walk(steps), 1):
        v = model(x, _at(t, x))
        x0, noise = alpha * x - sigma * v, sigma * x + alpha * v
        x = (alpha_next * x0 + sigma_next * noise).to(x.dtype)
        if progress is not None:
            progress(step, steps)
    return x


@torch.no_grad()
def dpmpp_2m(
    model: Model, x: torch.Tensor, schedule: Schedule, steps: int, progress: Progress | None = None
) -> torch.Tensor:
    """Sample by DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2). x: the noise; returns x_0.

    λ is log α/σ, h its step. From pure noise h is infinite; the step's limit is DDIM's, and so is the last one's.
    """
    before, h_before = None, math.inf
    for step, (t, alpha, sigma, alpha_next, sigma_next) in enumerate(schedule.walk(steps), 1):
        x0 = alpha * x - sigma * model(x, _at(t, x))
        h = _lambda(alpha_next, sigma_next) - _lambda(alpha, sigma)
        d = _extrapolated(x0, before, h, h_before)
        x = (sigma_next / sigma * x - alpha_next * math.expm1(-h) * d).to(x.dtype)
        before, h_before = x0, h
        if progress is not None:
            progress(step, steps)
    return x


@torch.no_grad()
def dpmpp_2m_sde(
    model: Model,
    x: torch.Tensor,
    schedule: Schedule,
    steps: int,
    generator: torch.Generator,
    twice: bool = False,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Sample by SDE-DPM-Solver++(2M) (Lu et al. 2022, section 6): as above, with fresh noise in every step.

    generator: draws the noise, on its own device. twice: draw it twice from the second step to the last but one, and
    use the second draw, as the samplers of CogVideoX and Hallo3 do; so the same seed gives the same video.
    """
    before, h_before = None, math.inf
    for step, (t, alpha, sigma, alpha_next, sigma_next) in enumerate(schedule.walk(steps), 1):
        x0 = alpha * x - sigma * model(x, _at(t, x))
        h = _lambda(alpha_next, sigma_next) - _lambda(alpha, sigma)
        d = _extrapolated(x0, before, h, h_before)
        fresh = _drawn(x, generator)
        if twice and before is not None and sigma_next > 0:
            fresh = _drawn(x, generator)
        kept = sigma_next / sigma * math.exp(-h) * x - alpha_next * math.expm1(-2 * h) * d
        x = (kept + sigma_next * math.sqrt(-math.expm1(-2 * h)) * fresh).to(x.dtype)
        before, h_before = x0, h
        if progress is not None:
            progress(step, steps)
    return x


def _at(t: int, x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x),), t, device=x.device)


def _extrapolated(x0: torch.Tensor, before: torch.Tensor | None, h: float, h_before: float) -> torch.Tensor:
    """D of the paper: where x_0 goes, by its last two estimates. Where a step is infinite there is no telling."""
    if before is None or math.isinf(h):
        return x0
    half_over_r = h / (2 * h_before)
    return (1 + half_over_r) * x0 - half_over_r * before


def _lambda(alpha: float, sigma: float) -> float:
    if alpha == 0:
        return -math.inf
    return math.log(alpha / sigma) if sigma > 0 else math.inf


def _drawn(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
