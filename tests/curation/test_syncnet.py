"""SyncNet gives the published numbers: those of the package syncnet-python, of the definition, of closed forms."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.fft import dct
from scipy.signal import medfilt

from curation.backends.syncnet import LEAST, SIDE, SyncNet, SyncNetError, crop, crops, places
from curation.measures.sync import REACH, SyncScore, distances, mfcc, score
from model import media, weights
from model.encoders.detect import CenterFace
from tests.curation import syncnet_package
from tests.curation.syncnet_package import FPS, RATE, Published, lively

COUNT = 45  # pictures of the man
SAMPLES = RATE // FPS  # of one picture


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def man() -> tuple[np.ndarray, np.ndarray]:
    """2.4 s of a talking man: the crops of his face, and his sound, which is 16 bits deep."""
    film = weights.path("psychopy-jwpIntro")
    span = media.Span(Fraction(1), Fraction(1) + Fraction(COUNT, FPS))
    find = CenterFace(weights.path("centerface"), (320,))
    frames = list(media.frames(film, span, Fraction(FPS)))
    boxes = []
    for image in frames:
        face = find(image)[0]
        boxes.append([face.left, face.top, face.right, face.bottom])
    height, width = frames[0].shape[:2]
    sound = np.rint(media.audio(film, span, RATE) * 32768) / 32768
    return np.stack(list(crops(frames, np.array(boxes) * [width, height, width, height]))), sound.astype(np.float32)


@pytest.fixture(scope="module")
def published(man) -> Published:
    return lively(man[0][:20], mfcc(man[1]))


@pytest.fixture(scope="module")
def model(published, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "syncnet_v2.model"
    torch.save(published.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def syncnet(model) -> SyncNet:
    return SyncNet(model)


# --- the network ------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_syncnet_python(syncnet, model, man, tmp_path) -> None:
    try:
        python = syncnet_package.environment(weights.cache_folder())
    except syncnet_package.NotToBeHad as reason:
        pytest.skip(str(reason))
    samples = np.rint(man[1] * 32768).astype(np.int16)
    theirs = syncnet_package.evaluate(python, tmp_path / "job", model, man[0], samples)
    ours = syncnet(*man)
    np.testing.assert_allclose(mfcc(man[1]), theirs.mfcc, atol=1e-9)
    assert ours.offset == theirs.offset
    assert ours.distance == pytest.approx(float(theirs.distance), abs=1e-4)
    assert ours.confidence == pytest.approx(float(theirs.confidence), abs=1e-3)
    assert np.ptp(theirs.distances) > 0.1  # or else any offset would do


def test_the_features_are_those_of_the_published_layers_window_by_window(syncnet, published, man) -> None:
    pictures, sound = man[0][:17], man[1][: 17 * SAMPLES]
    with torch.no_grad():
        lips = published.lips(pictures).numpy()
        voice = published.voice(mfcc(sound), len(lips)).numpy()
    expected = score(distances(lips, voice))
    ours = syncnet(pictures, sound)
    assert ours.offset == expected.offset
    assert [ours.distance, ours.confidence] == pytest.approx([expected.distance, expected.confidence], abs=1e-4)


def test_the_score_does_not_depend_on_the_batch(syncnet, model, man) -> None:
    pictures, sound = man[0][:14], man[1][: 14 * SAMPLES]
    whole = syncnet(pictures, sound)
    for batch in (1, 5):
        other = SyncNet(model, batch=batch)(iter(pictures), sound)
        assert other.offset == whole.offset
        assert [other.distance, other.confidence] == pytest.approx([whole.distance, whole.confidence], abs=1e-5)
    assert syncnet(pictures, sound) == whole


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_gpu_gives_the_numbers_of_the_cpu(syncnet, model, man) -> None:
    theirs, ours = SyncNet(model, device="cuda", batch=64)(*man), syncnet(*man)
    assert theirs.offset == ours.offset
    assert [theirs.distance, theirs.confidence] == pytest.approx([ours.distance, ours.confidence], abs=1e-4)


def test_the_shorter_of_picture_and_sound_counts(syncnet, man) -> None:
    pictures, sound = man[0][:12], man[1][: 12 * SAMPLES]
    whole = syncnet(pictures, sound)
    assert syncnet(man[0][:20], sound) == syncnet(man[0][:20], man[1][: 13 * SAMPLES - 1]) == whole
    assert syncnet(pictures, man[1][: 30 * SAMPLES]) == whole


@pytest.mark.parametrize(("pictures", "seconds"), [(5, 3), (0, 3), (COUNT, 0.239), (COUNT, 0), (COUNT, 0.01)])
def test_what_is_shorter_than_a_window_has_no_score(syncnet, man, pictures, seconds) -> None:
    assert syncnet(man[0][:pictures], man[1][: round(seconds * RATE)]) is None


def test_six_pictures_have_a_score(syncnet, man) -> None:
    assert isinstance(syncnet(man[0][:6], man[1][: 6 * SAMPLES]), SyncScore)


def test_sound_that_is_k_pictures_late_gives_minus_k(tmp_path) -> None:
    """A network that feels nothing but how bright the middle picture and how loud the sound is then."""
    network = Published().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        for layer in (layer for stream in network.children() for layer in stream):
            if isinstance(layer, torch.nn.Linear):
                layer.weight[0, 0] = 1
            elif isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.weight[0] = 1
            elif hasattr(layer, "weight"):
                middle = [size // 2 for size in layer.kernel_size]
                layer.weight[0, 0][(0, 2) if layer.kernel_size == (5, 4) else tuple(middle)] = 1
        network.netfcaud[3].weight[0, 0] = 10  # ten shades to a unit of loudness
        network.netfcaud[3].bias[0] = network.netfclip[3].bias[0] = -150  # what nothing at all is compared with
    torch.save(network.state_dict(), tmp_path / "felt.model")
    felt = SyncNet(tmp_path / "felt.model")

    length, spare = 30, 10
    generator = np.random.default_rng(1)
    loudness = generator.uniform(10, 18, length + 2 * spare)  # log of a sound frame's energy in 16-bit samples
    noise = generator.normal(size=(len(loudness), SAMPLES)) * np.exp(loudness / 2)[:, None]
    sound = (noise.ravel() / np.sqrt(200) / 32768).astype(np.float32)
    energy = mfcc(sound)[:, 0]
    # The pooling makes of the middle picture's sound, and of the next one's begin, the loudest of seven frames.
    bright = [round(10 * energy[4 * time : 4 * time + 7].max()) for time in range(spare, spare + length)]
    pictures = [np.full((SIDE, SIDE, 3), shade, np.uint8) for shade in bright]

    def offset(late: int) -> int:
        return felt(pictures, sound[(spare - late) * SAMPLES :][: length * SAMPLES]).offset

    assert [offset(late) for late in (-7, 0, 4)] == [7, 0, -4]


# --- its file ---------------------------------------------------------------------------------------------


def test_counters_and_the_file_s_format_do_not_matter(model, published, syncnet, man, tmp_path) -> None:
    state = published.state_dict()
    assert len(state) == 102
    bare = OrderedDict((name, weight) for name, weight in state.items() if "num_batches" not in name)
    assert len(bare) == 88
    torch.save(bare, tmp_path / "bare.model", _use_new_zipfile_serialization=False)
    bare._metadata = state._metadata
    torch.save(bare, tmp_path / "dated.model")
    clip = man[0][:8], man[1][: 8 * SAMPLES]
    assert SyncNet(tmp_path / "bare.model")(*clip) == SyncNet(tmp_path / "dated.model")(*clip) == syncnet(*clip)


class Mine:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_file_that_holds_code_is_refused_and_the_code_not_run(tmp_path) -> None:
    torch.save({"netcnnaud.0.weight": Mine(tmp_path / "ran")}, tmp_path / "bad.model")
    with pytest.raises(SyncNetError, match=r"bad.model is no dictionary of weights .* take the file syncnet_v2.model"):
        SyncNet(tmp_path / "bad.model")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_syncnet_s_is_refused_by_what_is_wrong(published, tmp_path) -> None:
    file = tmp_path / "other.model"
    with pytest.raises(SyncNetError, match=r"other.model: No such file"):
        SyncNet(file)
    state = published.state_dict()
    torch.save(state, file)
    cut_short = [file.read_bytes()[:length] for length in (1000, 1 << 20)]
    torch.save(state, file, _use_new_zipfile_serialization=False)
    cut_short += [file.read_bytes()[:length] for length in (10, 1000, 1 << 20)]
    for content in (b"", b"no checkpoint", b"PK\x03\x04 nor an archive", *cut_short):
        file.write_bytes(content)
        with pytest.raises(SyncNetError, match=r"other.model is no dictionary of weights"):
            SyncNet(file)
    lacking = {name: weight for name, weight in state.items() if name != "netfclip.3.bias"}
    for content, said in [
        ([1, 2], "something else"),
        ({"state_dict": state}, "something else"),
        ({}, "lacks netcnnaud.0.weight"),
        (lacking, "lacks netfclip.3.bias"),
        (state | {"netcnnlip.30.weight": torch.zeros(1)}, "has netcnnlip.30.weight"),
        (state | {"netfclip.3.weight": torch.zeros(256, 512)}, r"netfclip.3.weight.*256"),
    ]:
        torch.save(content, file)
        with pytest.raises(SyncNetError, match=said):
            SyncNet(file)


# --- the measure ------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    lips, voice = (generator.normal(size=(23, 1024)).astype(np.float32) for _ in range(2))
    zeros = torch.zeros(REACH, 1024)
    padded = torch.cat([zeros, torch.from_numpy(voice), zeros])
    rows = [
        torch.nn.functional.pairwise_distance(torch.from_numpy(lip)[None], padded[time : time + 31])
        for time, lip in enumerate(lips)
    ]
    expected = torch.stack(rows).mean(0).numpy()
    np.testing.assert_allclose(distances(lips, voice), expected, rtol=1e-6)


@pytest.mark.parametrize("late", [-15, -6, 0, 1, 15])
def test_a_stream_against_itself_shifted_is_nearest_at_the_shift(late) -> None:
    stream = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    lips, voice = stream[20:80], stream[20 - late : 80 - late]
    said = score(distances(lips, voice))
    assert said.offset == -late
    # Where they overlap they are equal; the rest is compared with zeros.
    assert said.distance == pytest.approx(abs(late) / 60 * 8, rel=0.1, abs=1e-4)
    assert said.confidence == pytest.approx(np.median(distances(lips, voice)) - said.distance)


def test_cepstra_are_those_of_the_textbook(man) -> None:
    """As python_speech_features 0.6 has them, written out step by step."""
    samples = man[1][:1000].astype(np.float64) * 32768
    emphasised = np.append(samples[0], samples[1:] - 0.97 * samples[:-1])
    points = [700 * (10 ** (mel / 2595) - 1) for mel in np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 28)]
    bins = [int(513 * hertz / 16000) for hertz in points]
    rows = []
    for start in range(0, 641, 160):  # the fifth frame is incomplete
        frame = np.zeros(400)
        frame[: len(emphasised[start : start + 400])] = emphasised[start : start + 400]
        power = np.abs(np.fft.rfft(frame, 512)) ** 2 / 512
        energies = np.zeros(26)
        for band in range(26):
            left, centre, right = bins[band : band + 3]
            for place in range(left, centre):
                energies[band] += power[place] * (place - left) / (centre - left)
            for place in range(centre, right):
                energies[band] += power[place] * (right - place) / (right - centre)
        row = dct(np.log(energies), type=2, norm="ortho")[:13] * (1 + 11 * np.sin(np.pi * np.arange(13) / 22))
        row[0] = np.log(power.sum())
        rows.append(row)
    np.testing.assert_allclose(mfcc(man[1][:1000]), rows, rtol=1e-10)


def test_sound_is_heard_as_if_it_were_16_bits_deep() -> None:
    sound = np.random.default_rng(0).integers(-20, 20, RATE) / 32768
    np.testing.assert_array_equal(mfcc(sound + 0.4 / 32768), mfcc(sound))
    loud = np.where(np.arange(RATE) // 40 % 2, 1.7, -1.7)
    np.testing.assert_array_equal(mfcc(loud), mfcc(np.clip(loud, -1, 1)))
    silent = mfcc(np.zeros(RATE, np.float32))
    assert silent.shape == (99, 13)
    np.testing.assert_allclose(silent[:, 0], np.log(np.finfo(float).eps))
    np.testing.assert_allclose(silent[:, 1:], 0, atol=1e-9)


# --- crops ------------------------------------------------------------------------------------------------


def as_the_authors(frames: np.ndarray, boxes_T4: np.ndarray) -> Iterator[np.ndarray]:
    """Their procedure: the whole frame gets a grey margin, and the square is cut out of that."""
    half = medfilt(np.maximum(boxes_T4[:, 3] - boxes_T4[:, 1], boxes_T4[:, 2] - boxes_T4[:, 0]) / 2, 13)
    x, y = (medfilt((boxes_T4[:, side] + boxes_T4[:, side + 2]) / 2, 13) for side in (0, 1))
    for image, s, mx, my in zip(frames, half, x, y, strict=True):
        pad = int(s * 1.8)
        wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=110)
        rows = slice(int(my + pad - s), int(my + pad + s * 1.8))
        yield cv2.resize(wide[rows, int(mx + pad - s * 1.4) : int(mx + pad + s * 1.4)], (224, 224))


@pytest.fixture(scope="module")
def walk() -> tuple[np.ndarray, np.ndarray]:
    """40 frames of noise, and a face that wanders across them and over every edge."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (40, 90, 120, 3), np.uint8)
    centre = np.stack([np.linspace(0, 120, 40), 45 + 45 * np.cos(np.arange(40) / 5)], axis=1)
    half = generator.uniform(15, 40, (40, 2))
    return frames, np.concatenate([centre - half, centre + half], axis=1)


