"""Schedule, targets and steps are those of diffusers' schedulers; samplers find what a known score leads to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from model.diffusion import LEVELS, Schedule, ddim, dpmpp_2m, dpmpp_2m_sde, guide

PUBLISHED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}
"""scheduler_config.json of CogVideoX-5b-I2V; CogVideoX-2b's has a shift of 3."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- schedule and targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
def test_the_schedule_is_diffusers(kind, shift) -> None:
    theirs = kind(**{**PUBLISHED, "snr_shift_scale": shift}).alphas_cumprod
    torch.testing.assert_close(Schedule(shift=shift).alphas_bar, theirs.double(), atol=1e-12, rtol=0)


def test_without_rescaling_the_schedule_is_diffusers_too() -> None:
    theirs = CogVideoXDDIMScheduler(**{**PUBLISHED, "rescale_betas_zero_snr": False}).alphas_cumprod
    torch.testing.assert_close(Schedule(zero_snr=False).alphas_bar, theirs, atol=1e-12, rtol=0)


def test_the_last_level_is_pure_noise_and_levels_grow_noisier() -> None:
    alphas_bar = Schedule().alphas_bar
    assert alphas_bar.shape == (LEVELS,)
    assert alphas_bar[-1] == 0
    assert (alphas_bar.diff() < 0).all()
    x0, noise = draw(2, 3), draw(2, 3, seed=1)
    assert torch.equal(Schedule().add_noise(x0, noise, 999), noise)
    assert torch.equal(Schedule().velocity(x0, noise, 999), -x0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noisy_samples_and_targets_are_diffusers(shift, dtype) -> None:
    theirs = CogVideoXDDIMScheduler(**{**PUBLISHED, "snr_shift_scale": shift})
    ours = Schedule(shift=shift)
    t = torch.tensor([0, 1, 19, 500, 979, 998, 999])
    x0, noise = draw(7, 2, 3, 4, dtype=dtype), draw(7, 2, 3, 4, seed=1, dtype=dtype)
    # diffusers takes the root of 1 - ᾱ in the samples' type: in float32 that is worth some 1e-6 near t = 0.
    close = {"atol": 1e-6 if dtype == torch.float64 else 5e-6, "rtol": 0}
    torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), **close)
    torch.testing.assert_close(ours.velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), **close)


def test_a_prediction_gives_back_the_sample_and_the_noise_it_was_made_of() -> None:
    schedule = Schedule()
    t = torch.tensor([0, 250, 999])
    x0, noise = draw(3, 5), draw(3, 5, seed=1)
    x, v = schedule.add_noise(x0, noise, t), schedule.velocity(x0, noise, t)
    torch.testing.assert_close(schedule.x0(x, v, t), x0, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.noise(x, v, t), noise, atol=1e-6, rtol=0)


def test_half_precision_stays_half_and_is_computed_in_float32() -> None:
    x0, noise = draw(4, 50).to(torch.bfloat16), draw(4, 50, seed=1).to(torch.bfloat16)
    noisy = Schedule().add_noise(x0, noise, 300)
    assert noisy.dtype == torch.bfloat16
    exact = Schedule().add_noise(x0.double(), noise.double(), 300)
    assert torch.equal(noisy, exact.to(torch.float32).to(torch.bfloat16))


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 50, 64, 999, 1000])
def test_samplers_visit_diffusers_levels(spacing, steps) -> None:
    theirs = CogVideoXDDIMScheduler(**{**PUBLISHED, "timestep_spacing": spacing})
    theirs.set_timesteps(steps)
    if (spacing, steps) != ("linspace", 1):  # diffusers starts at t = 0 then, where there is nothing left to do
        assert Schedule(spacing=spacing).timesteps(steps) == theirs.timesteps.tolist()


def test_fifty_steps_go_from_999_by_twenties() -> None:
    assert Schedule().timesteps(50) == list(range(999, 0, -20))


