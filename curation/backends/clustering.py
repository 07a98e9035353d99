"""Which pieces of speech are one voice: average-link clustering by cosine, in bounded memory."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array

BLOCK = 4000
"""Most items compared all with all: 64 MB a matrix. It is some 50 minutes of speech at a chunk each 0.75 s."""


def cluster(voices: np.ndarray, weights: np.ndarray, penalty: csr_array, stop: float, block: int = BLOCK) -> np.ndarray:
    """Groups unit vectors by weighted average-link clustering of 1 - cosine + penalty.

    voices: float32 [C, D], in order of time. weights: [C], > 0. penalty: [C, C] symmetric, sparse; added to the
    distance of a pair. stop: clusters at a greater mean distance stay apart.
    More than `block` items are grouped block by block, then the groups are: their mean distance needs only mean
    vectors and mean penalties, so a merge costs the same as if all pairs had been kept.
    Returns the group of each item, int [C], numbered from 0.
    """
    groups = np.arange(len(voices))
    for begin in range(0, len(voices), block):
        part = slice(begin, begin + block)
        distance = penalty[part, part].astype(np.float32).toarray()
        distance += 1 - voices[part] @ voices[part].T
        groups[part] = begin + link(distance, weights[part], stop)
    groups = np.unique(groups, return_inverse=True)[1]
    count = int(groups.max(initial=-1)) + 1
    if len(voices) <= block or count == len(voices):
        return groups
    member = coo_array((weights, (groups, np.arange(len(groups)))), shape=(count, len(groups))).tocsr()
    weight = np.bincount(groups, weights)
    mean = (member @ voices / weight[:, None]).astype(np.float32)
    share = member.multiply(1 / weight[:, None]).tocsr()
    return cluster(mean, weight, csr_array(share @ penalty @ share.T), stop, block)[groups]


def link(distance: np.ndarray, weights: np.ndarray, stop: float) -> np.ndarray:
    """Weighted average-link clustering of a full distance matrix, by nearest-neighbour chains.

    distance: float32 [n, n], symmetric; overwritten. Returns a representative item for each item, int [n].
    Time O(n²) (Müllner, arXiv 1109.2378, section 3.2). A group whose nearest neighbour is beyond `stop` is
    finished: merging others never brings them closer than the nearer of the two.
    """
    count = len(distance)
    np.fill_diagonal(distance, np.inf)
    weights = weights.astype(np.float64)
    group = np.arange(count)
    waiting = np.ones(count, dtype=bool)
    chain: list[int] = []
    while chain or waiting.any():
        if not chain:
            chain.append(int(waiting.argmax()))
        last = chain[-1]
        nearest = int(distance[last].argmin())
        if len(chain) > 1 and distance[last, chain[-2]] <= distance[last, nearest]:
            nearest = chain[-2]
        if distance[last, nearest] > stop:
            chain.pop()
            waiting[last] = False
            distance[:, last] = np.inf
        elif len(chain) > 1 and nearest == chain[-2]:
            del chain[-2:]
            total = weights[nearest] + weights[last]
            merged = (weights[nearest] * distance[nearest] + weights[last] * distance[last]) / total
            merged[[nearest, last]] = np.inf
            distance[nearest] = distance[:, nearest] = merged
            distance[:, last] = np.inf
            weights[nearest] = total
            waiting[last] = False
            group[group == last] = nearest
        else:
            chain.append(nearest)
    return group
