"""A folder's latents: of each film's pictures, and of four of them alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import cv2
import numpy as np
import torch

from model import codecs

torch.set_num_threads(1)
codec = codecs.load("dct")
for path in sorted(Path(sys.argv[1]).glob("*.mp4")):
    film = cv2.VideoCapture(str(path))
    frames = []
    while (read := film.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    frames_TCHW = torch.from_numpy(np.stack(frames[:49])).permute(0, 3, 1, 2).float() / 127.5 - 1
    np.save(path.with_suffix(".latent.npy"), codec.encode(frames_TCHW).numpy().astype(np.float16))
    alone = [codec.encode(frames_TCHW[n : n + 1]) for n in (0, 1, 10, 20, 30, 40)]
    np.save(path.with_suffix(".reference.npy"), torch.cat(alone).numpy().astype(np.float16))