def test_steps_and_spacings_that_cannot_be_are_refused() -> None:
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"{steps} steps: a sampler makes 1 to 1000"):
            Schedule().timesteps(steps)
    with pytest.raises(ValueError, match="'leading': there is trailing and linspace"):
        Schedule(spacing="leading").timesteps(50)


# --- steps ----------------------------------------------------------------------------------------------------


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Some network."""
    return torch.sin(3 * x) + t.view(-1, *[1] * (x.ndim - 1)) / 1000


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_ddim_walks_as_diffusers_does(shift, steps) -> None:
    theirs = CogVideoXDDIMScheduler(**{**PUBLISHED, "snr_shift_scale": shift})
    theirs.set_timesteps(steps)
    x = start = draw(2, 3, 4, dtype=torch.float64)
    for t in theirs.timesteps:
        x = theirs.step(wavy(x, t.expand(2)), t, x).prev_sample
    torch.testing.assert_close(ddim(wavy, start, Schedule(shift=shift), steps), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("t", [999, 979, 519, 39, 19])
def test_one_ddim_step_is_diffusers(t) -> None:
    theirs = CogVideoXDDIMScheduler(**PUBLISHED)
    theirs.set_timesteps(50)
    x, v = draw(2, 3, dtype=torch.float64), draw(2, 3, seed=1, dtype=torch.float64)
    _, alpha, sigma, alpha_next, sigma_next = next(place for place in Schedule().walk(50) if place[0] == t)
    ours = alpha_next * (alpha * x - sigma * v) + sigma_next * (sigma * x + alpha * v)
    torch.testing.assert_close(ours, theirs.step(v, t, x).prev_sample, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_the_stochastic_sampler_walks_as_diffusers_does_from_the_same_seed(shift, steps) -> None:
    theirs = CogVideoXDPMScheduler(**{**PUBLISHED, "snr_shift_scale": shift})
    theirs.set_timesteps(steps)
    x = start = draw(2, 3, 4, dtype=torch.float64)
    generator, before, back = torch.Generator().manual_seed(5), None, None
    for t in theirs.timesteps.tolist():
        x, before = theirs.step(wavy(x, torch.tensor([t, t])), before, t, back, x, generator=generator)
        back = t
    ours = dpmpp_2m_sde(wavy, start, Schedule(shift=shift), steps, torch.Generator().manual_seed(5), twice=True)
    torch.testing.assert_close(ours, x, atol=1e-6, rtol=0)


def test_the_stochastic_sampler_follows_its_generator_alone() -> None:
    def sample(seed: int) -> torch.Tensor:
        return dpmpp_2m_sde(wavy, draw(1, 8), Schedule(), 10, torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    first, state = sample(1), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(sample(1), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sample(2), first)


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_progress_is_told_after_every_step_and_the_network_each_sample_s_level(sampler) -> None:
    told, levels = [], []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.int64
        levels.append(t.tolist())
        return wavy(x, t)

    sampler(model, draw(3, 2), Schedule(), 5, progress=lambda done, steps: told.append((done, steps)))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert levels == [[t] * 3 for t in (999, 799, 599, 399, 199)]


# --- where samplers end: a mixture whose score is known --------------------------------------------------------

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[-2.0, 1.0], [1.0, -0.5]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5], dtype=torch.float64)


def exact_v(schedule: Schedule):
    """v of the mixture: x_t of a component is normal, and so E[x_0 | x_t] has a closed form."""

    def model(x_BD: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.levels(t, x_BD)
        spread_BK = (alpha * STDS) ** 2 + sigma**2
        away_BKD = x_BD[:, None] - alpha[..., None] * MEANS
        log_BK = WEIGHTS.log() - spread_BK.log() - away_BKD.square().sum(-1) / (2 * spread_BK)  # two dimensions
        share_BK = log_BK.softmax(dim=1)
        x0_BKD = MEANS + (alpha * STDS**2 / spread_BK)[..., None] * away_BKD
        x0_BD = (share_BK[..., None] * x0_BKD).sum(1)
        return (alpha * x_BD - x0_BD) / sigma

    return model


def moments(x_BD: torch.Tensor) -> dict[str, np.ndarray]:
    """Share, mean and spread of the samples nearer to either component."""
    nearer = torch.cdist(x_BD, MEANS).argmin(dim=1)
    parts = [x_BD[nearer == k] for k in range(2)]
    return {
        "shares": np.array([len(part) / len(x_BD) for part in parts]),
        "means": np.stack([part.mean(0).numpy() for part in parts]),
        "stds": np.array([float(part.var(0).mean().sqrt()) for part in parts]),
    }


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 250), ("dpmpp_2m", 250), ("dpmpp_2m_sde", 250)])
def test_samplers_recover_a_gaussian_mixture(sampler, steps, shift) -> None:
    """Shares within 0.015, means within 0.03, spreads within 6 %: 10,000 samples know them to 0.01."""
    schedule = Schedule(shift=shift)
    start, model = draw(10_000, 2, dtype=torch.float64), exact_v(schedule)
    if sampler == "dpmpp_2m_sde":
        samples = dpmpp_2m_sde(model, start, schedule, steps, torch.Generator().manual_seed(1))
    else:
        samples = {"ddim": ddim, "dpmpp_2m": dpmpp_2m}[sampler](model, start, schedule, steps)
    found = moments(samples)
    np.testing.assert_allclose(found["shares"], WEIGHTS, atol=0.015)
    np.testing.assert_allclose(found["means"], MEANS, atol=0.03)
    np.testing.assert_allclose(found["stds"], STDS, rtol=0.06)


def test_the_second_order_sampler_comes_nearer_with_the_same_steps() -> None:
    schedule = Schedule()
    start, model = draw(2000, 2, dtype=torch.float64), exact_v(schedule)
    exact = ddim(model, start, schedule, 1000)

    def error(sampler, steps: int) -> float:
        return float((sampler(model, start, schedule, steps) - exact).square().mean().sqrt())

    assert error(dpmpp_2m, 40) < 0.5 * error(ddim, 40)
    assert error(ddim, 100) < 0.7 * error(ddim, 40)


def test_one_gaussian_is_solved_exactly_by_ddim_s_ode_in_the_limit() -> None:
    """Of N(m, s²) the ODE maps x_T to m + s x_T."""
    schedule, mean, std = Schedule(), 0.7, 0.4

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.levels(t, x)
        x0 = mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x - alpha * mean)
        return (alpha * x - x0) / sigma

    start = draw(1000, 1, dtype=torch.float64)
    expected = mean + std * start
    errors = [float((ddim(model, start, schedule, steps) - expected).abs().max()) for steps in (50, 200, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


# --- guidance ---------------------------------------------------------------------------------------------------


def test_guidance_of_one_is_the_full_prediction_and_of_none_the_unconditional() -> None:
    uncond, text, full = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    torch.testing.assert_close(guide(uncond, text, full, 1, 1), full)
    torch.testing.assert_close(guide(uncond, text, full, 0, 0), uncond)
    torch.testing.assert_close(guide(uncond, text, full, 1, 0), text)


def test_text_and_sound_are_scaled_apart() -> None:
    uncond, text, full = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    guided = guide(uncond, text, full, 3.5, 6.0)
    torch.testing.assert_close(guided - uncond, 3.5 * (text - uncond) + 6.0 * (full - text))
    equal = guide(uncond, text, full, 3.5, 3.5)
    torch.testing.assert_close(equal, uncond + 3.5 * (full - uncond))
    torch.testing.assert_close(guide(uncond, full, full, 3.5, 3.5), equal)


def test_levels_are_shaped_to_the_sample() -> None:
    alpha, sigma = Schedule().levels(torch.tensor([0, 999]), torch.zeros(2, 5, 4, 3))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    assert sigma.flatten().tolist() == [pytest.approx(math.sqrt(0.00085), abs=1e-6), 1.0]
    alpha, _ = Schedule().levels(500, torch.zeros(2, 5, 4, 3))
    assert alpha.numel() == 1
