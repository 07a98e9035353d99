"""Writing in a picture is found, and how much of it."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from curation.backends.text import TextDetector
from model import media, weights


@pytest.fixture(scope="module")
def text() -> TextDetector:
    return TextDetector(weights.path("text-detection"))


PLAIN = np.full((480, 640, 3), 90, np.uint8)


@pytest.mark.parametrize("size", [0.8, 1.5])
def test_a_subtitle_counts_with_the_place_it_takes(text, size):
    words = "What he says, word for word"
    (width, height), below = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, size, 3)
    titled = cv2.putText(PLAIN.copy(), words, (10, 440), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 3)
    seen = min(width, 630)
    expected = seen * (height + below) / (480 * 640)
    assert text(titled) == pytest.approx(expected, rel=0.4)


def test_plain_colour_has_no_writing(text):
    assert text(PLAIN) == 0


def test_slides_and_titles_have_much_and_talking_heads_have_none(text, footage):
    def share(name: str) -> float:
        span = media.Span(Fraction(2), Fraction(3))
        return text(next(media.frames(footage / name, span, Fraction(25))))

    assert share("negative/v2d_slides_narration_no_face.mp4") > 0.05
    assert share("talking_head/sv_head4.mp4") < 0.005 and share("talking_head/sv_half4.mp4") < 0.005
