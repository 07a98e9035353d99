"""How the camera moves: pan, zoom and roll of the background, with the people masked out.

Points of the background are tracked (pyramidal Lucas-Kanade) from a key picture to every later one until the view
has moved on, so that a camera on a tripod is compared with one and the same picture all along and errors do not add
up. A similarity is fitted to them: random pairs of points propose, with a fixed seed; Tukey's weights refine.
Tracked points are two to three times as exact here as dense DIS flow (docs/metrics.md).

Positions are in frame heights from the picture's centre, x to the right and y down: whatever the picture's size.
Letters: T frames, K the frames of a window, N points, F faces, P proposals, h and w the small picture's height and
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from curation.measures.speed import OFFSETS, mean, slopes, windows

SIDE = 320
"""Long side of the picture that is looked at, pixels."""
CELL = 18
"""Side of the cells of which each gives one point to track, pixels: 170 points in 16:9 without people."""
FLAT = 5e-6
"""Lesser eigenvalue of a corner's gradients (`cv2.cornerMinEigenVal`) up to which a cell has nothing to track."""
LEAST_POINTS = 8
"""Fewer of one mind tell nothing."""
LEAST_SHARE = 0.5
"""Share of the tracked points that has to move as one, and of a clip's frames whose motion has to be known."""
VAGUE = 0.0003
"""Standard error of where the picture's centre goes from which on that is not known, frame heights (1/18 of 1/180)."""
VIEW = 0.04
"""A key picture serves until its points have moved so far on average, frame heights."""
WORN = 0.6
"""... or until fewer agree on where it went than this share of the most that ever did."""
NEAR = 0.006
"""Distance from where a proposal moves a point within which it agrees, frame heights (1 pixel of 180)."""
FINEST = 0.0003
"""Scatter that points have at their best, frame heights (1/20 pixel of 180)."""
PROPOSALS = 64
_PAIRS_P2 = np.random.default_rng(0).random((PROPOSALS, 2))
_ENOUGH = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.01)


@dataclass(frozen=True)
class CameraMotion:
    """How a clip's camera moves; NaN where it is not known in half of the clip's frames.

    pan: mean speed of the picture's centre over the background, frame heights/s. zoom: mean magnitude of the change
    of scale, %/s. roll: mean magnitude of the turn about the line of sight, degrees/s. known: share of frames.
    """

    pan: float
    zoom: float
    roll: float
    known: float


def small(luma_HW: np.ndarray) -> np.ndarray:
    """The picture that `Camera` and `motion.Flow` look at: area averages, long side SIDE pixels.

    luma_HW: uint8, `cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)`. Returns uint8 [h, w].
    """
    factor = SIDE / max(luma_HW.shape)
    size = [max(1, round(length * factor)) for length in luma_HW.shape[::-1]]
    return cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA)


