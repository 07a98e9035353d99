"""Where a picture has writing: PaddleOCR's detector (differentiable binarisation, Liao et al., AAAI 2020)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime

SIDE = 640
"""Long side that pictures are shrunk to, pixels."""
LIKELY, SURE = 0.3, 0.5
"""Probability from which on a pixel belongs to writing; mean over a stretch of it from which on that is believed."""
GROWTH = 1.6
"""The network marks the middle of writing; its outline lies GROWTH × area / perimeter further out."""
THICKEST = 0.2
"""Of the picture's shorter side: no line of writing is thicker, but the network takes a patterned suit for one."""
_BLOCK = 32


class TextDetector:
    """Finds writing, burnt-in or filmed: subtitles, logos, slides, shop signs."""

    def __init__(self, model: Path, threads: int = 1) -> None:
        """model: a detector of PaddleOCR as ONNX."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._network = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._input = self._network.get_inputs()[0].name

    def __call__(self, image_HWC: np.ndarray) -> float:
        """Share of the picture that is writing, 0..1. image_HWC: uint8 RGB."""
        factor = min(1.0, SIDE / max(image_HWC.shape[:2]))
        height, width = (max(1, round(length * factor)) for length in image_HWC.shape[:2])
        shown = cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_AREA)[..., ::-1]  # blue first
        padded = np.zeros((height + -height % _BLOCK, width + -width % _BLOCK, 3), np.float32)
        padded[:height, :width] = shown / np.float32(127.5) - 1
        (likely_11hw,) = self._network.run(None, {self._input: padded.transpose(2, 0, 1)[None]})
        return float(_written(likely_11hw[0, 0, :height, :width]).mean())


def _written(likely_hw: np.ndarray) -> np.ndarray:
    """Where there is writing, bool [h, w], out of the network's probabilities."""
    found_hw = np.zeros(likely_hw.shape, np.uint8)
    outlines, _ = cv2.findContours((likely_hw > LIKELY).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for outline in outlines:
        centre, size, angle = cv2.minAreaRect(outline)
        if not 3 <= min(size) <= THICKEST * min(likely_hw.shape):
            continue
        inside_hw = np.zeros(likely_hw.shape, np.uint8)
        cv2.drawContours(inside_hw, [outline], -1, 1, cv2.FILLED)
        if cv2.mean(likely_hw, inside_hw)[0] < SURE:
            continue
        reach = GROWTH * size[0] * size[1] / (2 * (size[0] + size[1]))
        grown = cv2.boxPoints((centre, (size[0] + 2 * reach, size[1] + 2 * reach), angle))
        cv2.fillPoly(found_hw, [np.round(grown).astype(np.int32)], 1)
    return found_hw > 0
