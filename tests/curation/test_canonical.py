"""A face that stands somewhere before the camera is found to stand there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from curation.measures.canonical import FIELD_OF_VIEW, Canonical, fitted, pose

SIZE = 2 * np.tan(np.radians(FIELD_OF_VIEW) / 2)
"""Side of the picture 1 cm before the camera, centimetres."""


@pytest.fixture(scope="module")
def face() -> Canonical:
    """Points of a shell 16 cm high, those nearer to the nose counting more."""
    random = np.random.default_rng(0)
    flat = random.uniform([-7, -8], [7, 8], (60, 2))
    points = np.column_stack([flat, 6 - 0.08 * (flat**2).sum(axis=1)])
    return Canonical(points, np.arange(60), np.exp(-0.05 * (flat**2).sum(axis=1)), 60)


def seen(face: Canonical, turn: Rotation, place: tuple[float, float, float]) -> np.ndarray:
    """The landmarks of the face turned and put there, as shares of the picture; depth without a scale of its own."""
    x, y, z = (turn.apply(face.points_N3) + place).T
    depth = z / z.mean() - 1
    return np.column_stack([0.5 - x / z / SIZE, 0.5 + y / z / SIZE, depth / SIZE])


@pytest.mark.parametrize("place", [(0, 0, -40), (6, -4, -40), (-10, 8, -70)])
@pytest.mark.parametrize("turned", [(0, 0, 0), (0, 30, 0), (-20, 0, 0), (0, 0, 25), (10, -40, 15)])
def test_a_face_is_found_where_it_stands_and_as_it_is_turned(face, place, turned) -> None:
    turn = Rotation.from_euler("xyz", turned, degrees=True)
    found = pose(face, seen(face, turn, place))
    assert np.cbrt(np.linalg.det(found[:3, :3])) == pytest.approx(1, abs=0.02)
    apart = Rotation.from_matrix(found[:3, :3]) * turn.inv()
    assert np.degrees(apart.magnitude()) < 1.5
    assert found[:3, 3] == pytest.approx(place, abs=0.03 * -place[2])


def test_points_of_no_weight_do_not_count(face) -> None:
    shares = seen(face, Rotation.identity(), (0, 0, -40))
    weights = np.where(np.arange(60) < 40, face.weights_N, 0)
    some = Canonical(face.points_N3, face.indices_N, weights, 60)
    few = Canonical(face.points_N3[:40], face.indices_N[:40], weights[:40], 60)
    assert pose(some, shares) == pytest.approx(pose(few, shares))


def test_the_best_similarity_undoes_one_exactly_and_never_mirrors(face) -> None:
    turn = Rotation.from_euler("xyz", [20, -50, 70], degrees=True)
    there = 1.7 * turn.apply(face.points_N3) + [3, -2, 9]
    found = fitted(face, there)
    assert found[:3, :3] == pytest.approx(1.7 * turn.as_matrix())
    assert found[:3, 3] == pytest.approx([3, -2, 9])
    assert np.linalg.det(fitted(face, face.points_N3 * [-1, 1, 1])[:3, :3]) > 0