def test_crops_are_cut_as_the_authors_cut_them(walk) -> None:
    ours = list(crops(*walk))
    assert len(ours) == 40
    np.testing.assert_array_equal(ours, list(as_the_authors(*walk)))


def test_a_face_that_is_lost_for_a_while_moves_evenly() -> None:
    moving = np.arange(30.0)[:, None] * [3, 1, 3, 1] + [10, 20, 50, 80]
    gappy = moving.copy()
    gappy[8:14] = gappy[20] = np.nan
    np.testing.assert_allclose(places(gappy), places(moving), rtol=1e-12)
    gappy[:4] = gappy[25:] = np.nan
    moving[:4], moving[25:] = moving[4], moving[24]
    np.testing.assert_allclose(places(gappy), places(moving), rtol=1e-12)


def test_frames_are_taken_one_by_one(walk) -> None:
    taken = []

    def film() -> Iterator[np.ndarray]:
        for number, image in enumerate(walk[0]):
            taken.append(number)
            yield image

    cut = crops(film(), walk[1])
    next(cut)
    assert taken == [0]


def test_without_a_track_there_are_no_crops_and_no_score(walk, syncnet) -> None:
    frames, boxes = walk
    assert list(crops(frames, boxes[: LEAST - 1])) == []
    assert len(list(crops(frames, boxes[:LEAST]))) == LEAST
    assert list(crops(frames, np.full((40, 4), np.nan))) == []
    assert syncnet(crops(frames, np.full((40, 4), np.nan)), np.zeros(RATE, np.float32)) is None


def test_a_face_beyond_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no face to cut out at \(900, 50\), 60 pixels high, of 120x90"):
        crop(np.zeros((90, 120, 3), np.uint8), 30, 900, 50)
