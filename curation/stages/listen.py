"""listen: the sound of one video in; who speaks when, where one voice speaks alone, and how each turn sounds, out."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from curation.backends.speakers import Diarization, EmbeddedDiarizer
from curation.config import ListenConfig
from curation.measures.sound import clipped_share, level
from manifests import schema
from model import media, weights

RATE = 16_000
_RATED_SECONDS = 1.0  # DNSMOS repeats shorter speech until it fills its window, which rates the repetition


class Listen:
    """Diarization and sound quality of one video's sound track."""

    def __init__(self, config: ListenConfig, threads: int = 1):
        self.config = config
        self.diarize = _diarizer(config, threads)
        self.rate = None
        if config.quality:
            from curation.backends.sound import Dnsmos

            # Side by side rather than every second: a ninth of the price, on turns of more than 10 s.
            self.rate = Dnsmos(weights.path("dnsmos"), threads=threads, every=9)

    def __call__(
        self, video_id: str, path: Path, asked: tuple[float, ...] = ()
    ) -> tuple[list[schema.Turn], list[schema.Solo]]:
        """The turns, and the stretches in which one voice speaks alone, in seconds of the source's clock.

        asked: flat spans in seconds; only the stretch from the first to the last is listened to.
        Raises MediaError when the sound cannot be decoded.
        """
        span = media.Span(Fraction(asked[0]), Fraction(asked[-1])) if asked else None
        waveform = media.audio(path, span, rate=RATE, limit_seconds=self.config.limit_hours * 3600)
        heard = self.diarize(waveform)
        offset = asked[0] if asked else 0.0
        turns = []
        for turn in heard.turns:
            part = waveform[round(turn.start * RATE) : round(turn.end * RATE)]
            rated = self.rate(part) if self.rate and len(part) >= _RATED_SECONDS * RATE else (None, None, None)
            turns.append(
                schema.Turn(
                    video_id=video_id,
                    start=turn.start + offset,
                    end=turn.end + offset,
                    speaker=turn.speaker,
                    overlap=turn.overlap,
                    level=level(part),
                    clipped=clipped_share(part),
                    dnsmos_sig=rated[0],
                    dnsmos_bak=rated[1],
                    dnsmos_ovr=rated[2],
                )
            )
        solos = [schema.Solo(video_id, solo.start + offset, solo.end + offset, solo.speaker) for solo in heard.solos]
        return turns, solos


def _diarizer(config: ListenConfig, threads: int) -> Callable[[np.ndarray], Diarization]:
    if config.diarization == "pyannote":
        from curation.backends.pyannote_audio import PyannoteDiarizer  # an optional package

        return PyannoteDiarizer(config.pyannote, threads=threads)
    segmentation, embedding, speech = (weights.path(name) for name in ("segmentation-3.0", "cam++", "silero-vad"))
    return EmbeddedDiarizer(segmentation, embedding, threads, speech)
