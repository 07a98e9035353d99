"""A folder's face embeddings: of each film's middle picture."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import cv2
import numpy as np

from model import weights
from model.encoders.detect import CenterFace
from model.encoders.face import DlibFace

find, embed = CenterFace(weights.path("centerface")), DlibFace(weights.path("dlib-face"))
for path in sorted(Path(sys.argv[1]).glob("*.mp4")):
    film = cv2.VideoCapture(str(path))
    film.set(cv2.CAP_PROP_POS_FRAMES, 25)
    image = cv2.cvtColor(film.read()[1], cv2.COLOR_BGR2RGB)
    face = find(image)[0]
    np.save(path.with_suffix(".face.npy"), embed(image, np.array(face.points) * image.shape[1::-1]))
