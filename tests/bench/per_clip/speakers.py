"""One clip's speakers: its sound out of FFmpeg into a file, then diarization."""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
from scipy.io import wavfile

from curation.backends.speakers import EmbeddedDiarizer
from model import weights

with tempfile.TemporaryDirectory() as folder:
    wav = Path(folder) / "sound.wav"
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-i", sys.argv[1], "-ac", "1", "-ar", "16000", str(wav)], check=True
    )
    _, sound = wavfile.read(wav)
diarize = EmbeddedDiarizer(weights.path("segmentation-3.0"), weights.path("cam++"))
print(diarize(sound.astype(np.float32) / 32768))
