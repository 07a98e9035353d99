"""Clips are joined without a repeated or missing frame, frames hear their own sound, and shortcuts change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import footprint, sampling
from model.codecs.dct import Dct
from model.config import ModelConfig, preset
from model.diffusion import Schedule, guide
from model.footprint import Work
from model.portrait import Portrait, build
from model.sampling import Guidance, Guided, Plan, Sampling
from tests.model.memory import most_held
from tests.model.networks import shaken
from tests.model.synthetic import number, numbered

WIDTH, HEIGHT = 192, 96  # patches of 48, blocks of 16: what the numbers are spelt in lies in whole blocks
ALONE = Guidance(1.0, 1.0)


class Echo(nn.Module):
    """Stands in for a network that has learned its task: each frame spells the number that it hears.

    In one step from pure noise v is −x_0. What it was given of motion it keeps, as pictures.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.codec = Dct()
        self.reference = None
        self.anything = nn.Parameter(torch.zeros(1))
        self.motions: list[torch.Tensor] = []
        self.windows: list[torch.Tensor] = []

    def look(self, *_: torch.Tensor) -> None:
        return None

    def forward(self, noisy_BFCHW: torch.Tensor, *_: torch.Tensor, **given: Any) -> torch.Tensor:
        heard_TW = given["audio_BTWNC"][0, :, :, 0, 0]
        self.motions.append(given["motion_BFCHW"][0])
        self.windows.append(heard_TW)
        centre_T = heard_TW[:, heard_TW.shape[1] // 2].round().int().tolist()
        spelt = np.stack([numbered(n, WIDTH, HEIGHT) for n in centre_T])
        return -self.codec.encode(sampling.signed(spelt))[None]


def echoed(frames: int, length: int, **changes: Any) -> tuple[Echo, Plan, list[np.ndarray]]:
    """A video of so many frames by an Echo; frame t's sound says t + 1, and beyond the video 0."""
    config = preset("tiny", **{"identity": "none", **changes})
    echo, codec = Echo(config), Dct()
    plan = Plan.of(config, frames, length)
    said_T = torch.arange(1, plan.heard + 1).float()
    said_T[frames:] = 0
    states_TNC = said_T[:, None, None].expand(-1, config.audio.layers, config.audio.dim).contiguous()
    nothing = torch.zeros(1, config.text_dim)
    person = sampling.subject(echo, codec, numbered(0, WIDTH, HEIGHT), nothing, nothing)  # type: ignore[arg-type]
    how = Sampling(steps=1, guidance=ALONE)
    return echo, plan, list(sampling.video(echo, codec, person, states_TNC, plan, how))  # type: ignore[arg-type]


def numbers(pictures: Sequence[np.ndarray]) -> list[int]:
    return [number(picture) for picture in pictures]


@pytest.mark.parametrize(("frames", "length"), [(1, 9), (9, 9), (10, 9), (30, 9), (100, 49), (7, 5)])
def test_every_frame_of_the_video_is_there_once_and_hears_its_own_sound(frames: int, length: int) -> None:
    _, plan, pictures = echoed(frames, length)
    assert numbers(pictures) == list(range(1, frames + 1))
    assert plan.clips == -(-frames // length)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_clip_goes_on_from_the_last_frames_of_the_one_before(n: int) -> None:
    echo, _, _ = echoed(40, 17, **{"motion.frames": n})
    first, *later = echo.motions
    for clip, motion_FCHW in enumerate([first, *later]):
        seen = numbers([sampling.shown(echo.codec.decode(latent[None]))[0] for latent in motion_FCHW[:n]])
        ends = list(range(17 * clip - n + 1, 17 * clip + 1))
        assert seen == ([0] * n if clip == 0 else ends)
        assert not motion_FCHW[n:].any()


def test_windows_reach_into_the_clips_around_and_stop_at_the_sound_s_ends() -> None:
    echo, _, _ = echoed(18, 9)
    first, second = echo.windows
    assert first[0].tolist() == [1, 1, 1, 2, 3]
    assert first[8].tolist() == [7, 8, 9, 10, 11]
    assert second[0].tolist() == [8, 9, 10, 11, 12]
    assert second[8].tolist() == [16, 17, 18, 18, 18]


def test_as_released_a_clip_makes_its_motion_frames_again_and_drops_them() -> None:
    echo, plan, pictures = echoed(30, 13, compat="hallo3", **{"identity": "none", "motion.frames": 4})
    assert numbers(pictures) == list(range(1, 31))
    assert (plan.clips, plan.overlap) == (4, 4)
    assert not echo.windows[0][:4].any()
    assert echo.windows[1][0].tolist() == [4, 5, 6, 7, 8]
    joint = echo.codec.decode(echo.motions[1][:2])
    assert numbers(list(sampling.shown(joint))) == [0, 6, 7, 8, 9]


class Watched(Dct):
    """The dct codec, and the windows that it has encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[torch.Tensor] = []

    def encode(self, frames_TCHW: torch.Tensor) -> torch.Tensor:
        self.windows.append(frames_TCHW)
        return super().encode(frames_TCHW)


def conditions(seed: int, **changes: Any) -> list[torch.Tensor]:
    """The frames, -1..1, that the conditions of two clips were made of; none of what they show is mid-grey."""
    config, codec = preset("tiny", **{"identity": "none", "motion.frames": 4, **changes}), Watched()
    plan, nothing = Plan.of(config, 14, 13), torch.zeros(1, config.text_dim)
    states_TNC = torch.ones(plan.heard, config.audio.layers, config.audio.dim)
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    echo = Echo(config)
    person = sampling.subject(echo, codec, white, nothing, nothing)  # type: ignore[arg-type]
    codec.windows.clear()
    how = Sampling(steps=1, guidance=ALONE, seed=seed)
    for _ in sampling.video(echo, codec, person, states_TNC, plan, how):  # type: ignore[arg-type]
        pass
    return codec.windows


def test_as_released_a_tenth_of_the_motion_s_pixels_is_grey_and_none_of_the_reference() -> None:
    first, second = conditions(5, compat="hallo3")
    for window in (first, second):
        reference_CHW, motion_NCHW = window[0], window[1:]
        assert (reference_CHW == 1).all()
        grey_NCHW = motion_NCHW == 0
        assert torch.equal(grey_NCHW, grey_NCHW[:1, :1].expand_as(grey_NCHW))
        assert abs(float(grey_NCHW.float().mean()) - 0.1) < 0.01
    assert not torch.equal(first[1] == 0, second[1] == 0), "each clip draws its own"
    assert torch.equal(conditions(5, compat="hallo3")[0], first)
    assert not torch.equal(conditions(6, compat="hallo3")[0], first)


def test_ours_shows_the_motion_frames_as_they_are() -> None:
    assert not any((window == 0).any() for window in conditions(5))


def test_a_clip_that_motion_frames_would_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="no room for 8 motion frames"):
        Plan.of(preset("tiny", **{"motion.frames": 8}), 20, 9)


# --- a real network, small pictures ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def portrait() -> Portrait:
    torch.set_num_threads(1)
    return shaken(Portrait(preset("tiny"))).eval().requires_grad_(False)


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def person_of(portrait: Portrait, cached: bool = True) -> sampling.Subject:
    """Somebody, with a prompt of seven and a negative one of two tokens."""
    config, picture = portrait.config, numbered(77, WIDTH, HEIGHT)
    texts = noise(7, config.text_dim), noise(2, config.text_dim, seed=4)
    return sampling.subject(portrait, Dct(), picture, *texts, noise(config.face_dim), cached)


def guided(portrait: Portrait, guidance: Guidance, cached: bool = True) -> torch.Tensor:
    """v at one level."""
    config = portrait.config
    audio_TWNC = noise(9, 5, config.audio.layers, config.audio.dim)
    motion_FCHW = noise(3, 16, HEIGHT // 8, WIDTH // 8, seed=6)
    model = Guided(portrait, person_of(portrait, cached), guidance, motion_FCHW, audio_TWNC)
    with torch.no_grad():
        return model(noise(1, 3, 16, HEIGHT // 8, WIDTH // 8, seed=7), torch.tensor([600]))


def drawn(portrait: Portrait, frames: int = 12, **changes: Any) -> np.ndarray:
    """A video of clips of nine frames, uint8 [T, H, W, 3]."""
    config = portrait.config
    plan = Plan.of(config, frames, 9)
    states_TNC = noise(plan.heard, config.audio.layers, config.audio.dim)
    how = Sampling(**{"steps": 2, "guidance": Guidance(3.5, 2.5), "seed": 5, **changes})
    return np.stack(list(sampling.video(portrait, Dct(), person_of(portrait), states_TNC, plan, how)))


def test_the_reference_looked_at_once_is_the_one_looked_at_in_every_step(portrait: Portrait) -> None:
    once, every = (guided(portrait, Guidance(3.5, 2.5), cached) for cached in (True, False))
    assert torch.equal(once, every)
    assert person_of(portrait).keys is not None
    assert person_of(portrait, cached=False).keys is None


def test_the_reference_network_looks_once_for_all_clips_and_steps() -> None:
    network = shaken(Portrait(preset("tiny"))).eval().requires_grad_(False)
    assert network.reference is not None
    looks: list[int] = []
    network.reference.register_forward_hook(lambda *_: looks.append(1))
    drawn(network, frames=12, steps=2)
    assert len(looks) == 1


def test_guidance_in_one_batch_is_guidance_one_by_one(portrait: Portrait) -> None:
    """The prompts differ in length: in the batch one is padded and masked, alone it is neither."""
    for scales in ((3.5, 2.5), (3.5, 3.5), (1.0, 2.0)):
        together, apart = (guided(portrait, Guidance(*scales, way)) for way in (True, False))
        assert (together - apart).abs().max() <= 1e-5 * together.abs().max()


def test_guidance_goes_from_nothing_to_the_prompt_and_on_to_the_sound(portrait: Portrait) -> None:
    rows = {"nothing": (0.0, 0.0), "text": (1.0, 0.0), "full": (1.0, 1.0)}
    v = {row: guided(portrait, Guidance(*scales)) for row, scales in rows.items()}
    assert len({float(one.sum()) for one in v.values()}) == 3
    expected = guide(v["nothing"], v["text"], v["full"], 3.5, 2.5)
    torch.testing.assert_close(guided(portrait, Guidance(3.5, 2.5)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scales", "rows"),
    [
        ((3.5, 2.5), ("nothing", "text", "full")),
        ((3.5, 3.5), ("nothing", "full")),
        ((1.0, 2.0), ("text", "full")),
        ((1.0, 1.0), ("full",)),
        ((3.5, 0.0), ("nothing", "text")),
    ],
)
def test_a_row_without_weight_is_not_computed_and_not_missed(scales: tuple[float, float], rows: tuple[str]) -> None:
    guidance = Guidance(*scales)
    assert guidance.rows() == rows
    v = {row: noise(2, 3, seed=seed) for seed, row in enumerate(sampling.ROWS)}
    expected = guide(v["nothing"], v["text"], v["full"], *scales)
    torch.testing.assert_close(guidance.combine({row: v[row] for row in rows}), expected)


def test_a_network_without_sound_is_guided_by_the_prompt_alone() -> None:
    deaf = shaken(Portrait(preset("tiny", **{"audio.injection": "none"}))).eval()
    model = Guided(deaf, person_of(deaf), Guidance(3.5, 2.0), None, None)
    assert model.batches == [("nothing", "full")]
    assert model(noise(1, 3, 16, HEIGHT // 8, WIDTH // 8), torch.tensor([600])).isfinite().all()


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_a_seed_gives_the_same_video_and_another_seed_another(portrait: Portrait, sampler: str) -> None:
    first, again, other = (drawn(portrait, sampler=sampler, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert first.shape == (12, HEIGHT, WIDTH, 3)
    assert (first != other).mean() > 0.5


def test_a_longer_video_begins_as_a_shorter_one(portrait: Portrait) -> None:
    """Noise is drawn clip by clip: what comes later moves nothing."""
    silence_TNC = torch.zeros(27, portrait.config.audio.layers, portrait.config.audio.dim)
    how = Sampling(steps=1, guidance=ALONE)
    short, long = (
        np.stack(list(sampling.video(portrait, Dct(), person_of(portrait), silence_TNC, plan, how)))
        for plan in (Plan(9, 9), Plan(20, 9))
    )
    assert np.array_equal(long[:9], short)
    assert not np.array_equal(long[9:18], short)


def test_neighbouring_clips_and_seeds_draw_noise_of_their_own(portrait: Portrait) -> None:
    """With no step that matters: at the last level a network that predicts nothing leaves the noise as it is."""

    class Nothing(Guided):
        def __call__(self, x_1FCHW: torch.Tensor, t_1: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x_1FCHW)

    model = Nothing(portrait, person_of(portrait), ALONE, None, None)
    schedule = dataclasses.replace(Schedule(), zero_snr=False)
    drawn_from = {
        (seed, clip): sampling.sampled(model, Sampling(1, seed=seed, schedule=schedule), clip, (3, 16, 12, 24))
        for seed in (0, 1)
        for clip in (0, 1)
    }
    flat = torch.stack([one.flatten() for one in drawn_from.values()])
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05


def test_progress_counts_the_steps_of_all_clips(portrait: Portrait) -> None:
    told: list[tuple[int, int]] = []
    config = portrait.config
    plan = Plan.of(config, 12, 9)
    states_TNC = noise(plan.heard, config.audio.layers, config.audio.dim)
    how = Sampling(steps=2, guidance=ALONE)
    frames = sampling.video(
        portrait, Dct(), person_of(portrait), states_TNC, plan, how, lambda done, steps: told.append((done, steps))
    )
    next(frames)
    assert told == [(1, 4), (2, 4)]
    assert len(list(frames)) == 11
    assert told[2:] == [(3, 4), (4, 4)]


def test_operations_foretold_are_those_that_torch_counts(portrait: Portrait) -> None:
    config, guidance = portrait.config, Guidance(3.5, 2.5, together=False)
    plan = Plan.of(config, 12, 9)
    with FlopCounterMode(display=False) as counted:
        drawn(portrait, guidance=guidance)
    work = Work(config, plan, guidance, 2, HEIGHT // 8, WIDTH // 8, 3, 7, 4)
    # Of the three rows of a step one has a shorter text; the codec's products are counted, too.
    assert footprint.operations(work) == pytest.approx(counted.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(
    ("together", "dtype", "changes"),
    [
        (True, torch.float32, {}),
        (False, torch.float32, {}),
        (False, torch.float32, {"patch": 2, "width": 256, "layers": 2}),
        (False, torch.bfloat16, {"patch": 2, "width": 256, "layers": 2}),
        (True, torch.float32, {"patch": 2, "width": 256, "layers": 1}),
    ],
)
def test_memory_foretold_is_enough_and_not_twice_what_a_step_holds(
    together: bool, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    config, guidance = preset("tiny", **changes), Guidance(3.5, 2.5, together)
    network = build(config, dtype=dtype).eval().requires_grad_(False)
    frames, height, width = 13, 12, 24
    audio_TWNC = noise(49, 5, config.audio.layers, config.audio.dim)
    model = Guided(network, person_of(network), guidance, None, audio_TWNC)
    latents = noise(1, frames, 16, height, width)
    with torch.no_grad():
        held = most_held(lambda: model(latents, torch.tensor([600])))
    size = torch.empty(0, dtype=dtype).element_size()
    work = Work(config, Plan.of(config, 49, 49), guidance, 2, height, width, frames, 7, size)
    assert held <= footprint.step(work) <= 2 * held, (held, footprint.step(work))


def test_memory_foretold_for_decoding_is_enough_and_not_twice_what_it_holds() -> None:
    work = Work(preset("tiny"), Plan(49, 49), ALONE, 2, 24, 36, 13, 7, 4)
    latents_TCHW = noise(13, 16, 24, 36)
    held = most_held(lambda: sampling.shown(Dct().decode(latents_TCHW)))
    foretold = footprint.memory(work, "dct", "minilm")["decoding"]
    assert held <= foretold <= 2 * held, (held, foretold)


def test_the_full_network_s_memory_is_that_of_its_published_size() -> None:
    config = preset("hallo3")
    work = Work(config, Plan.of(config, 49, 49), Guidance(), 50, 60, 90, 13, 226, 2)
    parts = footprint.memory(work, "cogvideox", "t5")
    assert parts["weights"] == pytest.approx(2 * (14.44e9 + 0.216e9), rel=0.01)
    assert parts["reference"] == 2 * 42 * 1350 * 3072 * 2
    assert parts["fullest"] > parts["weights"] + parts["decoding"]
    less = footprint.memory(work, "cogvideox", "t5", tiling=True, cached=False)
    assert less["reference"] == 0
    assert less["decoding"] == pytest.approx(parts["decoding"] / 4, rel=0.01)


def test_the_released_code_shows_its_reference_network_the_face_alone() -> None:
    """A box of 20 x 40 pixels is seen 24 x 48 large, black around it; one at the border ends there."""
    picture_CHW = torch.rand(3, 64, 96) + 0.1
    seen = sampling.face_alone(picture_CHW, (30, 10, 50, 50))
    assert torch.equal(seen[:, 6:54, 28:52], picture_CHW[:, 6:54, 28:52])
    seen[:, 6:54, 28:52] = -1
    assert bool((seen == -1).all())
    corner = sampling.face_alone(picture_CHW, (-5, 40, 15, 80))
    assert torch.equal(corner[:, 36:, :17], picture_CHW[:, 36:, :17]) and bool((corner[:, :36] == -1).all())


def test_a_subject_seen_by_its_face_alone_keeps_its_picture_for_motion() -> None:
    echo, codec = Echo(preset("tiny")), Dct()
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    nothing = torch.zeros(1, 4)
    face = (8, 8, 16, 16)
    person = sampling.subject(echo, codec, white, nothing, nothing, face_4=face)  # type: ignore[arg-type]
    assert bool((person.picture_CHW == 1).all())
    assert torch.equal(person.reference_CHW, codec.encode(sampling.face_alone(person.picture_CHW, face)[None])[0])
    assert not torch.equal(person.reference_CHW, codec.encode(person.picture_CHW[None])[0])
