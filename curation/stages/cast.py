"""Who is on show in a clip: its faces, each followed through the frames with what its landmarks tell.

T: frame at 25 fps. D: number of the mouth. H, W, C: picture. K: embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from curation.backends.landmarks import Landmarker, Landmarks
from curation.backends.syncnet import Cropper
from curation.backends.tracks import Find, Sight, Tracker
from curation.measures import picture
from curation.measures.camera import to_heights
from curation.measures.lips import MOUTH, mouth_features
from curation.measures.pose import rotation
from model.encoders.face import FaceEncoder, five_points

FACES = 3
"""Faces of a frame, the largest, whose landmarks are looked for."""
PRESENT = 0.5
"""A face on show for less of the time than the one on show longest, times this, is not the clip's."""
LOST = 25
"""Frames for which somebody whose face is lost is taken to be where it was."""
LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409)
"""The outer edge of the lips in MediaPipe's mesh."""


@dataclass(frozen=True)
class Face:
    """One face through a clip; arrays have a row a frame (T), NaN where the face, or its landmarks, were lost.

    boxes_T4, lips_T4: left, top, right, bottom, pixels. points_T52: eyes, nose, corners of the mouth. mouth_TD: as
    measures/lips.py takes it. opening_T: distance of the inner lips over the mouth's width. sharpness, embeddings_KD:
    of some frames. crops: for SyncNet, from the first frame that shows the face on; none unless asked for.
    """

    number: int
    boxes_T4: np.ndarray
    lips_T4: np.ndarray
    points_T52: np.ndarray
    rotations_T33: np.ndarray
    mouth_TD: np.ndarray
    opening_T: np.ndarray
    sharpness: tuple[float, ...]
    embeddings_KD: np.ndarray
    crops: Sequence[np.ndarray]

    @property
    def seen_T(self) -> np.ndarray:
        """Whether the face is on show: bool [T]."""
        return np.isfinite(self.boxes_T4[:, 0])

    @property
    def marked_T(self) -> np.ndarray:
        """Whether its landmarks were found: bool [T]."""
        return np.isfinite(self.lips_T4[:, 0])

    @property
    def heights_T(self) -> np.ndarray:
        """Height of the face, pixels."""
        return self.boxes_T4[:, 3] - self.boxes_T4[:, 1]

    def centres_T2(self, shape: tuple[int, int]) -> np.ndarray:
        """The face's centre, frame heights from the picture's. shape: the picture's height and width."""
        return to_heights((self.boxes_T4[:, :2] + self.boxes_T4[:, 2:]) / 2, shape)


class Cast:
    """Gathers the faces of a clip, frame by frame."""

    def __init__(
        self,
        landmarks: Landmarker,
        recognise: FaceEncoder | None = None,
        due: Sequence[int] = (),
        crops: bool = False,
    ) -> None:
        """recognise, due: what embeds a face, and from which frames on the first, second ... embedding is due.

        crops: whether SyncNet is to see the faces.
        """
        self.count = 0
        self.faces_max = 0
        self._landmarks, self._recognise, self._due, self._crops = landmarks, recognise, due, crops
        self._tracks: dict[int, _Track] = {}
        self._studied: list[_Track] = []

    def see(self, image_HWC: np.ndarray, sights: Mapping[int, Sight]) -> None:
        """The next frame, uint8 RGB, and the faces in it by the number of their track."""
        index, self.count = self.count, self.count + 1
        self.faces_max = max(self.faces_max, len(sights))
        largest = sorted(sights, key=lambda number: -sights[number].area)
        for number in largest:
            if number not in self._tracks:
                self._tracks[number] = _Track(number, cropper=Cropper() if self._crops else None)
            self._tracks[number].see(index, sights[number])
        for track in self._tracks.values():
            if track.cropper:
                track.cropper.see(image_HWC, track.sights[index].box if index in track.sights else np.full(4, np.nan))
        self._studied = [self._tracks[number] for number in largest[:FACES]]
        for track in self._studied:
            self._study(index, image_HWC, track)

    def sharpen(self, luma_HW: np.ndarray) -> None:
        """Note how sharp the faces of the last frame are. luma_HW: its luma, uint8."""
        for track in self._studied:
            track.sharpness.append(picture.face_sharpness(luma_HW, track.box))

    @property
    def near_F4(self) -> np.ndarray:
        """Boxes [F, 4] of those on show now or a moment ago, first of who has been on show longest and largest."""
        tracks = sorted(self._tracks.values(), key=lambda track: -track.weight)
        near = [track.box for track in tracks if self.count - 1 - track.last <= LOST]
        return np.stack(near) if near else np.zeros((0, 4))

    def faces(self) -> list[Face]:
        """The faces seen so far, by number."""
        return [self._tracks[number].face(self.count) for number in sorted(self._tracks)]

    def _study(self, index: int, image_HWC: np.ndarray, track: _Track) -> None:
        """Landmarks of a face, and its embedding when the next is due: they are spread evenly over the clip."""
        found = self._landmarks(image_HWC, track.sights[index])
        if found is not None:
            track.landmarks[index] = found
        taken = len(track.embeddings)
        if self._recognise and taken < len(self._due) and index >= self._due[taken]:
            points = track.sights[index].points if found is None else five_points(found.points_P3)
            track.embeddings.append(self._recognise(image_HWC, points))


