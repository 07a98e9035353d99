"""A folder's speech embeddings: each film's sound out of FFmpeg, then Whisper's encoder. speech.py <folder> <ffmpeg>"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from model.encoders import speech

encoder = speech.load("whisper")
for path in sorted(Path(sys.argv[1]).glob("*.mp4")):
    command = [sys.argv[2], "-loglevel", "error", "-i", str(path), "-ac", "1", "-ar", "16000", "-f", "f32le", "-"]
    sound = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.float32)
    np.save(path.with_suffix(".audio.npy"), encoder.frames(sound, len(sound) // 640).astype(np.float16))
