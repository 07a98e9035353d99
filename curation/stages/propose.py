"""propose: shots, looks for faces and voices in; candidate clips, and a reason for every second that is in none, out.

Pure: no file is opened. All arithmetic is in ticks of the video's time base, so clips and losses cover the video
exactly once.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from curation.config import ProposeConfig
from manifests.schema import UNMEASURED, Clip, Look, Loss, Shot, Solo, Turn, Video, short_hash

NO_PICTURES = "outside the pictures"
NO_FACE = "no face"
STILL = "still picture"
NO_SOUND = "no sound track"
NO_SPEECH = "no speech"
SEVERAL_VOICES = "several voices at once"
UNCLEAR_VOICE = "no clear single voice"
TOO_SHORT = "too short for a clip"


@dataclass(frozen=True)
class _Piece:
    """A stretch of the video, in ticks, with all that decides its fate."""

    start: int
    end: int
    reason: str = ""
    stage: str = "propose"
    shot: int = -1
    speaker: str = ""
    solo: int = -1


class Propose:
    """Candidate clips of one video, and its losses."""

    def __init__(self, config: ProposeConfig, models: str = ""):
        """models: what found the shots, faces and voices; recorded with each clip."""
        if not 0 < config.min_seconds <= config.max_seconds:
            raise ValueError(f"min_seconds={config.min_seconds:g} must be above 0 and at most max_seconds")
        self.config, self.models = config, models
        self.settings = repr(config)

    def __call__(
        self,
        video: Video,
        shots: Sequence[Shot],
        looks: Sequence[Look],
        turns: Sequence[Turn],
        solos: Sequence[Solo],
        lost: Sequence[Loss],
    ) -> tuple[list[Clip], list[Loss]]:
        """lost: what earlier stages lost already; it comes back among the losses."""
        tick = Fraction(video.time_base)
        end = round(Fraction(video.duration) / tick)
        still = {shot.shot for shot in shots if shot.static_share > self.config.static_share}
        pieces = list(_pieces(video, end, tick, shots, still, self._faces(shots, looks, tick), turns, solos, lost))
        clips, losses = [], []
        for piece in _joined(pieces):
            if not piece.reason and (piece.end - piece.start) * tick < Fraction(self.config.min_seconds):
                piece = _Piece(piece.start, piece.end, TOO_SHORT)
            if piece.reason:
                losses.append(_loss(video, piece, tick))
            else:
                clips += [self._clip(video, piece, start, end, looks, tick) for start, end in self._parts(piece, tick)]
        return clips, _merged(losses)

    def _faces(self, shots: Sequence[Shot], looks: Sequence[Look], tick: Fraction) -> list[tuple[int, int]]:
        """Where a face is on show, in ticks: each moment of a shot has what the look nearest to it saw."""
        found: list[tuple[int, int]] = []
        by_shot: dict[int, list[Look]] = {}
        for look in looks:
            by_shot.setdefault(look.shot, []).append(look)
        gap = math.floor(Fraction(self.config.face_gap_seconds) / tick)
        for shot in shots:
            seen = sorted(by_shot.get(shot.shot, []), key=lambda look: look.time)
            at = [round(Fraction(look.time) / tick) for look in seen]
            middles = [(left + right) // 2 for left, right in itertools.pairwise(at)]
            edges = [shot.start_ticks, *middles, shot.end_ticks]
            here: list[tuple[int, int]] = []
            for look, left, right in zip(seen, edges, edges[1:], strict=False):
                if not look.faces:
                    continue
                if here and left - here[-1][1] <= gap:
                    here[-1] = (here[-1][0], right)
                else:
                    here.append((left, right))
            found += here
        return found

    def _parts(self, piece: _Piece, tick: Fraction) -> list[tuple[int, int]]:
        """The piece in as few equal parts as the longest clip allows."""
        length = piece.end - piece.start
        parts = math.ceil(length * tick / Fraction(self.config.max_seconds))
        edges = [piece.start + length * index // parts for index in range(parts + 1)]
        return list(itertools.pairwise(edges))

    def _clip(self, video: Video, piece: _Piece, start: int, end: int, looks: Sequence[Look], tick: Fraction) -> Clip:
        first, last = float(start * tick), float(end * tick)
        near = [look.faces for look in looks if look.shot == piece.shot and first - 1 < look.time < last + 1]
        return Clip(
            video_id=video.video_id,
            clip_id=short_hash(video.video_id, start, end, self.settings),
            shot=piece.shot,
            start=first,
            end=last,
            start_ticks=start,
            end_ticks=end,
            time_base=video.time_base,
            duration=float((end - start) * tick),
            speaker=piece.speaker,
            faces_seen=max(near, default=0),
            path=video.path,
            source_set=video.source_set,
            licence=video.licence,
            url=video.url,
            width=video.width,
            height=video.height,
            fps=video.fps,
            models=self.models,
            **vars(UNMEASURED),
        )


class _Spans:
    """Disjoint stretches, to be asked which one a tick lies in."""

    def __init__(self, spans: Iterable[tuple[int, int]]):
        self.spans = sorted(spans)
        self.starts = [start for start, _ in self.spans]

    def at(self, tick: int) -> int:
        """The index of the stretch that holds the tick, or -1."""
        index = bisect.bisect_right(self.starts, tick) - 1
        return index if index >= 0 and tick < self.spans[index][1] else -1


def _pieces(
    video: Video,
    end: int,
    tick: Fraction,
    shots: Sequence[Shot],
    still: Container[int],
    faces: Sequence[tuple[int, int]],
    turns: Sequence[Turn],
    solos: Sequence[Solo],
    lost: Sequence[Loss],
) -> Iterator[_Piece]:
    """The video from 0 to `end` in pieces whose fate is one and the same throughout."""
    shots, solos = sorted(shots, key=lambda shot: shot.start_ticks), sorted(solos, key=lambda solo: solo.start)
    lost = sorted(lost, key=lambda loss: loss.start)
    in_shot = _Spans((shot.start_ticks, shot.end_ticks) for shot in shots)
    in_solo = _Spans((math.ceil(Fraction(solo.start) / tick), math.floor(Fraction(solo.end) / tick)) for solo in solos)
    in_lost = _Spans((round(Fraction(loss.start) / tick), round(Fraction(loss.end) / tick)) for loss in lost)
    in_face = _Spans(faces)
    spoken = [(round(Fraction(turn.start) / tick), round(Fraction(turn.end) / tick)) for turn in turns]
    starts, ends = sorted(start for start, _ in spoken), sorted(stop for _, stop in spoken)
    edges = {0, end, *starts, *ends}
    for spans in (in_shot, in_solo, in_lost, in_face):
        edges.update(edge for span in spans.spans for edge in span)
    marks = sorted(edge for edge in edges if 0 <= edge <= end)
    for left, right in itertools.pairwise(marks):
        shot, solo, gone = in_shot.at(left), in_solo.at(left), in_lost.at(left)
        voices = bisect.bisect_right(starts, left) - bisect.bisect_right(ends, left)
        if gone >= 0:
            yield _Piece(left, right, lost[gone].reason, lost[gone].stage)
        elif shot < 0:
            yield _Piece(left, right, NO_PICTURES)
        elif in_face.at(left) < 0:
            yield _Piece(left, right, NO_FACE)
        elif shots[shot].shot in still:
            yield _Piece(left, right, STILL)
        elif video.audio_codec is None:
            yield _Piece(left, right, NO_SOUND)
        elif solo >= 0:
            yield _Piece(left, right, shot=shots[shot].shot, speaker=solos[solo].speaker, solo=solo)
        elif voices == 0:
            yield _Piece(left, right, NO_SPEECH)
        else:
            yield _Piece(left, right, SEVERAL_VOICES if voices > 1 else UNCLEAR_VOICE)


def _joined(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """Neighbouring pieces of one fate as one."""
    held: _Piece | None = None
    for piece in pieces:
        if held is not None and _fate(held) == _fate(piece):
            held = _Piece(held.start, piece.end, *_fate(held))
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held


def _fate(piece: _Piece) -> tuple[str, str, int, str, int]:
    return piece.reason, piece.stage, piece.shot, piece.speaker, piece.solo


def _loss(video: Video, piece: _Piece, tick: Fraction) -> Loss:
    return Loss(video.video_id, float(piece.start * tick), float(piece.end * tick), piece.reason, piece.stage)


def _merged(losses: Iterable[Loss]) -> list[Loss]:
    merged: list[Loss] = []
    for loss in losses:
        last = merged[-1] if merged else None
        if last and (last.end, last.reason, last.stage) == (loss.start, loss.reason, loss.stage):
            merged[-1] = Loss(last.video_id, last.start, loss.end, loss.reason, loss.stage)
        else:
            merged.append(loss)
    return merged
