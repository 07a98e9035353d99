"""Whether a face stays one person's, and which faces of a video are one person's.

K: faces sampled from a clip. D: numbers of a face's vector (model/encoders/face.py). A row of NaN is a lost face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from curation.backends.clustering import cluster

_NEVER = 1e6  # added to a distance: beyond any threshold, whatever it is averaged with


@dataclass(frozen=True)
class Likeness:
    """Least and mean cosine similarity of two faces of a clip, -1..1; NaN with fewer than two faces."""

    identity_min: float
    identity_mean: float


def likeness(faces_KD: np.ndarray) -> Likeness:
    """How alike the faces sampled over a clip are, each compared with each other one.

    What the numbers mean depends on the encoder: its `same` is where another person becomes likelier.
    """
    units_KD = _units(faces_KD)
    if len(units_KD) < 2:
        return Likeness(float("nan"), float("nan"))
    pairs = (units_KD @ units_KD.T)[np.triu_indices(len(units_KD), 1)]
    return Likeness(float(pairs.min()), float(pairs.mean()))


def people(tracks: Sequence[np.ndarray], same: float, apart: Sequence[tuple[int, int]] = ()) -> list[str | None]:
    """Which tracks of one video show one person: P0, P1, … in order of first appearance, for each track.

    tracks: faces [K, D] of each track, which is taken for one person's. same: see FaceEncoder; two groups of tracks
    become one person while the mean cosine similarity of their faces is at least this. apart: pairs of tracks that
    cannot be one person, as both are seen in one picture.
    A track without a face is nobody: None.
    """
    units = [_units(faces_KD) for faces_KD in tracks]
    seen = [n for n, units_KD in enumerate(units) if len(units_KD)]
    names: list[str | None] = [None] * len(tracks)
    if not seen:
        return names
    # The mean of all pairs' cosines is the product of the means: one vector a track will do.
    means_CD = np.stack([units[n].mean(axis=0) for n in seen]).astype(np.float32)
    weights = np.array([len(units[n]) for n in seen], dtype=np.float64)
    groups = cluster(means_CD, weights, _penalty(seen, apart), stop=1 - same)
    order: dict[int, str] = {}
    for n, group in zip(seen, groups.tolist(), strict=True):
        names[n] = order.setdefault(group, f"P{len(order)}")
    return names


def _penalty(seen: Sequence[int], apart: Sequence[tuple[int, int]]) -> csr_array:
    at = {n: row for row, n in enumerate(seen)}
    pairs = {pair for a, b in apart if a in at and b in at for pair in ((at[a], at[b]), (at[b], at[a]))}
    rows, columns = np.array(sorted(pairs), dtype=int).reshape(-1, 2).T
    entries = np.full(len(rows), _NEVER, np.float32)
    return csr_array(coo_array((entries, (rows, columns)), shape=(len(seen), len(seen))))


def _units(faces_KD: np.ndarray) -> np.ndarray:
    """The vectors that are known, at unit length, float64."""
    known = faces_KD[np.isfinite(faces_KD).all(axis=1)].astype(np.float64)
    return known / np.linalg.norm(known, axis=1, keepdims=True)
