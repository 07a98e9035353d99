"""One pass over a clip's pictures: its faces with their landmarks, the camera, the light. What scoring is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from curation.backends.landmarks import Landmarker, Landmarks
from curation.backends.syncnet import Cropper
from curation.backends.text import TextDetector
from curation.backends.tracks import Sight
from curation.measures import picture
from curation.measures.camera import Camera, small, to_heights
from curation.measures.lips import mouth_features
from curation.measures.motion import Flow, FlowMotion
from curation.measures.pose import rotation
from model.encoders.face import FaceEncoder, five_points

FPS = 25
FACES = 3
"""Faces of a frame, the largest, whose landmarks are looked for."""
TEXT_EVERY = 100
"""Frames from one look for writing to the next."""
LOST = 25
"""Frames for which somebody whose face is lost is taken to be where it was."""
SHARP_EVERY = 25
"""Frames from one measurement of sharpness to the next."""
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
        self.weight += float(np.prod(sight.box[2:] - sight.box[:2]))

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
        mouth_TD = np.full((frames, 1), np.nan)
        if marks:
            features = mouth_features(np.stack([m.points_P3 for m in marks]), np.stack([m.blendshapes for m in marks]))
            mouth_TD = rows(dict(zip(self.landmarks, features, strict=True)), features.shape[1])
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


class Viewing:
    """Watches a clip frame by frame."""

    def __init__(
        self,
        frames: int,
        landmarks: Landmarker,
        recognise: FaceEncoder,
        samples: int,
        text: TextDetector | None = None,
        crops: bool = False,
    ) -> None:
        """frames: about how many there will be. samples: how many embeddings of a face are wanted over them.

        text: what looks for writing, if wanted. crops: whether SyncNet is to see the faces.
        """
        self.count = 0
        self.faces_max = 0
        self.shape = (0, 0)
        self.sharpness: list[float] = []
        self.text: list[float] = []
        self._landmarks, self._recognise = landmarks, recognise
        self._due = [int((sample + 0.5) * frames / samples) for sample in range(samples)]
        self._text, self._crops = text, crops
        self._tracks: dict[int, _Track] = {}
        self._camera, self._flow = Camera(), Flow()
        self._steps: list[np.ndarray] = []
        self._luminance: list[float] = []
        self._brightest_hw: np.ndarray | None = None

    def see(self, image_HWC: np.ndarray, sights: Mapping[int, Sight]) -> None:
        """The next frame, uint8 RGB, and the faces in it by the number of their track."""
        index, self.count = self.count, self.count + 1
        self.shape = image_HWC.shape[:2]
        self.faces_max = max(self.faces_max, len(sights))
        largest = sorted(sights, key=lambda number: -float(np.prod(sights[number].box[2:] - sights[number].box[:2])))
        for number in largest:
            if number not in self._tracks:
                self._tracks[number] = _Track(number, cropper=Cropper() if self._crops else None)
            self._tracks[number].see(index, sights[number])
        for track in self._tracks.values():
            if track.cropper:
                track.cropper.see(image_HWC, track.sights[index].box if index in track.sights else np.full(4, np.nan))
        for track in (self._tracks[number] for number in largest[:FACES]):
            self._study(index, image_HWC, track)
        luma_HW = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
        if index % SHARP_EVERY == 0:
            self.sharpness.append(picture.sharpness(luma_HW))
            if self._text and index % TEXT_EVERY == 0:
                self.text.append(self._text(image_HWC))
            for number in largest[:FACES]:
                self._tracks[number].sharpness.append(picture.face_sharpness(luma_HW, sights[number].box))
        self._survey(luma_HW, self._people(index))

    def faces(self) -> list[Face]:
        """The faces seen so far, by number."""
        return [self._tracks[number].face(self.count) for number in sorted(self._tracks)]

    @property
    def steps_T33(self) -> np.ndarray:
        """The camera's steps, as measures/camera.py has them."""
        return np.stack(self._steps) if self._steps else np.zeros((0, 3, 3))

    @property
    def luminance(self) -> float:
        """Mean luma of the frames, 0-255; NaN without any."""
        return float(np.mean(self._luminance)) if self._luminance else float("nan")

    @property
    def letterbox(self) -> float:
        """Share of the picture that is black bars; NaN where all of it is black."""
        return float("nan") if self._brightest_hw is None else picture.letterbox(self._brightest_hw)

    @property
    def flow(self) -> FlowMotion:
        """Motion of the subject and of the background."""
        return self._flow.motion(FPS)

    def _study(self, index: int, image_HWC: np.ndarray, track: _Track) -> None:
        """Landmarks of a face, and its embedding when the next is due: they are spread evenly over the clip."""
        left, top, right, bottom = track.sights[index].box.tolist()
        found = self._landmarks(image_HWC, (left, top, right, bottom))
        if found is not None:
            track.landmarks[index] = found
        taken = len(track.embeddings)
        if taken < len(self._due) and index >= self._due[taken]:
            points = track.sights[index].points if found is None else five_points(found.points_P3)
            track.embeddings.append(self._recognise(image_HWC, points))

    def _people(self, index: int) -> np.ndarray:
        """Boxes [F, 4] of those on show now or a moment ago, first of who has been on show longest and largest."""
        tracks = sorted(self._tracks.values(), key=lambda track: -track.weight)
        near = [track.box for track in tracks if index - track.last <= LOST]
        return np.stack(near) if near else np.zeros((0, 4))

    def _survey(self, luma_HW: np.ndarray, boxes_F4: np.ndarray) -> None:
        """Light, and motion of the camera and of what it shows; boxes: of people, the subject's first."""
        grey_hw = small(luma_HW)
        boxes_F4 = boxes_F4 * (np.array(grey_hw.shape[::-1] * 2) / np.array(luma_HW.shape[::-1] * 2))
        step_33 = self._camera.see(grey_hw, boxes_F4)
        self._flow.see(grey_hw, boxes_F4, step_33)
        self._steps.append(step_33)
        self._luminance.append(picture.luminance(grey_hw))
        before = grey_hw if self._brightest_hw is None else self._brightest_hw
        self._brightest_hw = np.maximum(before, grey_hw)
