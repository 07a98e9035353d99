"""Where one shot ends and the next begins.

A search is shown the small pictures of one video in order, and names the first frame of every new shot. Frames are
named by their index in the video. PySceneDetect decides (scenedetect.com, BSD 3-Clause), or TransNet V2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
from scenedetect.detector import SceneDetector

DETECTORS = ("adaptive", "content", "transnetv2")
WIDTH = 128  # least width of the pictures to show, pixels
FINE_WIDTH = 256  # of those shown to settle doubts: what PySceneDetect itself works with
_RATE = 25.0  # PySceneDetect wants one; frames are only counted


class Search(Protocol):
    """Looks for cuts in one video."""

    every: bool
    """Whether it must be shown every picture; if not, those that others refer to will do at first."""

    def begin(self) -> None:
        """A new stretch of the video begins: the next picture is not compared with the one before."""

    def see(self, frame: int, thumbnail_HWC: np.ndarray) -> None:
        """The next picture of the stretch; uint8 BGR."""

    def doubts(self) -> list[tuple[int, int]]:
        """Runs of frames (first, last) of which every picture is needed, to be given to `resolve`."""

    def resolve(self, pictures: Iterable[tuple[int, np.ndarray]]) -> None:
        """Every picture of one run in doubt, FINE_WIDTH wide, with its frame."""

    def cuts(self) -> list[int]:
        """The first frame of every shot but those that begin a stretch. To be called once, last."""


def detector(name: str, shortest: int = 0, weights: Path | None = None, threads: int = 1) -> Callable[[int], Search]:
    """What begins the search of a video of so many frames.

    name: adaptive (AdaptiveDetector), content (ContentDetector) or transnetv2, which needs its weights.
    shortest: frames that a shot has at least; a cut that comes sooner is passed over (PySceneDetect's only).
    """
    if name == "adaptive":
        return functools.partial(AdaptiveSearch, shortest=shortest)
    if name == "content":
        return lambda frames: ContentSearch(shortest)
    if name == "transnetv2":
        if weights is None:
            raise ValueError("detector transnetv2 needs its weights")
        from curation.backends import transnet

        network = transnet.load(weights)
        return lambda frames: TransnetSearch(network, threads)
    raise ValueError(f"detector {name!r}: there is {', '.join(DETECTORS)}")


class AdaptiveSearch:
    """AdaptiveDetector's cuts without every picture.

    The detector compares each picture with the one before (the step's content value, 0-255) and takes a step for a
    cut when it is at least 15 and three times the mean of the two before and the two after. Of a step that leaves
    pictures out only a bound is known: the steps it is made of add up to at least as much. That settles most places
    either way. The others, and those close to a threshold, are in doubt until every picture is seen, and closer.
    """

    every = False
    RATIO, LEAST, REACH = 3.0, 15.0, 2  # AdaptiveDetector's defaults
    CAUTION = 0.9  # how far from its thresholds a step must stay to be settled: so many times, or one divided by it

    def __init__(self, frames: int, shortest: int = 0) -> None:
        self.shortest = shortest
        self.value_N = np.zeros(frames)  # of the step that leads to frame n or past it
        self.from_N = np.arange(frames) - 1  # the frame which that step sets out from
        self.to_N = np.arange(frames)  # and the one it leads to
        self.stretches: list[list[int]] = []
        self._last: tuple[int, np.ndarray] | None = None

    def begin(self) -> None:
        self._last = None

    def see(self, frame: int, thumbnail_HWC: np.ndarray) -> None:
        hsv = cv2.cvtColor(thumbnail_HWC, cv2.COLOR_BGR2HSV)
        if self._last is None:
            self.stretches.append([frame, frame])
        else:
            before, last = self._last
            step = slice(before + 1, frame + 1)
            self.value_N[step], self.from_N[step], self.to_N[step] = content_value(last, hsv), before, frame
            self.stretches[-1][1] = frame
        self._last = frame, hsv

    def doubts(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for first, last in self.stretches:
            for offset in np.flatnonzero(self._doubtful(first, last)).tolist():
                start = max(first, first + offset - self.REACH - 1)
                end = min(last, first + offset + self.REACH)
                if runs and start <= runs[-1][1]:
                    start = runs.pop()[0]
                runs.append((start, end))
        return runs

    def _doubtful(self, first: int, last: int) -> np.ndarray:
        """Which frames of a stretch may or may not begin a shot: bool [last - first + 1]."""
        stretch = slice(first, last + 1)
        value_T, from_T, to_T = self.value_N[stretch], self.from_N[stretch], self.to_N[stretch]
        least_T = value_T / (to_T - from_T)  # what the step of each frame contributes, on average
        around_least, around_most, outside = (np.zeros_like(value_T) for _ in range(3))
        for offset in (-2, -1, 1, 2):
            beside = np.roll(np.arange(len(value_T)), -offset)
            around_least += np.where(to_T[beside] == to_T, 0, least_T[beside])
            around_most += value_T[beside]
            outside += to_T[beside] != to_T
        # What moves before and after does so within the step too; taken for half as fast, to be careful.
        around_least *= 1 + (2 * self.REACH - outside) / 2 / np.maximum(outside, 1)
        ratio = self.RATIO / (2 * self.REACH)
        possible = value_T >= self.CAUTION * np.maximum(self.LEAST, ratio * around_least)
        certain = (to_T - from_T == 1) & (self.CAUTION * value_T >= np.maximum(self.LEAST, ratio * around_most))
        doubtful = possible & ~certain
        doubtful[: self.REACH] = doubtful[max(0, len(doubtful) - self.REACH) :] = False
        return doubtful

    def resolve(self, pictures: Iterable[tuple[int, np.ndarray]]) -> None:
        last: tuple[int, np.ndarray] | None = None
        for frame, thumbnail_HWC in pictures:
            hsv = cv2.cvtColor(thumbnail_HWC, cv2.COLOR_BGR2HSV)
            if last is not None:
                # Pictures that cannot be decoded are not there: the step past them is one like any other.
                run = slice(last[0] + 1, frame + 1)
                self.value_N[run], self.to_N[run] = 0, np.arange(len(self.value_N))[run]
                self.from_N[run] = self.to_N[run] - 1
                self.value_N[frame] = content_value(last[1], hsv)
            last = frame, hsv

    def cuts(self) -> list[int]:
        value_N = self.value_N / (self.to_N - self.from_N)
        found: list[int] = []
        for first, last in self.stretches:
            value_N[first] = 0
            judge = _ByValue(self.RATIO, self.shortest, self.REACH, self.LEAST)
            found += _cuts(judge, ((n, value_N[n]) for n in range(first, last + 1)))
        return found


def content_value(before_HWC: np.ndarray, after_HWC: np.ndarray) -> float:
    """ContentDetector's frame score: the mean absolute difference of two pictures in HSV, uint8."""
    return cv2.norm(before_HWC, after_HWC, cv2.NORM_L1) / before_HWC.size


class _ByValue(AdaptiveDetector):
    """AdaptiveDetector, given the content values themselves instead of pictures."""

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: Any) -> float:
        return float(frame_img)


class ContentSearch:
    """ContentDetector on every picture."""

    every = True
    THRESHOLD = 27.0  # ContentDetector's default

    def __init__(self, shortest: int = 0) -> None:
        self.shortest = shortest
        self._stretches: list[list[int]] = []
        self._judge: ContentDetector | None = None

    def begin(self) -> None:
        self._judge = None

    def see(self, frame: int, thumbnail_HWC: np.ndarray) -> None:
        if self._judge is None:
            self._judge = ContentDetector(self.THRESHOLD, self.shortest)
            self._stretches.append([])
        self._stretches[-1] += _cuts(self._judge, [(frame, thumbnail_HWC)])

    def doubts(self) -> list[tuple[int, int]]:
        return []

    def resolve(self, pictures: Iterable[tuple[int, np.ndarray]]) -> None:
        raise AssertionError("nothing was in doubt")

    def cuts(self) -> list[int]:
        return [cut for stretch in self._stretches for cut in stretch]


def _cuts(judge: SceneDetector, shown: Iterable[tuple[int, Any]]) -> list[int]:
    """What a detector of PySceneDetect says to frames and their pictures."""
    said = (judge.process_frame(FrameTimecode(frame, _RATE), picture) for frame, picture in shown)
    return [cut.frame_num for cuts in said for cut in cuts]


class TransnetSearch:
    """TransNet V2 on every picture. A gradual transition becomes a shot of its own, between two cuts."""

    every = True
    THRESHOLD = 0.5

    def __init__(self, network: Any, threads: int) -> None:
        self._network, self._threads = network, threads
        self._stretches: list[tuple[list[int], list[np.ndarray]]] = []

    def begin(self) -> None:
        self._stretches.append(([], []))

    def see(self, frame: int, thumbnail_HWC: np.ndarray) -> None:
        from curation.backends.transnet import HEIGHT, WIDTH

        if not self._stretches:
            self.begin()
        frames, pictures = self._stretches[-1]
        frames.append(frame)
        pictures.append(cv2.resize(thumbnail_HWC, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[:, :, ::-1])

    def doubts(self) -> list[tuple[int, int]]:
        return []

    def resolve(self, pictures: Iterable[tuple[int, np.ndarray]]) -> None:
        raise AssertionError("nothing was in doubt")

    def cuts(self) -> list[int]:
        found: list[int] = []
        for frames, pictures in self._stretches:
            if frames:
                above = self._chances(np.stack(pictures)) > self.THRESHOLD
                edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
                for start, end in edges.reshape(-1, 2):
                    # The chance is high at the last frame before a hard cut, and all along a gradual one.
                    found += [frames[n] for n in sorted({int(start) + 1, int(end)}) if n < len(frames)]
        return found

    def _chances(self, pictures_THWC: np.ndarray) -> np.ndarray:
        """The chance of a transition at each picture, in windows whose margins are left out: [T]."""
        import torch

        from curation.backends.transnet import MARGIN, WINDOW

        step = WINDOW - 2 * MARGIN
        count = len(pictures_THWC)
        after = MARGIN + -count % step
        padded = torch.from_numpy(np.pad(pictures_THWC, ((MARGIN, after), (0, 0), (0, 0), (0, 0)), mode="edge"))
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            windows = (padded[None, start : start + WINDOW] for start in range(0, count, step))
            chances = torch.cat([self._network(window)[0, MARGIN:-MARGIN] for window in windows])
        return chances[:count].numpy()
