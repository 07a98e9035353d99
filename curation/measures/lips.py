"""How well a mouth and a sound belong together, and how far apart in time they are: a small linear model.

Mouth and sound are each reduced to a few components that go together where somebody says what is heard (canonical
correlation, Hotelling 1936, with a ridge). The score of a lag is the correlation of the components when the sound
is moved by it; the best lag is the offset, and how far it stands out is the confidence. Sign as in SyncNet (Chung
and Zisserman 2016): sound that comes k frames late has offset -k.

T: frame at 25 fps. P: landmark. B: blendshape. D: number of the mouth or the sound. K: component. R: recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

FPS = 25
REACH = 15
"""Frames of lag searched either way."""
SHAPES = (6, *range(23, 50))
"""The blendshapes used: cheekPuff, all of the jaw and all of the mouth."""
BRIDGE, CORNERS_OF_EYES = (168, 2), (33, 263)
"""What distances are measured by: neither moves with the mouth."""
HEIGHTS = ((13, 14), (82, 87), (312, 317), (0, 17), (2, 152), (2, 0), (17, 152), (13, 2), (14, 152))
"""Pairs of points over the bridge of the nose: lips (inner, outer), nose to chin and to lips, chin to lips."""
DROPS = ((0, 13), (14, 17), (61, 13), (291, 13))
"""Pairs whose vertical difference is taken, signed: thickness of the lips, corners of the mouth under its middle."""
WIDTHS = ((78, 308), (61, 291))
"""Pairs over the distance of the eyes' outer corners: inner and outer corners of the mouth."""
MOUTH = len(SHAPES) + len(HEIGHTS) + len(WIDTHS) + len(DROPS) - 1
TREND = 25
"""Frames either side whose mean is taken off the mouth: pose and mood, not speech."""
MOUTH_CONTEXT, SOUND_CONTEXT = 2, 1
"""Frames either side that count as part of a frame."""
SOUND_PARTS, MOUTH_PARTS, VOICE_PARTS, COMPONENTS = 48, 40, 60, 8
RIDGE = 0.1
ROUNDS = 5
CLEAR = 0.55
"""Confidence from which on the lag of a recording is believed while fitting."""


@dataclass(frozen=True)
class LipScore:
    """How a mouth and a sound go together.

    confidence: (best - median score over lags) × sqrt(seconds). At any length about 0.3 where the two have nothing to
    do with each other, and below 0.6 in 99 of 100 cases; mostly above 0.65 in sync over 4 s, and growing with length.
    offset: frames at 25 fps, SyncNet's sign (sound late: negative), between frames by a parabola. Its zero is the
    middle of the footage the model was fitted on; recordings that pass for in sync lie within 3 frames of it.
    curve: score of the offsets -REACH..REACH, -1..1.
    """

    confidence: float
    offset: float
    curve: tuple[float, ...]


@dataclass(frozen=True)
class LipModel:
    """What is fitted. sound_*: state of the speech encoder to parts; mouth_*, voice_*: stacked frames to components.

    Each goes x -> (x - mean) @ basis. weights_K: of the components' correlations, sum 1.
    """

    sound_mean_D: np.ndarray
    sound_basis_DK: np.ndarray
    mouth_mean_D: np.ndarray
    mouth_basis_DK: np.ndarray
    voice_mean_D: np.ndarray
    voice_basis_DK: np.ndarray
    weights_K: np.ndarray


# --- a mouth and a sound as numbers ---------------------------------------------------------------------------


