"""Whether a sound is speech at all: Silero VAD, which music and noise do not fool as they do diarization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

RATE = 16000
FRAME = 512
"""Samples a probability stands for: 32 ms."""
PER_SECOND = RATE / FRAME
CONTEXT = 64
"""Samples of the frame before that the network also sees."""


class SpeechDetector:
    """Runs Silero VAD over a recording."""

    def __init__(self, model: Path, threads: int = 1) -> None:
        """model: `silero_vad.onnx`, version 5 or 6."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Probability of speech, float32 [ceil(n / 512)]; waveform: float32 [n] at 16 kHz."""
        count = -(-len(waveform) // FRAME)
        state = np.zeros((2, 1, 128), np.float32)
        rate = np.array(RATE, np.int64)
        result = np.zeros(count, np.float32)
        before = np.zeros(CONTEXT, np.float32)
        for frame in range(count):
            samples = waveform[frame * FRAME :][:FRAME]
            seen = np.concatenate([before, np.pad(samples, (0, FRAME - len(samples)))])
            probability, state = self.session.run(None, {"input": seen[None], "state": state, "sr": rate})
            result[frame] = probability[0, 0]
            before = seen[-CONTEXT:]
        return result
