"""What a step is given: the same on any number of ranks and workers, and never a broken sample."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.shards import npy
from tests.training.packed import made
from tests.training.reading import NETWORK, config, first, joined, same
from training.data import DataError, Source, loader


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """22 samples in six shards."""
    return made(tmp_path_factory.mktemp("shards"), samples=22, network=NETWORK, windows=2)


# The sequence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks, workers", [(2, 0), (4, 0), (2, 2)])
def test_ranks_share_out_what_one_rank_would_read(place, ranks, workers):
    alone = first(8, place)
    shared = [first(8, place, rank=rank, ranks=ranks, workers=workers) for rank in range(ranks)]
    for step, whole in enumerate(alone):
        together = joined([rank[step] for rank in shared])
        assert together.places == (0, 1, 2, 3) and together.step == step
        assert same(together, whole)


def test_an_epoch_gives_every_sample_once_in_any_split(place):
    keys = [key for batch in first(11, place, batch=2) for key in batch.keys]
    assert len(keys) == 22 and set(keys) == set(Source(config(place), NETWORK).keys)
    again = [key for batch in first(2, place, batch=11) for key in batch.keys]
    assert again == keys, "how many samples a step has moves none of them"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_going_on_at_a_step_is_what_would_have_come(place, workers, ranks):
    undisturbed = [first(9, place, rank=rank, ranks=ranks) for rank in range(ranks)]
    for rank in range(ranks):
        later = first(4, place, rank=rank, ranks=ranks, step=5, workers=workers)
        assert all(same(one, other) for one, other in zip(later, undisturbed[rank][5:], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_own_state_goes_on_without_replay(place, workers):
    undisturbed = first(9, place)
    samples = loader(config(place, workers=workers), NETWORK, 1, batch=4)
    list(itertools.islice(samples, 4))
    state = pickle.loads(pickle.dumps(samples.state_dict()))
    samples.close()
    again = loader(config(place, workers=workers), NETWORK, 1, batch=4)
    again.load_state_dict(state)
    later = list(itertools.islice(again, 5))
    again.close()
    assert [batch.step for batch in later] == [4, 5, 6, 7, 8]
    assert all(same(one, other) for one, other in zip(later, undisturbed[4:], strict=True))


def test_a_loader_that_is_iterated_again_begins_at_its_step(place):
    samples = loader(config(place), NETWORK, 1, batch=4, step=3)
    assert same(next(iter(samples)), next(iter(samples))) and next(iter(samples)).step == 3


def test_step_a_million_is_there_at_once(place):
    samples = iter(loader(config(place), NETWORK, 1, batch=4, step=10**6))
    start = time.perf_counter()
    assert next(samples).step == 10**6
    assert time.perf_counter() - start < 1.0


def test_reading_leaves_the_generators_that_all_share_alone(place):
    state = torch.get_rng_state()
    first(3, place)
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_that_ranks_cannot_share_evenly_is_refused(place):
    with pytest.raises(DataError, match=r"batch=6 cannot be shared out evenly among 4 ranks"):
        loader(config(place), NETWORK, 0, batch=6, ranks=4)


def test_a_bucket_gives_the_same_batches(place, bucket):
    from curation.shards import Place

    remote = Place(f"{bucket}/stream")
    for path in Path(place).iterdir():
        remote.publish(path.name, path.read_bytes())
    here = first(3, place)
    for workers in (0, 1):
        there = first(3, f"{bucket}/stream", workers=workers)
        assert all(same(one, other) for one, other in zip(there, here, strict=True))


# Batches -------------------------------------------------------------------------------------------------------------


def test_a_batch_is_cut_and_moved_whole(place):
    (batch,) = first(1, place, batch=5)
    pieces = batch.split(2)
    assert [piece.keys for piece in pieces] == [batch.keys[:2], batch.keys[2:4], batch.keys[4:]]
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert same(dataclasses.replace(joined(pieces), step=batch.step), batch)
    low = batch.to("cpu", torch.bfloat16)
    assert low.latent_BFCHW.dtype == low.audio_BTNC.dtype == low.text_BSD.dtype == torch.bfloat16
    assert low.boxes_BT24.dtype == torch.float32 and low.text_mask_BS.dtype == torch.bool
    assert low.keys == batch.keys and same(batch.to("cpu"), batch)


# Broken samples ------------------------------------------------------------------------------------------------------


class Anything:
    def __reduce__(self):
        return (print, ("it ran",))


def pickled() -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([Anything()]), allow_pickle=True)
    return content.getvalue()


SPOILT = {
    "clip001-000000": ({"latent.npy": None}, "holds no latent.npy, as all others do"),
    "clip002-000000": ({"latent.npy": b"\x93NUMPY"}, "latent.npy: not a .npy file"),
    "clip003-000000": ({"latent.npy": npy(np.zeros((3, 4, 8, 13), np.float16))}, r"latent.npy is [3, 4, 8, 13]"),
    "clip004-000000": ({"audio.npy": pickled()}, "a pickled array"),
    "clip005-000000": ({"text.npy": npy(np.full((4, 24), np.nan, np.float16))}, "text.npy holds what is no number"),
    "clip006-000000": ({"face.npy": npy(np.zeros(16, np.float64))}, "face.npy is [16] of float64"),
    "clip007-000000": ({"../../x.npy": npy(np.zeros(1))}, "which is none of"),
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> str:
    """Twelve samples, seven of them broken, each in another way."""
    members = {key: change for key, (change, _) in SPOILT.items()}
    return made(tmp_path_factory.mktemp("spoilt"), samples=12, network=NETWORK, spoilt=members)


def test_broken_samples_are_passed_over_and_named(spoilt):
    samples = loader(config(spoilt), NETWORK, 1, batch=4)
    keys = [key for batch in itertools.islice(samples, 9) for key in batch.keys]
    assert not set(keys) & set(SPOILT) and set(keys) == {f"clip{n:03d}-000000" for n in (0, 8, 9, 10, 11)}
    assert set(samples.skipped) == set(SPOILT)
    for key, (_, complaint) in SPOILT.items():
        assert complaint in samples.skipped[key]
    assert all(len(batch) == 4 for batch in itertools.islice(loader(config(spoilt), NETWORK, 1, batch=4), 3))


def test_what_stands_in_is_the_same_on_all_ranks_and_after_going_on(spoilt):
    alone = first(9, spoilt)
    shared = [first(9, spoilt, rank=rank, ranks=2, workers=rank) for rank in (0, 1)]
    for step in range(9):
        assert same(joined([shared[0][step], shared[1][step]]), alone[step])
    assert all(same(one, other) for one, other in zip(first(4, spoilt, step=5), alone[5:], strict=True))


def test_sound_samples_stay_where_they_are_when_others_break(spoilt, tmp_path):
    whole = made(tmp_path, samples=12, network=NETWORK)
    for healthy, damaged in zip(first(9, whole), first(9, spoilt), strict=True):
        for good, found in zip(healthy.keys, damaged.keys, strict=True):
            assert found == good or good in SPOILT


def test_a_shard_that_is_missing_at_the_start_is_refused_unless_told_otherwise(tmp_path):
    place = made(tmp_path, samples=12, network=NETWORK)
    tar = tmp_path / "train-000001.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    with pytest.raises(DataError, match=r"1 of 3 shards are not as packed: train-000001.tar has \d+ bytes, packed"):
        loader(config(place), NETWORK, 1, batch=4)
    samples = loader(config(place, incomplete=True), NETWORK, 1, batch=4)
    keys = {key for batch in itertools.islice(samples, 9) for key in batch.keys}
    assert {f"clip{n:03d}-000000" for n in (0, 1, 2, 3, 8, 9, 10, 11)} <= keys
    assert set(samples.skipped.values()) == {"train-000001.tar ends before the sample does"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_while_training_is_passed_over(tmp_path, workers):
    place = made(tmp_path, samples=12, network=NETWORK)
    samples = loader(config(place, workers=workers, prefetch=1), NETWORK, 1, batch=1)
    steps = iter(samples)
    next(steps)
    (tmp_path / "train-000002.tar").rename(tmp_path / "gone")
    os.truncate(tmp_path / "gone", 0)  # even for who has it open
    for _ in range(24):
        next(steps)
    samples.close()
    assert samples.skipped and {why.split(" ")[0] for why in samples.skipped.values()} == {"train-000002.tar"}


@pytest.mark.parametrize("workers", [0, 1])
def test_when_all_shards_vanish_training_stops_with_a_word(tmp_path, workers):
    place = made(tmp_path, samples=12, network=NETWORK)
    samples = loader(config(place, workers=workers, prefetch=1), NETWORK, 1, batch=1)
    steps = iter(samples)
    next(steps)
    for shard in tmp_path.glob("*.tar"):
        os.truncate(shard, 0)
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"a sample is broken, and all 20 that could stand in for it: clip0.* ends before"
    ):
        for _ in range(24):
            next(steps)
    assert time.monotonic() - start < 10
    samples.close()


def test_a_worker_that_dies_is_an_error_and_no_wait(place):
    samples = loader(config(place, workers=1, prefetch=1), NETWORK, 1, batch=1)
    steps = iter(samples)
    next(steps)
    os.kill(samples.stateful._iterator._workers[0].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"data.workers=1: DataLoader worker .*fewer data.workers"):
        for _ in range(50):
            next(steps)
    assert time.monotonic() - start < 15
    samples.close()


def test_a_stop_that_is_sent_to_all_processes_of_a_job_does_not_end_those_that_read(place):
    samples = loader(config(place, workers=2), NETWORK, 1, batch=4)
    batches = iter(samples)
    found = [next(batches)]
    for worker in samples.stateful._iterator._workers:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    found += list(itertools.islice(batches, 4))
    samples.close()
    assert all(map(same, found, first(5, place))), "the same batches as without a signal"
