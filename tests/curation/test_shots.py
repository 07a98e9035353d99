"""Cuts are found where shots meet, by each detector, and without every picture where that is promised."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
from scenedetect.detector import SceneDetector

from curation.backends import shots
from model import weights

Pictures = Sequence[np.ndarray]


def scene(seed: int, frames: int, speed: float = 1.0, contrast: float = 1.0) -> Pictures:
    """A camera's way over a smooth random texture, `speed` pixels a frame: [72, 128, 3] each."""
    random = np.random.default_rng(seed)
    wide = cv2.resize(random.integers(0, 256, (9, 128, 3), np.uint8), (2048, 144), interpolation=cv2.INTER_CUBIC)
    wide = np.clip(128 + contrast * (wide.astype(float) - 128), 0, 255).astype(np.uint8)
    places = (np.arange(frames) * speed).astype(int)
    return [np.ascontiguousarray(wide[:72, place : place + 128]) for place in places]


def joined(*scenes: Pictures) -> Pictures:
    return list(itertools.chain(*scenes))


def judged(detector: SceneDetector, pictures: Pictures) -> list[int]:
    """What PySceneDetect itself makes of every picture."""
    said = (detector.process_frame(FrameTimecode(n, 25.0), picture) for n, picture in enumerate(pictures))
    return [cut.frame_num for cuts in said for cut in cuts]


def searched(search: shots.Search, pictures: Pictures, shown: Callable[[int], bool] = lambda n: True) -> list[int]:
    """The cuts after seeing some pictures, and those that were in doubt."""
    for n, picture in enumerate(pictures):
        if shown(n):
            search.see(n, picture)
    for first, last in search.doubts():
        search.resolve((n, pictures[n]) for n in range(first, last + 1))
    return search.cuts()


def every_other(n: int) -> bool:
    return n % 2 == 0


FILM = joined(
    scene(1, 41),
    scene(2, 30, 6),
    scene(3, 9),
    scene(4, 50, 0),
    scene(5, 33, 2),
    scene(6, 61, 0.5),
    scene(7, 20, 9, 0.3),
)


def test_shown_every_picture_the_adaptive_search_equals_pyscenedetect():
    expected = judged(AdaptiveDetector(min_scene_len=0), FILM)
    assert len(expected) == 6
    assert searched(shots.AdaptiveSearch(len(FILM)), FILM) == expected


@pytest.mark.parametrize("shown", [every_other, lambda n: n % 4 == 0, lambda n: n % 3 != 1], ids=["1/2", "1/4", "2/3"])
def test_pictures_may_be_left_out_without_changing_the_cuts(shown):
    expected = judged(AdaptiveDetector(min_scene_len=0), FILM)
    assert searched(shots.AdaptiveSearch(len(FILM)), FILM, shown) == expected


def test_the_shortest_shot_is_counted_as_pyscenedetect_counts_it():
    expected = judged(AdaptiveDetector(min_scene_len=15), FILM)
    assert expected != judged(AdaptiveDetector(min_scene_len=0), FILM)
    assert searched(shots.AdaptiveSearch(len(FILM), 15), FILM, every_other) == expected


def test_a_cut_among_left_out_pictures_is_in_doubt_until_they_are_seen():
    pictures = joined(scene(1, 21), scene(2, 21))
    search = shots.AdaptiveSearch(len(pictures))
    for n, picture in enumerate(pictures):
        if every_other(n):
            search.see(n, picture)
    (doubt,) = search.doubts()
    assert doubt[0] <= 21 - 3 and doubt[1] >= 21 + 2
    search.resolve((n, pictures[n]) for n in range(doubt[0], doubt[1] + 1))
    assert search.cuts() == [21]


def test_a_clear_cut_between_neighbours_needs_no_second_look():
    pictures = joined(scene(1, 20), scene(2, 20))
    search = shots.AdaptiveSearch(len(pictures))
    for n, picture in enumerate(pictures):
        if every_other(n) or n == 19:
            search.see(n, picture)
    assert search.doubts() == []
    assert search.cuts() == [20]


def test_steady_motion_raises_no_doubt_however_fast():
    pictures = scene(8, 80, 9)
    search = shots.AdaptiveSearch(len(pictures))
    for n in range(0, 80, 2):
        search.see(n, pictures[n])
    assert search.value_N.max() > search.LEAST
    # PySceneDetect gives the first picture no motion, so that the second stands out.
    assert [doubt for doubt in search.doubts() if doubt[0] > 0] == []


def test_pictures_that_cannot_be_had_do_not_hide_a_cut():
    pictures = joined(scene(1, 21), scene(2, 21))
    search = shots.AdaptiveSearch(len(pictures))
    for n in range(0, 42, 2):
        search.see(n, pictures[n])
    for first, last in search.doubts():
        search.resolve((n, pictures[n]) for n in range(first, last + 1) if n not in (20, 21))
    assert search.cuts() == [22]


@pytest.mark.parametrize("name", ["adaptive", "content"])
def test_nothing_is_a_cut_between_two_stretches(name):
    pictures = joined(scene(1, 20), scene(2, 20))
    search = shots.detector(name)(40)
    for n, picture in enumerate(pictures):
        if n in (0, 20):
            search.begin()
        search.see(n, picture)
    assert search.cuts() == []


def test_the_content_search_equals_pyscenedetect():
    expected = judged(ContentDetector(min_scene_len=15), FILM)
    search = shots.detector("content", 15)(len(FILM))
    assert search.every
    assert expected and searched(search, FILM) == expected


def test_the_content_value_is_pyscenedetects():
    before, after = scene(1, 1)[0], scene(2, 1)[0]
    detector = ContentDetector()
    detector._calculate_frame_score(FrameTimecode(0, 25.0), before)
    expected = detector._calculate_frame_score(FrameTimecode(1, 25.0), after)
    hsv = (cv2.cvtColor(picture, cv2.COLOR_BGR2HSV) for picture in (before, after))
    assert shots.content_value(*hsv) == pytest.approx(expected, rel=1e-9)


def test_an_unknown_detector_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'hash'.*adaptive, content, transnetv2"):
        shots.detector("hash")


def test_transnet_finds_hard_cuts_and_sets_gradual_transitions_apart():
    one, two, three = (scene(seed, 45, 1) for seed in (1, 2, 3))
    fade = [cv2.addWeighted(a, 1 - t, b, t, 0) for a, b, t in zip(two[30:], three, np.linspace(0, 1, 15), strict=False)]
    pictures = joined(one[:30], two[:30], fade, three[15:40])
    assert len(pictures) == 100
    search = shots.detector("transnetv2", weights=weights.path("transnetv2"))(len(pictures))
    hard, *gradual = searched(search, pictures)
    assert hard == 30
    assert gradual and all(60 <= cut <= 76 for cut in gradual)
