"""A folder's text embeddings: of one caption a film."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from model.encoders import text

encoder = text.load("minilm")
for path in sorted(Path(sys.argv[1]).glob("*.mp4")):
    np.save(path.with_suffix(".text.npy"), np.asarray(encoder.encode("A person talks to the camera.")))