def people(boxes_F4: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Where people are, as far as their faces tell: head with hair, shoulders, and all below to the picture's bottom.

    boxes_F4: float left, top, right, bottom, pixels of the small picture; lost faces (NaN) are passed over.
    shape: its height and width. Returns bool [h, w].
    """
    mask_hw = np.zeros(shape, np.uint8)
    for left, top, right, bottom in boxes_F4[np.isfinite(boxes_F4).all(axis=1)].tolist():
        middle, unit = (left + right) / 2, bottom - top  # the height: a profile's width tells little
        crown, shoulder, floor = top - 0.5 * unit, bottom + 0.8 * unit, max(shape[0], bottom + unit)
        half = [(0.45, crown), (0.75, top), (0.75, bottom), (1.7, shoulder), (2.0, floor)]
        outline = [(middle - x * unit, y) for x, y in half] + [(middle + x * unit, y) for x, y in reversed(half)]
        cv2.fillPoly(mask_hw, [np.round(outline).astype(np.int32)], (1,))
    return mask_hw.astype(bool)


class Camera:
    """Follows the background from picture to picture of one clip."""

    def __init__(self) -> None:
        self._key_hw: np.ndarray | None = None
        self._points_N2 = np.zeros((0, 2), np.float32)  # of the key picture, in its pixels
        self._view_33 = np.eye(3)  # from the key picture to the last one
        self._step_33 = np.eye(3)  # the last known, which is where the next is looked for
        self._most = 0  # points that ever agreed about where the key picture went
        self._used_up = False  # whether it is time for another one

    def see(self, grey_hw: np.ndarray, boxes_F4: np.ndarray) -> np.ndarray:
        """The camera's step from the picture before to this one.

        grey_hw: as `small` makes it, all of one size. boxes_F4: everybody's faces, pixels of grey_hw.
        Returns float64 [3, 3], the similarity that moves points of the background from where they were to where they
        are; NaN for the first picture and where it cannot be told (a cut, black, no texture, all of it moving).
        """
        view_33 = self._tracked(grey_hw)
        if view_33 is None:
            step_33 = np.full((3, 3), np.nan)
            self._step_33 = np.eye(3)
            self._start(grey_hw, boxes_F4)
        else:
            step_33 = self._step_33 = view_33 @ np.linalg.inv(self._view_33)
            self._view_33 = view_33
            if self._used_up:
                self._start(grey_hw, boxes_F4)
        return step_33

    def _start(self, key_hw: np.ndarray, boxes_F4: np.ndarray) -> None:
        """Take a picture for the key that later ones are compared with."""
        self._points_N2 = corners(key_hw, ~people(boxes_F4, key_hw.shape))
        self._key_hw, self._view_33, self._most = key_hw, np.eye(3), 0

    def _tracked(self, grey_hw: np.ndarray) -> np.ndarray | None:
        """The similarity from the key picture to this one, or None where it cannot be told."""
        if self._key_hw is None or len(self._points_N2) < LEAST_POINTS:
            return None
        shape = grey_hw.shape
        from_N2 = to_heights(self._points_N2, shape)
        expected_N2 = to_pixels(moved(self._step_33 @ self._view_33, from_N2), shape)
        found_N12, there_N1, _ = cv2.calcOpticalFlowPyrLK(
            self._key_hw,
            grey_hw,
            self._points_N2[:, None],
            np.ascontiguousarray(expected_N2[:, None], np.float32),
            winSize=(11, 11),
            maxLevel=3,
            criteria=_ENOUGH,
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
            minEigThreshold=2e-5,  # a fifth of the default: a plain wall counts too, against a waving hand
        )
        found_N2 = found_N12[:, 0]
        there_N = (there_N1[:, 0] > 0) & ((found_N2 >= 0) & (found_N2 < shape[::-1])).all(axis=1)
        from_N2, to_N2 = from_N2[there_N], to_heights(found_N2[there_N], shape)
        if len(from_N2) < LEAST_POINTS:
            return None
        view_33, agreed_N = fit(from_N2, to_N2)
        count = int(agreed_N.sum())
        if count < max(LEAST_POINTS, LEAST_SHARE * len(from_N2)):
            return None
        if _vagueness(from_N2[agreed_N], to_N2[agreed_N], view_33) > VAGUE:
            return None
        travelled = float(np.hypot(*(to_N2 - from_N2)[agreed_N].T).mean())
        self._most = max(self._most, count)
        self._used_up = travelled > VIEW or count < WORN * self._most
        return view_33


def corners(grey_hw: np.ndarray, free_hw: np.ndarray) -> np.ndarray:
    """The best corner of each cell of the picture, so that a wide wall has more of them than a hand before it.

    free_hw: bool, where to look. Returns float32 [N, 2], pixels.
    """
    strength_hw = cv2.cornerMinEigenVal(grey_hw, 3) * free_hw
    strength_hw[[0, 1, -2, -1]] = strength_hw[:, [0, 1, -2, -1]] = 0
    rows, columns = (length // CELL for length in grey_hw.shape)
    top, left = ((length % CELL) // 2 for length in grey_hw.shape)
    cells_NC = strength_hw[top : top + rows * CELL, left : left + columns * CELL]
    cells_NC = cells_NC.reshape(rows, CELL, columns, CELL).swapaxes(1, 2).reshape(rows * columns, CELL * CELL)
    best_N = cells_NC.argmax(axis=1)
    n_N = np.flatnonzero(cells_NC.max(axis=1) > FLAT)
    x_N = left + n_N % columns * CELL + best_N[n_N] % CELL
    y_N = top + n_N // columns * CELL + best_N[n_N] // CELL
    return np.stack([x_N, y_N], axis=1).astype(np.float32)


def fit(from_N2: np.ndarray, to_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarity that moves most of the points, whatever the rest does; the same for the same points.

    Returns [3, 3], and which points agree with it, bool [N]. Points are complex numbers inside: a similarity is then
    z -> turn * z + shift.
    """
    from_N, to_N = from_N2 @ (1, 1j), to_N2 @ (1, 1j)
    first_P, second_P = (np.floor(_PAIRS_P2 * [len(from_N), len(from_N) - 1])).astype(int).T
    second_P = second_P + (second_P >= first_P)
    apart_P = from_N[second_P] - from_N[first_P]
    turn_P = (to_N[second_P] - to_N[first_P]) / np.where(apart_P == 0, 1, apart_P)
    shift_P = to_N[first_P] - turn_P * from_N[first_P]
    agreed_PN = np.abs(turn_P[:, None] * from_N + shift_P[:, None] - to_N) < NEAR
    weights_N = agreed_PN[np.argmax(agreed_PN.sum(axis=1))].astype(np.float64)
    for _ in range(5):
        turn, shift = _least_squares(from_N, to_N, weights_N)
        off_N = np.abs(turn * from_N + shift - to_N)
        reach = min(NEAR, 4.7 * max(FINEST, float(np.median(off_N[weights_N > 0]))))
        weights_N = np.clip(1 - (off_N / reach) ** 2, 0, None) ** 2
    matrix_33 = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]])
    return matrix_33, off_N < NEAR


