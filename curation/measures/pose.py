"""Where a head looks, and how fast it turns.

Signs: positive yaw is a turn to the subject's own left (the nose goes to the right of the picture), positive pitch
a look upwards, positive roll a tilt of the top of the head towards the subject's left shoulder (clockwise as the
picture is seen). Zero is a face that looks straight into the camera. So a mirrored picture has the opposite yaw and
roll, and the same pitch.

Letters: T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from curation.measures.speed import mean, slopes, windows


@dataclass(frozen=True)
class Angles:
    """Degrees; see the top of the file for signs."""

    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class Pose:
    """A clip's head pose. Degrees, degrees/s; NaN where no frame, or no run of frames, has a face.

    *_abs: mean magnitude over the frames with a face. *_p95: 95th percentile of the magnitude.
    rotation_speed: see `angular_speed`.
    """

    yaw_abs: float
    pitch_abs: float
    roll_abs: float
    yaw_p95: float
    pitch_p95: float
    roll_p95: float
    rotation_speed: float


def rotation(pose_44: np.ndarray) -> np.ndarray:
    """The rotation in MediaPipe's facial transformation matrix.

    It maps the canonical face (x to the subject's left, y up, z out of the nose, centimetres) into a camera's space
    with x to the right of the picture, y up and z towards the viewer. MediaPipe takes the crop it was given for the
    whole picture, so zero is a look along the line of sight to the face, wherever in the frame that is.

    pose_44: float [4, 4]; a uniform scale is allowed. Returns float64 [3, 3], orthonormal.
    Source: mediapipe/tasks/cc/vision/face_geometry (FaceGeometry.pose_transform_matrix).
    """
    left_33, _, right_33 = np.linalg.svd(np.asarray(pose_44, np.float64)[:3, :3])
    return left_33 @ right_33


def angles(rotation_33: np.ndarray) -> Angles:
    """Yaw, pitch and roll of a head: rolled about its nose first, then pitched, then turned about the vertical.

    rotation_33: as `rotation` returns it: R = Ry(yaw) Rx(-pitch) Rz(-roll). Yaw and roll lie in ±180, pitch in ±90.
    """
    nose, crown = rotation_33[:, 2], rotation_33[1]  # the nose's direction; what of each head axis points up
    yaw = np.arctan2(nose[0], nose[2])
    pitch = np.arcsin(np.clip(nose[1], -1, 1))
    roll = np.arctan2(-crown[0], crown[1])
    return Angles(*np.degrees([yaw, pitch, roll]).tolist())


def angular_speed(rotations_T33: np.ndarray, fps: float) -> float:
    """Mean angular speed of a head, degrees per second.

    The speed at a frame is that of the steadiest turn through it and the two frames on either side: the slope of
    their rotation vectors, seen from that frame. A turn at constant speed gives exactly its speed, and the jitter of
    single frames counts for less than half of what it would from frame to frame.

    rotations_T33: rotation matrices; NaN for frames without a face. NaN when nowhere three of five neighbours have one.
    """
    near_TK33 = windows(rotations_T33)
    here_T133 = rotations_T33[:, None]
    # Seen from the frame itself: where a neighbour's head points, in this frame's head axes.
    turn_TK33 = np.einsum("tlji,tkjm->tkim", here_T133, near_TK33)
    known_TK = np.isfinite(turn_TK33).all(axis=(2, 3))
    vectors_TK3 = np.full((*known_TK.shape, 3), np.nan)
    if known_TK.any():
        vectors_TK3[known_TK] = Rotation.from_matrix(turn_TK33[known_TK]).as_rotvec()
    speeds_T = np.linalg.norm(slopes(vectors_TK3), axis=-1) * fps
    return float(np.degrees(mean(speeds_T)))


def pose(rotations_T33: np.ndarray, fps: float) -> Pose:
    """A clip's head pose out of its frames' rotations; rotations_T33: NaN for frames without a face."""
    seen = [angles(rotation_33) for rotation_33 in rotations_T33 if np.isfinite(rotation_33).all()]
    if not seen:
        return Pose(*[float("nan")] * 7)
    magnitudes_T3 = np.abs([(a.yaw, a.pitch, a.roll) for a in seen])
    yaw_abs, pitch_abs, roll_abs = magnitudes_T3.mean(axis=0).tolist()
    yaw_p95, pitch_p95, roll_p95 = np.percentile(magnitudes_T3, 95, axis=0).tolist()
    return Pose(yaw_abs, pitch_abs, roll_abs, yaw_p95, pitch_p95, roll_p95, angular_speed(rotations_T33, fps))