def prominent(faces: Iterable[Face]) -> list[Face]:
    """Those on show for at least PRESENT of the time that the one on show longest is, the largest first."""
    faces = list(faces)
    longest = max((face.seen_T.sum() for face in faces), default=0)
    present = [face for face in faces if face.seen_T.sum() >= PRESENT * longest]
    return sorted(present, key=lambda face: -float(np.nansum(face.heights_T**2)))


def mouth(frames: Iterable[np.ndarray], find: Find, landmarks: Landmarker) -> np.ndarray:
    """The mouth of the most prominent face of a film: [T, MOUTH], NaN where it is not seen.

    frames: uint8 [H, W, 3] RGB, 25 a second.
    """
    cast = Cast(landmarks)
    for image_HWC, sights in Tracker(find)(frames):
        cast.see(image_HWC, sights)
    faces = prominent(cast.faces())
    return faces[0].mouth_TD if faces else np.full((cast.count, MOUTH), np.nan)


@dataclass
class _Track:
    """What is gathered of a face, by frame."""

    number: int
    sights: dict[int, Sight] = field(default_factory=dict)
    landmarks: dict[int, Landmarks] = field(default_factory=dict)
    sharpness: list[float] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    cropper: Cropper | None = None
    last: int = -1
    weight: float = 0.0

    def see(self, index: int, sight: Sight) -> None:
        """The face is on show in a frame."""
        self.sights[index], self.last = sight, index
        self.weight += sight.area

    @property
    def box(self) -> np.ndarray:
        """Where the face was seen last."""
        return self.sights[self.last].box

    def face(self, frames: int) -> Face:
        """The face over a clip of so many frames."""

        def rows(values: Mapping[int, np.ndarray], *shape: int) -> np.ndarray:
            array = np.full((frames, *shape), np.nan)
            for index, value in values.items():
                array[index] = value
            return array

        points = {index: sight.points for index, sight in self.sights.items()}
        points |= {index: five_points(found.points_P3) for index, found in self.landmarks.items()}
        lips = {index: found.points_P3[list(LIPS), :2] for index, found in self.landmarks.items()}
        marks = list(self.landmarks.values())
        mouth_TD = np.full((frames, MOUTH), np.nan)
        if marks:
            features = mouth_features(np.stack([m.points_P3 for m in marks]), np.stack([m.blendshapes for m in marks]))
            mouth_TD = rows(dict(zip(self.landmarks, features, strict=True)), MOUTH)
        return Face(
            number=self.number,
            boxes_T4=rows({index: sight.box for index, sight in self.sights.items()}, 4),
            lips_T4=rows(
                {index: np.concatenate([edge.min(axis=0), edge.max(axis=0)]) for index, edge in lips.items()}, 4
            ),
            points_T52=rows(points, 5, 2),
            rotations_T33=rows({index: rotation(found.pose_44) for index, found in self.landmarks.items()}, 3, 3),
            mouth_TD=mouth_TD,
            opening_T=rows({index: np.array(_opening(found)) for index, found in self.landmarks.items()}),
            sharpness=tuple(self.sharpness),
            embeddings_KD=np.stack(self.embeddings) if self.embeddings else np.zeros((0, 0), np.float32),
            crops=self.cropper.finish() if self.cropper else (),
        )


def _opening(found: Landmarks) -> float:
    upper, lower, right, left = found.points_P3[[13, 14, 61, 291]]
    return float(np.linalg.norm(upper - lower)) / max(float(np.linalg.norm(right - left)), 1e-6)