def _least_squares(from_N: np.ndarray, to_N: np.ndarray, weights_N: np.ndarray) -> tuple[complex, complex]:
    total = weights_N.sum()
    centre, goal = (weights_N @ from_N) / total, (weights_N @ to_N) / total
    spread = weights_N @ np.abs(from_N - centre) ** 2
    turn = (weights_N @ ((to_N - goal) * np.conj(from_N - centre))) / spread if spread else 1
    return complex(turn), complex(goal - turn * centre)


def _vagueness(from_N2: np.ndarray, to_N2: np.ndarray, view_33: np.ndarray) -> float:
    """Standard error of where the picture's centre goes, which may lie far from the points: they may be in a corner."""
    off_N = np.hypot(*(moved(view_33, from_N2) - to_N2).T)
    scatter = max(FINEST, float(np.median(off_N)))
    away, spread = (from_N2.mean(axis=0) ** 2).sum(), from_N2.var(axis=0).sum()
    return float(scatter * np.sqrt((1 + away / max(spread, 1e-9)) / len(from_N2)))


def camera_motion(steps_T33: np.ndarray, fps: float) -> CameraMotion:
    """A clip's camera motion out of the steps that `Camera.see` returned.

    Speeds are as in measures/speed.py: over five frames. The centre's path, and not the distance it came, counts: a
    camera that shakes pans.
    """
    around_TK33 = around(steps_T33)
    scale_TK = np.hypot(around_TK33[..., 0, 0], around_TK33[..., 1, 0])
    angle_TK = np.arctan2(around_TK33[..., 1, 0], around_TK33[..., 0, 0])
    path_TKD = np.stack([*np.moveaxis(around_TK33[..., :2, 2], -1, 0), np.log(scale_TK), angle_TK], axis=-1)
    pan_x_T, pan_y_T, zoom_T, roll_T = slopes(path_TKD).T * fps
    known = float(np.isfinite(pan_x_T).mean()) if len(steps_T33) else 0.0
    if known < LEAST_SHARE:
        return CameraMotion(float("nan"), float("nan"), float("nan"), known)
    return CameraMotion(
        pan=mean(np.hypot(pan_x_T, pan_y_T)),
        zoom=mean(100 * np.abs(zoom_T)),
        roll=mean(np.degrees(np.abs(roll_T))),
        known=known,
    )


def around(steps_T33: np.ndarray) -> np.ndarray:
    """For each frame, where its neighbours' points lie in its own picture.

    Returns [T, K, 3, 3]: around[t, k] moves a point of frame t + OFFSETS[k] to frame t; NaN beyond the ends, and
    where a step between the two is not known.
    """
    steps_TK33 = windows(steps_T33)
    reach = int(OFFSETS[-1])
    around_TK33 = np.full_like(steps_TK33, np.nan)
    around_TK33[:, reach] = np.eye(3)
    for k in range(1, reach + 1):
        # steps[t] leads from t - 1 to t: earlier frames come forward by steps, later ones back by their inverses.
        around_TK33[:, reach - k] = around_TK33[:, reach - k + 1] @ steps_TK33[:, reach - k + 1]
        around_TK33[:, reach + k] = around_TK33[:, reach + k - 1] @ _inverses(steps_TK33[:, reach + k])
    return around_TK33


def _inverses(matrices_T33: np.ndarray) -> np.ndarray:
    """Their inverses, NaN for NaN."""
    known_T = np.isfinite(matrices_T33).all(axis=(1, 2))
    result_T33 = np.full_like(matrices_T33, np.nan)
    result_T33[known_T] = np.linalg.inv(matrices_T33[known_T])
    return result_T33


def moved(matrix_33: np.ndarray, points_N2: np.ndarray) -> np.ndarray:
    """Points [..., 2] moved by a similarity [..., 3, 3]."""
    return np.einsum("...ij,...j->...i", matrix_33[..., :2, :2], points_N2) + matrix_33[..., :2, 2]


def to_heights(pixels_N2: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels of a picture [height, width, ...] -> frame heights from its centre; float64 [..., 2]."""
    return (np.asarray(pixels_N2, np.float64) - (np.array(shape[1::-1]) - 1) / 2) / shape[0]


def to_pixels(heights_N2: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of `to_heights`."""
    return heights_N2 * shape[0] + (np.array(shape[1::-1]) - 1) / 2
