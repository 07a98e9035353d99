"""A folder's face boxes: of each film's every picture."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import cv2
import numpy as np

from model import weights
from model.encoders.detect import CenterFace

find = CenterFace(weights.path("centerface"), (320,))
for path in sorted(Path(sys.argv[1]).glob("*.mp4")):
    film = cv2.VideoCapture(str(path))
    boxes = []
    while (read := film.read())[0]:
        faces = find(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
        boxes.append([faces[0].left, faces[0].top, faces[0].right, faces[0].bottom] if faces else [np.nan] * 4)
    np.save(path.with_suffix(".mask.npy"), np.array(boxes, np.float32))
