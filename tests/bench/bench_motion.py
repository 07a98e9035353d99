"""What the measures of picture, camera and motion cost a frame of 720p, one thread.

  python tests/bench/bench_motion.py [film …]

Without films: the catalogue's man talking to the camera, enlarged to 1280 x 720. CPU milliseconds a frame, the
least of five runs over four seconds; decoding, faces and landmarks are not in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import time
from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from curation.measures.camera import Camera, camera_motion, small, to_heights
from curation.measures.motion import Flow, head_travel
from curation.measures.picture import face_sharpness, letterbox, luminance, sharpness
from curation.measures.pose import pose
from model import weights
from model.encoders.detect import CenterFace
from model.media import Span, frames

SIZE = (1280, 720)
FPS = 25
RUNS = 5


def main(films: list[Path]) -> None:
    cv2.setNumThreads(1)
    find = CenterFace(weights.path("centerface"), (320,))
    for film in films or [weights.path("psychopy-jwpIntro")]:
        images = list(frames(film, Span(Fraction(0), Fraction(4)), Fraction(FPS), SIZE))
        face = max(find(images[0]), key=lambda face: face.bottom - face.top)
        box = np.array([face.left, face.top, face.right, face.bottom]) * np.tile(SIZE, 2)
        print(f"{film.name}: {len(images)} frames")
        report(images, box)


def report(images: list[np.ndarray], box: np.ndarray) -> None:
    lumas = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    greys = [small(luma) for luma in lumas]
    boxes_F4 = box[None] * greys[0].shape[0] / SIZE[1]
    steps_T33 = followed(greys, boxes_F4)
    centres_T2 = np.tile(to_heights((box[:2] + box[2:]) / 2, (SIZE[1], SIZE[0])), (len(images), 1))
    heights_T = np.full(len(images), (box[3] - box[1]) / SIZE[1])
    turned_T33 = Rotation.from_rotvec(np.random.default_rng(0).normal(0, 0.1, (len(images), 3))).as_matrix()
    parts: dict[str, Callable[[], object]] = {
        "luma of the whole picture": lambda: [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images],
        "luminance": lambda: [luminance(luma) for luma in lumas],
        "sharpness": lambda: [sharpness(luma) for luma in lumas],
        "face sharpness": lambda: [face_sharpness(luma, box) for luma in lumas],
        "the small picture": lambda: [small(luma) for luma in lumas],
        "camera": lambda: followed(greys, boxes_F4),
        "flow": lambda: watched(greys, boxes_F4, steps_T33),
        "letterbox": lambda: letterbox(np.maximum.reduce(greys)),
        "at the clip's end": lambda: (
            camera_motion(steps_T33, FPS),
            head_travel(centres_T2, heights_T, steps_T33, FPS),
            pose(turned_T33, FPS),
        ),
    }
    costs = {name: cost(part) / len(images) for name, part in parts.items()}
    for name, spent in [*costs.items(), ("all", sum(costs.values()))]:
        print(f"{1e3 * spent:8.2f} ms a frame  {name}")


def followed(greys: list[np.ndarray], boxes_F4: np.ndarray) -> np.ndarray:
    camera = Camera()
    return np.array([camera.see(grey, boxes_F4) for grey in greys])


def watched(greys: list[np.ndarray], boxes_F4: np.ndarray, steps_T33: np.ndarray) -> None:
    flow = Flow()
    for grey, step_33 in zip(greys, steps_T33, strict=True):
        flow.see(grey, boxes_F4, step_33)


def cost(part: Callable[[], object]) -> float:
    """CPU seconds, the least of RUNS."""
    spent = []
    for _ in range(RUNS):
        started = time.process_time()
        part()
        spent.append(time.process_time() - started)
    return min(spent)


if __name__ == "__main__":
    main([Path(film) for film in sys.argv[1:]])
