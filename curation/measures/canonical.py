"""Where MediaPipe's canonical face has to stand before a camera to look as the landmarks of a picture do.

After MediaPipe's face geometry pipeline (geometry_pipeline.cc, procrustes_solver.cc): the depth of landmarks has no
scale of its own; it is the one at which the face, taken back through a pinhole camera, fits the canonical one best.

N: points that count. P: landmark. Centimetres; x to the right of the picture, y up, z towards the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FIELD_OF_VIEW = 63.0
"""Of the camera, vertical, degrees; the picture is taken to be a square."""
NEAR = 1.0
"""Distance of the plane on which the picture stands, centimetres."""


@dataclass(frozen=True)
class Canonical:
    """The canonical face, as far as it counts.

    points_N3: float64, centimetres. indices_N: their landmarks. weights_N: how much each counts. mesh: how many of
    the landmarks, the first, lie on the face: the pupils, which follow them, do not.
    """

    points_N3: np.ndarray
    indices_N: np.ndarray
    weights_N: np.ndarray
    mesh: int


def pose(face: Canonical, shares_P3: np.ndarray) -> np.ndarray:
    """The pose [4, 4], float64, that puts the canonical face where the landmarks are; its scale is near 1.

    shares_P3: landmarks as shares of a square picture's side, x to the right, y down, z away from the camera.
    """
    size = 2 * NEAR * np.tan(np.radians(FIELD_OF_VIEW) / 2)
    depth = float(shares_P3[: face.mesh, 2].mean()) * size
    flat_N3 = (shares_P3[face.indices_N] - [0.5, 0.5, 0]) * [size, -size, size]

    def unprojected(scale: float) -> np.ndarray:
        """The landmarks in space, when they are so much larger than the canonical face."""
        away_N = (flat_N3[:, 2] - depth + NEAR) / scale
        return np.column_stack([flat_N3[:, :2] * (away_N / NEAR)[:, None], -away_N])

    first = _scale(fitted(face, flat_N3 * [1, 1, -1]))
    second = _scale(fitted(face, unprojected(first)))
    return fitted(face, unprojected(first * second))


def fitted(face: Canonical, there_N3: np.ndarray) -> np.ndarray:
    """The similarity [4, 4] that brings the canonical points closest to others, by weighted least squares."""
    share_N1 = (face.weights_N / face.weights_N.sum())[:, None]
    middle_3, goal_3 = (share_N1 * face.points_N3).sum(axis=0), (share_N1 * there_N3).sum(axis=0)
    from_N3, to_N3 = face.points_N3 - middle_3, there_N3 - goal_3
    u_33, _, vt_33 = np.linalg.svd((share_N1 * to_N3).T @ from_N3)
    if np.linalg.det(u_33) * np.linalg.det(vt_33) < 0:
        u_33[:, 2] *= -1
    turn_33 = u_33 @ vt_33
    scale = (share_N1 * (from_N3 @ turn_33.T) * to_N3).sum() / (share_N1 * from_N3**2).sum()
    pose_44 = np.eye(4)
    pose_44[:3, :3] = scale * turn_33
    pose_44[:3, 3] = goal_3 - scale * turn_33 @ middle_3
    return pose_44


def _scale(pose_44: np.ndarray) -> float:
    return float(np.linalg.norm(pose_44[:3, 0]))
