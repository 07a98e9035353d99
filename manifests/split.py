"""Training and validation, apart by person and by source video, never by clip.

A video is wholly on one side. So is a person: videos in which the same face is bound to a voice are one group, and
groups are drawn, in an order that the seed and the videos' ids alone decide.

V: videos. P: people, each of one video. D: numbers of a face's vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.candidates import SelectionError
from manifests.schema import Track
from manifests.store import ManifestStore

SAME = {128: 0.92, 512: 0.4}
"""Cosine from which on two faces are rather one person's, by the length of their vectors: dlib, InsightFace.

docs/metrics.md, "Identity".
"""
_BLOCK = 1 << 24  # cosines that are held at once
_AHEAD = 256  # videos whose faces are compared at once
_UNKNOWN, _TRAIN, _VALIDATION = 0, 1, 2


@dataclass(frozen=True)
class People:
    """Who is bound to a voice: the video of each person, and the mean of their face's vectors, at unit length."""

    video_P: np.ndarray
    face_PD: np.ndarray

    @classmethod
    def nobody(cls) -> People:
        return cls(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))

    def same(self) -> float:
        """The usual cosine of one person for vectors of this length. Raises SelectionError where none is known."""
        length = self.face_PD.shape[1]
        if length and length not in SAME:
            raise SelectionError(f"faces of {length} numbers: give same=, the cosine from which on two are one person")
        return SAME.get(length, 1.0)


def people(store: ManifestStore, clips: pa.Table) -> People:
    """The people whom clips (video_id, clip_id, track, person) are bound to, read from the table `tracks`.

    Videos are numbered in the order in which `clips` names them first. Raises SelectionError when the vectors are not
    of one length.
    """
    video_N = _numbered(clips["video_id"])
    person = pc.coalesce(clips["person"], clips["clip_id"])  # nobody's name: a person of this clip alone
    person_N = _numbered(pc.binary_join_element_wise(clips["video_id"], person, " "))
    ids, bound_N = clips["clip_id"].combine_chunks(), clips["track"].fill_null(-1).to_numpy()
    total_PD = np.zeros((0, 0))
    for batch in store.batches(Track, ["clip_id", "track", "identity"]):
        batch = batch.append_column("clip", pc.index_in(batch["clip_id"], ids))
        batch = batch.filter(
            pc.and_(pc.is_valid(batch["clip"]), pc.greater(pc.list_value_length(batch["identity"]), 0))
        )
        clip_K = batch["clip"].to_numpy()
        batch = batch.filter(pa.array(batch["track"].to_numpy() == bound_N[clip_K]))
        if not batch.num_rows:
            continue
        lengths = pc.unique(pc.list_value_length(batch["identity"])).to_pylist()
        if len({*lengths, *([total_PD.shape[1]] if total_PD.size else [])}) > 1:
            raise SelectionError("some clips were scored with one face network and some with another: score them alike")
        if not total_PD.size:
            total_PD = np.zeros((int(person_N.max()) + 1, lengths[0]))
        face_KD = pc.list_flatten(batch["identity"]).to_numpy().reshape(-1, lengths[0]).astype(np.float64)
        length_K1 = np.linalg.norm(face_KD, axis=1, keepdims=True)
        known_K = np.isfinite(length_K1[:, 0]) & (length_K1[:, 0] > 0)
        np.add.at(total_PD, person_N[batch["clip"].to_numpy()[known_K]], face_KD[known_K] / length_K1[known_K])
    length_P = np.linalg.norm(total_PD, axis=1) if total_PD.size else np.zeros(0)
    seen_P = np.flatnonzero(length_P > 0)
    if not len(seen_P):
        return People.nobody()
    _, first_N = np.unique(person_N, return_index=True)
    return People(video_N[first_N[seen_P]], (total_PD[seen_P] / length_P[seen_P, None]).astype(np.float32))


def draw(
    videos: Sequence[str], hours_V: np.ndarray, people: People, share: float, seed: int = 0, same: float | None = None
) -> np.ndarray:
    """Which videos are for validation: bool [V].

    Groups of videos are drawn until their hours come as close to `share` of all as they can; one that is larger than
    what is left is training's. same: cosine from which on two faces are one person's (see SAME).
    """
    order = sorted(range(len(videos)), key=lambda index: _ticket(seed, videos[index]))
    crowd = _Crowd(people, people.same() if same is None else same, order)
    state_V = np.full(len(videos), _UNKNOWN, np.int8)
    left = share * float(hours_V.sum())
    for video in order:
        if left <= 0:
            break
        if state_V[video] == _UNKNOWN:
            group, whole = _group(video, crowd, hours_V, state_V, 2 * left)
            state_V[group] = _VALIDATION if whole else _TRAIN
            left -= float(hours_V[group].sum()) if whole else 0.0
    return state_V == _VALIDATION


def _group(video: int, crowd: _Crowd, hours_V: np.ndarray, state_V: np.ndarray, limit: float) -> tuple[list[int], bool]:
    """The videos that share people with a video, and theirs; and whether these are all.

    They are not when the search came upon a video of training's, or upon `limit` hours: then it ends early.
    """
    group, front, hours = {video}, [video], 0.0
    while front:
        hours += float(hours_V[front].sum())
        if hours >= limit:
            return sorted(group), False
        front = sorted(crowd.near(front) - group)
        if (state_V[front] == _TRAIN).any():
            return sorted(group), False
        group.update(front)
    return sorted(group), True


class _Crowd:
    """Which videos show somebody who is in another. Faces are compared for many videos at once, as they are drawn."""

    def __init__(self, people: People, line: float, order: Sequence[int]) -> None:
        self._people, self._line, self._order = people, line, list(order)
        self._place = {video: place for place, video in enumerate(self._order)}
        self._near: dict[int, set[int]] = {}

    def near(self, videos: Sequence[int]) -> set[int]:
        """The videos that show somebody who is in one of these; they themselves among them."""
        if missing := [video for video in videos if video not in self._near]:
            place = self._place[missing[0]]
            self._compare({*missing, *self._order[place : place + _AHEAD]} - self._near.keys())
        return set().union(*(self._near[video] for video in videos))

    def _compare(self, videos: set[int]) -> None:
        self._near |= {video: {video} for video in videos}
        video_P, face_PD = self._people.video_P, self._people.face_PD
        of = np.flatnonzero(np.isin(video_P, list(videos)))
        rows = max(1, _BLOCK // max(1, len(video_P)))
        for first in range(0, len(of), rows):
            some = of[first : first + rows]
            one, other = np.nonzero(face_PD[some] @ face_PD.T >= self._line)
            for video, near in zip(video_P[some[one]].tolist(), video_P[other].tolist(), strict=True):
                self._near[video].add(near)


def _ticket(seed: int, video: str) -> bytes:
    """What a video draws: it keeps it when other videos come or go."""
    return hashlib.sha256(f"{seed} {video}".encode()).digest()


def _numbered(names: pa.ChunkedArray) -> np.ndarray:
    """The number of each name, in the order of first appearance: int64 [N]."""
    coded = names.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64)
