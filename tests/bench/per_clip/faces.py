"""One clip's faces, about once a second: the script a user would write with OpenCV."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import cv2

from model import weights
from model.encoders.detect import CenterFace

find = CenterFace(weights.path("centerface"), (640,))
film = cv2.VideoCapture(sys.argv[1])
rate, frame = film.get(cv2.CAP_PROP_FPS), 0
while True:
    there, image = film.read()
    if not there:
        break
    if frame % round(rate) == 0:
        print(frame, len(find(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))))
    frame += 1