def mouth_features(points_TP3: np.ndarray, blendshapes_TB: np.ndarray) -> np.ndarray:
    """What a mouth looks like, whatever the size of the face.

    points_TP3: landmarks of MediaPipe's face mesh, pixels; NaN where there are none. blendshapes_TB: 0..1.
    Returns float64 [T, MOUTH]; NaN rows where there are no landmarks.
    """
    points = np.asarray(points_TP3, np.float64)

    def distances(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        first, second = np.array(pairs).T
        return np.linalg.norm(points[:, first] - points[:, second], axis=2)

    height_T1, width_T1 = distances([BRIDGE]), distances([CORNERS_OF_EYES])
    (lip, jaw), corners = DROPS[:2], DROPS[2:]
    drop_TP = points[:, [lip[1], jaw[1]], 1] - points[:, [lip[0], jaw[0]], 1]
    corner_T1 = points[:, [a for a, _ in corners], 1].mean(axis=1, keepdims=True) - points[:, [corners[0][1]], 1]
    geometry = (distances(HEIGHTS) / height_T1, drop_TP / height_T1, corner_T1 / height_T1)
    shapes_TB = np.asarray(blendshapes_TB, np.float64)[:, SHAPES]
    return np.hstack([shapes_TB, *geometry, distances(WIDTHS) / width_T1])


def seen_share(mouth_TD: np.ndarray) -> float:
    """Share of frames in which the mouth was seen, 0..1."""
    return float(np.isfinite(mouth_TD).all(axis=1).mean()) if len(mouth_TD) else 0.0


def mouth_frames(mouth_TD: np.ndarray) -> np.ndarray:
    """Gaps bridged, trend removed, change added, neighbours stacked: [T, 5 × 2 × MOUTH]. At least one frame seen."""
    moving_TD = _bridged(mouth_TD)
    moving_TD = moving_TD - _moving_mean(moving_TD, TREND)
    return _stacked(_with_change(moving_TD), MOUTH_CONTEXT)


def sound_frames(states_SD: np.ndarray, model: LipModel) -> np.ndarray:
    """The encoder's states, two a frame, as stacked parts: [S // 2, 3 × 2 × SOUND_PARTS]."""
    return _parts_stacked(_paired(states_SD), model.sound_mean_D, model.sound_basis_DK)


def _parts_stacked(paired_TD: np.ndarray, mean_D: np.ndarray, basis_DK: np.ndarray) -> np.ndarray:
    parts_TK = (paired_TD - mean_D) @ basis_DK
    return _stacked(_with_change(parts_TK - parts_TK.mean(axis=0)), SOUND_CONTEXT)


def _paired(states_SD: np.ndarray) -> np.ndarray:
    even = len(states_SD) // 2 * 2
    return np.asarray(states_SD[:even], np.float64).reshape(-1, 2, states_SD.shape[1]).mean(axis=1)


def _bridged(mouth_TD: np.ndarray) -> np.ndarray:
    """Rows with NaN replaced by what lies between their neighbours."""
    seen = np.flatnonzero(np.isfinite(mouth_TD).all(axis=1))
    frames = np.arange(len(mouth_TD))
    return np.stack([np.interp(frames, seen, column[seen]) for column in mouth_TD.T], axis=1)


def _moving_mean(x_TD: np.ndarray, reach: int) -> np.ndarray:
    """Mean of the frames up to `reach` away, as many as there are."""
    total = np.vstack([np.zeros((1, x_TD.shape[1])), np.cumsum(x_TD, axis=0)])
    frames = np.arange(len(x_TD))
    first, last = np.maximum(frames - reach, 0), np.minimum(frames + reach + 1, len(x_TD))
    return (total[last] - total[first]) / (last - first)[:, None]


def _with_change(x_TD: np.ndarray) -> np.ndarray:
    """x and half the difference of its neighbours (none beyond the ends)."""
    padded = np.pad(x_TD, [(1, 1), (0, 0)], mode="edge")
    return np.hstack([x_TD, (padded[2:] - padded[:-2]) / 2])


def _stacked(x_TD: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(x_TD, [(reach, reach), (0, 0)], mode="edge")
    return sliding_window_view(padded, 2 * reach + 1, axis=0).reshape(len(x_TD), -1)


# --- scoring --------------------------------------------------------------------------------------------------


def mouth_components(mouth_TD: np.ndarray, model: LipModel) -> np.ndarray:
    """[T, K] of a mouth that was seen in at least one frame."""
    return (mouth_frames(mouth_TD) - model.mouth_mean_D) @ model.mouth_basis_DK


def sound_components(states_SD: np.ndarray, model: LipModel) -> np.ndarray:
    """[S // 2, K] of the speech encoder's states at 50 Hz."""
    return (sound_frames(states_SD, model) - model.voice_mean_D) @ model.voice_basis_DK


def compare(mouth_TK: np.ndarray, sound_TK: np.ndarray, weights_K: np.ndarray) -> LipScore:
    """The score of two sets of components whose first frames belong together; more than 2 × REACH frames of both."""
    frames = min(len(mouth_TK), len(sound_TK))
    curve = np.array([score(mouth_TK[:frames], sound_TK[:frames], -offset, weights_K) for offset in _OFFSETS])
    best = int(np.argmax(curve))
    confidence = float(curve[best] - np.median(curve)) * np.sqrt(frames / FPS)
    return LipScore(float(confidence), _OFFSETS[best] + _vertex(curve, best), tuple(curve.tolist()))


_OFFSETS = range(-REACH, REACH + 1)


def score(mouth_TK: np.ndarray, sound_TK: np.ndarray, lag: int, weights_K: np.ndarray) -> float:
    """Weighted mean of Pearson's r of the components when frame t goes with the sound of t + lag; less for less.

    Times sqrt(overlap / frames), so that a chance match of a short overlap does not win.
    """
    x_TK, y_TK = _matched(mouth_TK, sound_TK, lag)
    x_TK, y_TK = x_TK - x_TK.mean(axis=0), y_TK - y_TK.mean(axis=0)
    power_K = np.sqrt((x_TK**2).sum(axis=0) * (y_TK**2).sum(axis=0))
    r_K = (x_TK * y_TK).sum(axis=0) / np.maximum(power_K, np.finfo(float).tiny)
    return float(weights_K @ r_K) * float(np.sqrt(len(x_TK) / len(mouth_TK)))


def _vertex(curve: np.ndarray, best: int) -> float:
    """Where between its neighbours the peak lies, -0.5..0.5; 0 at the ends of the curve."""
    if not 0 < best < len(curve) - 1:
        return 0.0
    before, at, after = curve[best - 1 : best + 2]
    bend = before - 2 * at + after
    return float((before - after) / (2 * bend)) if bend < 0 else 0.0


# --- fitting --------------------------------------------------------------------------------------------------


def learn(mouths: Sequence[np.ndarray], sounds: Sequence[np.ndarray]) -> tuple[LipModel, tuple[int, ...]]:
    """Fit a model to recordings of people who say what is heard, each with an unknown lag of a few frames.

    Recordings are seldom all in sync. So the lag of each is found by a model fitted on the others, and moved to
    where that is clear, a few times over. The middle of them is called 0.

    mouths: [T, MOUTH] each, as of mouth_features. sounds: [S, D] each, states of the speech encoder at 50 Hz.
    Returns the model and the offset of every recording, frames. Raises ValueError for fewer than three recordings.
    """
    if len(mouths) < 3:
        raise ValueError(f"{len(mouths)} recordings: at least three are needed to find the lag of each by the others")
    bridged = [mouth_frames(mouth) for mouth in mouths]
    paired = [_paired(states) for states in sounds]
    lags = [0] * len(mouths)
    for _ in range(ROUNDS):
        previous = list(lags)
        for out in range(len(mouths)):
            rest = [n for n in range(len(mouths)) if n != out]
            model = fit([bridged[n] for n in rest], [paired[n] for n in rest], [previous[n] for n in rest])
            found = compare(mouth_components(mouths[out], model), sound_components(sounds[out], model), model.weights_K)
            if found.confidence >= CLEAR:
                lags[out] = -round(found.offset)
        middle = round(float(np.median(lags)))
        lags = [lag - middle for lag in lags]
        if lags == previous:
            break
    return fit(bridged, paired, lags), tuple(-lag for lag in lags)


def fit(mouths: Sequence[np.ndarray], sounds: Sequence[np.ndarray], lags: Sequence[int]) -> LipModel:
    """Ridge canonical correlation of recordings whose lags are known.

    mouths: [T, 5 × 2 × MOUTH] each, as of mouth_frames. sounds: [T, D] each, the encoder's states, one a frame.
    lags: frames by which the sound is late.
    """
    states_TD = np.vstack(sounds)
    sound_mean_D = states_TD.mean(axis=0)
    directions, variance = _principal(states_TD - sound_mean_D, SOUND_PARTS)
    sound_basis_DK = directions / np.sqrt(variance)
    voices = [_parts_stacked(states, sound_mean_D, sound_basis_DK) for states in sounds]
    pairs = [_matched(mouth, voice, lag) for mouth, voice, lag in zip(mouths, voices, lags, strict=True)]
    x_TD, y_TD = (np.vstack(side) for side in zip(*pairs, strict=True))
    mouth_mean_D, mouth_white_DK = _whitening(x_TD, MOUTH_PARTS)
    voice_mean_D, voice_white_DK = _whitening(y_TD, VOICE_PARTS)
    shared = ((x_TD - mouth_mean_D) @ mouth_white_DK).T @ ((y_TD - voice_mean_D) @ voice_white_DK) / len(x_TD)
    u, strength, vt = np.linalg.svd(shared)
    return LipModel(
        sound_mean_D,
        sound_basis_DK,
        mouth_mean_D,
        mouth_white_DK @ u[:, :COMPONENTS],
        voice_mean_D,
        voice_white_DK @ vt[:COMPONENTS].T,
        strength[:COMPONENTS] / strength[:COMPONENTS].sum(),
    )


def _matched(mouth_TD: np.ndarray, voice_TD: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames of either that belong together when the sound is late by `lag`."""
    frames = min(len(mouth_TD), len(voice_TD))
    return mouth_TD[max(0, -lag) : frames - max(0, lag)], voice_TD[max(0, lag) : frames - max(0, -lag)]


def _principal(x_TD: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The directions [D, parts] in which centred data varies most, and its variance along them."""
    variance, directions = np.linalg.eigh(x_TD.T @ x_TD / len(x_TD))
    return directions[:, ::-1][:, :parts], variance[::-1][:parts]


def _whitening(x_TD: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a basis [D, parts] of the main directions of the standardised data, in which all vary about alike.

    "About": RIDGE × the mean variance is added before dividing by it, lest noise in the weak ones counts.
    """
    mean_D, spread_D = x_TD.mean(axis=0), np.maximum(x_TD.std(axis=0), 1e-9)
    directions, variance = _principal((x_TD - mean_D) / spread_D, parts)
    return mean_D, directions / spread_D[:, None] / np.sqrt(variance + RIDGE * variance.mean())
