"""What a sample becomes in a step: drawn, dropped and masked by name, of windows that begin where they should."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.shards import npy
from model import codecs, media, motion
from model.codecs import frames_for
from model.config import MotionConfig, preset
from model.portrait import build
from model.sampling import Subject, face_alone, motion_condition, signed
from model.settings import SettingsError
from tests.model.networks import small
from tests.training.packed import FACES, grey, made
from tests.training.reading import NETWORK, QUIET, alter, config, first, joined, same, stored
from training import draws
from training.data import DataConfig, DataError, Source, loader, validation
from training.samples import signed_video


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """22 samples in six shards."""
    return made(tmp_path_factory.mktemp("shards"), samples=22, network=NETWORK, windows=2)


# A sample ------------------------------------------------------------------------------------------------------------


def test_tensors_are_what_is_stored(place):
    for batch in first(3, place, **QUIET):
        for row, key in enumerate(batch.keys):
            arrays = stored(place, key)
            text = arrays["text.npy"]
            assert (batch.latent_BFCHW[row].numpy() == arrays["latent.npy"]).all()
            assert (batch.motion_BNCHW[row].numpy() == arrays["motion.npy"]).all()
            assert (batch.face_BC[row].numpy() == arrays["face.npy"]).all()
            assert (batch.audio_BTNC[row].numpy() == arrays["audio.npy"]).all()
            assert any((batch.reference_BCHW[row].numpy() == one).all() for one in arrays["reference.npy"])
            assert (batch.text_BSD[row, : len(text)].numpy() == text).all() and not batch.text_BSD[
                row, len(text) :
            ].any()
            assert batch.text_mask_BS[row].tolist() == [place < len(text) for place in range(NETWORK.text_length)]
            assert (batch.boxes_BT24[row].numpy() == arrays["mask.npy"]).all()
        kinds = {value.dtype for value in vars(batch).values() if isinstance(value, torch.Tensor)}
        assert kinds == {torch.float32, torch.bool} and batch.dropped == (frozenset(),) * 4


def test_a_text_too_long_is_cut(tmp_path):
    place = made(tmp_path, samples=2, network=NETWORK, tokens=NETWORK.text_length + 3)
    (batch,) = first(1, place, batch=2, **QUIET)
    assert batch.text_BSD.shape == (2, NETWORK.text_length, NETWORK.text_dim) and batch.text_mask_BS.all()


def test_every_reference_and_every_face_is_drawn_equally_often(tmp_path):
    place = made(tmp_path, samples=1, network=NETWORK, faces=3)
    arrays = stored(place, "clip000-000000")
    drawn: dict[str, Counter[int]] = {"reference": Counter(), "face": Counter()}
    together = Counter()
    for batch in first(600, place, batch=1, **QUIET):
        reference = [(batch.reference_BCHW[0].numpy() == one).all() for one in arrays["reference.npy"]].index(True)
        face = [(batch.face_BC[0].numpy() == one).all() for one in arrays["face.npy"]].index(True)
        drawn["reference"][reference] += 1
        drawn["face"][face] += 1
        together[reference, face] += 1
    assert set(drawn["reference"]) == {0, 1, 2, 3} and set(drawn["face"]) == {0, 1, 2}
    assert sum((count - 50) ** 2 / 50 for count in together.values()) < 31.3, "11 degrees of freedom, p = 0.001"


def test_as_many_samples_go_without_a_condition_as_asked(place):
    shares = {"drop_text": 0.3, "drop_audio": 0.2, "drop_reference": 0.1, "drop_face": 0.15, "drop_motion": 0.25}
    batches = first(150, place, batch=8, mask_motion=0.0, **shares)
    dropped = Counter(name for batch in batches for names in batch.dropped for name in names)
    for setting, share in shares.items():
        assert dropped[setting.removeprefix("drop_")] / 1200 == pytest.approx(share, abs=4 * (share / 1200) ** 0.5)
    pairs = Counter(names >= {"text", "motion"} for batch in batches for names in batch.dropped)
    assert pairs[True] / 1200 == pytest.approx(0.3 * 0.25, abs=0.03), "each is drawn for itself"
    tensors = {"audio": "audio_BTNC", "reference": "reference_BCHW", "face": "face_BC", "motion": "motion_BNCHW"}
    for batch in batches:
        for row, names in enumerate(batch.dropped):
            for name, tensor in tensors.items():
                assert bool(getattr(batch, tensor)[row].any()) == (name not in names)


def test_a_dropped_text_is_what_sampling_has_for_nothing(place, tmp_path):
    (batch,) = first(1, place, drop_text=1.0)
    nothing = torch.from_numpy(np.load(Path(place, "nothing.npy"))).float()
    assert torch.equal(batch.text_BSD[:, : len(nothing)], nothing.expand(4, -1, -1))
    assert (batch.text_mask_BS.sum(1) == len(nothing)).all() and not batch.text_BSD[:, len(nothing) :].any()
    (batch,) = first(1, place, drop_text=1.0, nothing="zeros")
    assert not batch.text_BSD.any() and (batch.text_mask_BS.sum(1) >= 4).all(), "as long as the text would have been"


def test_without_a_file_for_it_nothing_is_the_empty_prompt_of_the_text_encoder(tmp_path):
    from model.encoders import text

    network = small(text_dim=384)
    place = made(tmp_path, samples=2, network=network, nothing=False)
    (batch,) = first(1, place, batch=2, network=network, drop_text=1.0)
    empty = torch.from_numpy(text.load("minilm").encode(""))
    assert torch.equal(batch.text_BSD[0, : len(empty)], empty) and batch.text_mask_BS[0].sum() == len(empty)
    alter(place, '"text": "minilm"', '"text": "t5"')
    with pytest.raises(DataError, match=r"what stands for a dropped text is not known: .* data.nothing=zeros"):
        Source(config(place), network)
    Source(config(place, drop_text=0.0), network), Source(config(place, nothing="zeros"), network)


def test_texts_that_fill_their_room_have_no_mask_whatever_is_dropped(tmp_path):
    room = NETWORK.text_length
    for filled in (room, room + 3):  # what is longer is cut
        place = made(tmp_path / str(filled), samples=4, network=NETWORK, filled=filled)
        for asked in ({"drop_text": 0.0}, {"drop_text": 0.5}, {"drop_text": 1.0, "nothing": "zeros"}):
            batches = first(4, place, **asked)
            assert all(batch.text_mask_BS is None and batch.text_BSD.shape[1] == room for batch in batches)
        source = Source(config(place), NETWORK)
        whole = source.batch(source.keys)
        assert whole.text_mask_BS is None and whole.to("cpu", torch.bfloat16).split(3)[1].text_mask_BS is None
        text = stored(place, source.keys[1])["text.npy"][:room]
        assert (whole.text_BSD[1].numpy() == text).all()


def test_one_text_that_may_be_padded_gives_every_sample_of_a_run_a_mask(place, tmp_path):
    room = NETWORK.text_length
    short = made(tmp_path / "short", samples=4, network=NETWORK, filled=room - 1)  # all alike, and all too short
    hollow = made(tmp_path / "hollow", samples=4, network=NETWORK, filled=room)
    Path(hollow, "nothing.npy").write_bytes(Path(place, "nothing.npy").read_bytes())
    for shards, real in ((short, room - 1), (hollow, room)):
        batches = first(4, shards, drop_text=0.0) if shards == short else first(4, shards, drop_text=1e-9)
        assert all((batch.text_mask_BS.sum(1) == real).all() for batch in batches)
    assert "nothing.npy is shorter than the texts" in Source(config(hollow), NETWORK).remarks()[0]
    assert not Source(config(hollow, drop_text=0.0), NETWORK).prepare.masks_text


def test_a_text_that_is_not_as_long_as_the_index_says_is_a_broken_sample(tmp_path):
    room = NETWORK.text_length
    short = npy(np.zeros((room - 1, NETWORK.text_dim), np.float16))
    place = made(tmp_path, samples=4, network=NETWORK, filled=room, spoilt={"clip001-000000": {"text.npy": short}})
    samples = loader(config(place), NETWORK, 0, batch=4)
    assert next(iter(samples)).text_mask_BS is None
    assert "text.npy is [9, 24]" in samples.skipped["clip001-000000"]


def test_what_stands_for_nothing_is_what_was_packed(tmp_path):
    place = made(tmp_path, samples=2, network=NETWORK)
    content = Path(place, "nothing.npy").read_bytes()
    facts = {"file": "nothing.npy", "sha256": hashlib.sha256(content).hexdigest()}
    alter(place, '"version"', f'"nothing": {json.dumps(facts)},\n"version"')
    before = Source(config(place), NETWORK).version
    Path(place, "nothing.npy").write_bytes(content[:-2] + b"\0\0")
    with pytest.raises(DataError, match=r"nothing\.npy is not as it was packed; copy it again"):
        Source(config(place), NETWORK)
    Path(place, "nothing.npy").unlink()
    with pytest.raises(DataError, match=r"nothing\.npy is not there; copy it again"):
        Source(config(place), NETWORK)
    Source(config(place, nothing="zeros"), NETWORK)
    alter(place, facts["sha256"], "0" * 64)
    assert Source(config(place, nothing="zeros"), NETWORK).version != before


def test_motion_is_masked_position_by_position(place):
    plain, masked = first(40, place, **QUIET), first(40, place, **{**QUIET, "mask_motion": 0.25})
    out = torch.cat([(batch.motion_BNCHW == 0).all(dim=2) for batch in masked])
    assert out.float().mean() == pytest.approx(0.25, abs=0.01)
    for before, after in zip(plain, masked, strict=True):
        kept = (after.motion_BNCHW != 0).any(dim=2, keepdim=True)
        assert torch.equal(after.motion_BNCHW, before.motion_BNCHW * kept)
    assert not torch.equal(out[0], out[1]), "another mask for another sample"


def test_what_is_drawn_changes_from_epoch_to_epoch(place):
    batches = first(22, place, batch=2, mask_motion=0.5, drop_motion=0.0)
    twice: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for row, key in enumerate(batch.keys):
            twice.setdefault(key, []).append(batch.motion_BNCHW[row])
    assert all(len(masks) == 2 and not torch.equal(*masks) for masks in twice.values())


def test_validation_samples_are_always_the_same_and_whole(place):
    everything = dict.fromkeys(QUIET, 1.0)
    source = Source(config(place, **everything), NETWORK, seed=4)
    keys = source.keys[::5]
    batch = source.batch(keys)
    assert batch.keys == tuple(keys) and batch.dropped == (frozenset(),) * len(keys)
    assert same(batch, Source(config(place), NETWORK, seed=4).batch(keys))
    assert (batch.motion_BNCHW[0].numpy() == stored(place, keys[0])["motion.npy"]).all()
    with pytest.raises(DataError, match="there is no sample clip999-000000"):
        source.batch(["clip999-000000"])


def test_validation_takes_its_own_split_where_there_is_one(place, tmp_path):
    split = made(tmp_path, samples=2, network=NETWORK, validation=3)
    assert len(validation(config(split), NETWORK)) == 3
    assert len(validation(config(place), NETWORK)) == 22


def test_a_version_names_what_is_in_the_shards_wherever_they_lie(tmp_path):
    one, copy, other = (
        Source(config(made(tmp_path / name, samples=3, network=NETWORK, seed=seed)), NETWORK).version
        for name, seed in (("one", 0), ("copy", 0), ("other", 1))
    )
    assert one == copy != other


# Windows -------------------------------------------------------------------------------------------------------------


def test_a_shorter_window_is_the_stored_ones_beginning(tmp_path):
    network = dataclasses.replace(NETWORK, latent_frames=3)
    place = made(tmp_path, samples=2, network=network, latent_frames=6, margin=4, motion_frames=4)
    (batch,) = first(1, place, batch=1, network=network, **QUIET)
    arrays = stored(place, batch.keys[0])
    assert (batch.latent_BFCHW[0].numpy() == arrays["latent.npy"][:3]).all()
    assert (batch.motion_BNCHW[0].numpy() == arrays["motion.npy"][2:]).all(), "the frames next to the window"
    window = network.audio.window
    assert (batch.audio_BTNC[0].numpy() == arrays["audio.npy"][4 - window : 4 + 9 + window]).all()
    assert (batch.boxes_BT24[0].numpy() == arrays["mask.npy"][:9]).all()


def test_a_shorter_window_of_latents_is_what_the_codec_makes_of_its_frames():
    codec = codecs.load("dct")
    frames = torch.rand(21, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(codec.encode(frames)[:3], codec.encode(frames[:9]))


FILMED = small(latent_channels=16, condition_channels=16)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> str:
    """Three samples with videos of 2 + 17 frames, each frame of another grey; the network takes 9."""
    contents = ("video", "audio", "text", "face", "reference", "mask")
    return made(tmp_path_factory.mktemp("films"), samples=3, network=FILMED, latent_frames=5, contents=contents)


def test_windows_encoded_on_the_fly_begin_anywhere_in_the_stored_one(films):
    codec, window = codecs.load("dct"), FILMED.audio.window
    starts = Counter()
    for batch in first(60, films, batch=1, network=FILMED, latents="encode", **QUIET):
        levels = ((codec.decode(batch.latent_BFCHW[0]) + 1) * 127.5).mean(dim=(1, 2, 3)).numpy()
        start = round((float(levels[0]) - grey(0)) / 4) - 2
        expected = [grey(2 + start + frame) for frame in range(frames_for(FILMED.latent_frames))]
        assert levels == pytest.approx(expected, abs=1.5)
        before = ((codec.decode(batch.motion_BNCHW[0][:, None]) + 1) * 127.5).mean(dim=(1, 2, 3, 4)).numpy()
        assert before == pytest.approx([grey(start), grey(start + 1)], abs=1.5), "the two frames before the window"
        arrays = stored(films, batch.keys[0], FILMED, latents="encode")
        assert (batch.audio_BTNC[0].numpy() == arrays["audio.npy"][start : start + 9 + 2 * window]).all()
        assert (batch.boxes_BT24[0].numpy() == arrays["mask.npy"][start : start + 9]).all()
        starts[start] += 1
    assert set(starts) <= set(range(9)) and len(starts) >= 7 and {0, 8} <= set(starts)


def test_windows_encoded_on_the_fly_are_drawn_by_name(films):
    asked = {"network": FILMED, "latents": "encode", "batch": 2}
    alone = first(3, films, **asked)
    shared = [first(3, films, rank=rank, ranks=2, workers=1, **asked) for rank in (0, 1)]
    assert all(same(joined([shared[0][step], shared[1][step]]), alone[step]) for step in range(3))


def test_a_window_as_long_as_the_stored_one_begins_where_that_does(films):
    network = dataclasses.replace(FILMED, latent_frames=5)
    source = Source(config(films, latents="encode"), network)
    for batch in first(4, films, batch=1, network=network, latents="encode", **QUIET):
        assert torch.equal(batch.latent_BFCHW, source.batch(batch.keys).latent_BFCHW)


RELEASED = dataclasses.replace(FILMED, compat="hallo3", motion=MotionConfig(frames=4))


def test_pictures_as_released_are_what_sampling_makes_of_the_same(films):
    codec, portrait = codecs.load("dct"), build(RELEASED)
    source = Source(config(films, latents="encode"), RELEASED)
    in_steps = first(4, films, batch=1, network=RELEASED, latents="encode", **{**QUIET, "mask_motion": 0.1})
    for batch in (*in_steps, source.batch(source.keys[:1])):
        key, fixed = batch.keys[0], batch not in in_steps
        names, seed = ((key,), source.seed) if fixed else ((key, batch.step), 1)
        levels = ((codec.decode(batch.latent_BFCHW[0]) + 1) * 127.5).mean(dim=(1, 2, 3))
        begin = round((float(levels[0]) - grey(0)) / 4)  # which of the stored frames the window begins with
        shown = signed_video(memoryview(source.video(key)), begin + 4)
        sound_TNC = stored(films, key, RELEASED, latents="encode")["audio.npy"]
        heard = slice(begin - 2, begin - 2 + 9 + 2 * RELEASED.audio.window)  # two frames are stored before the window
        assert (batch.audio_BTNC[0].numpy() == sound_TNC[heard]).all()
        drawn = draws.whole(seed, 4, "reference", *names)
        stored_CHW = torch.from_numpy(stored(films, key, RELEASED, latents="encode")["reference.npy"][drawn]).float()
        picture_CHW = codec.decode(stored_CHW[None])[0].clamp(-1, 1)
        alone_CHW = face_alone(picture_CHW, FACES[drawn])
        assert torch.equal(batch.reference_BCHW[0], codec.encode(alone_CHW[None])[0])
        person = Subject(picture_CHW, batch.reference_BCHW[0], batch.text_BSD[0], batch.text_BSD[0])
        greyed = draws.generator(seed, "motion mask", *names)
        sampled_FCHW = motion_condition(portrait, codec, person, shown[begin:], RELEASED.latent_frames, greyed)
        assert batch.motion_BNCHW.shape[1] == 2, "a picture and four frames"
        trained_FCHW = motion.condition(batch.motion_BNCHW[0], RELEASED.latent_frames)
        assert torch.equal(trained_FCHW, sampled_FCHW)


def test_motion_as_released_that_cannot_be_had_is_told(films, place):
    two = dataclasses.replace(RELEASED, motion=MotionConfig(frames=2))
    with pytest.raises(DataError, match=r"2 motion frames as one clip, which codec=dct cannot: .*motion\.frames=4"):
        Source(config(films, latents="encode"), two)
    said = Source(config(films, latents="encode"), RELEASED).remarks()
    assert said == [
        "compat=hallo3 is sampled with 0.1 of the motion's pixels put out; trained with data.mask_motion=0.25"
    ]
    (stored_alone,) = Source(config(place), small(compat="hallo3")).remarks()
    assert "whole references: data.latents=encode trains on what sampling gives" in stored_alone


def test_the_stored_video_is_handed_out_as_it_is(films, place):
    source = Source(config(films, latents="encode"), FILMED)
    content = source.video(source.keys[1])
    assert content == bytes(source.reader.sample(1)["mp4"]) and content[4:8] == b"ftyp"
    assert Source(config(place), NETWORK).video("clip000-000000") is None


# Shards and network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, complaint",
    [
        (
            {"latent_height": 16},
            r"latent.npy is .*latent_height wants 16 on axis 2: network.changes=\[latent_height=8\]",
        ),
        ({"latent_frames": 4}, r"latent_frames wants at least 4 on axis 0: network.changes=\[latent_frames=3\]"),
        ({"text_dim": 48}, r"text.npy is \[None, 24\]; .*network.changes=\[text_dim=24\]"),
        ({"face_dim": 512}, r"face.npy is \[16\]; .*network.changes=\[face_dim=16\]"),
        ({"audio.layers": 5}, r"audio.npy .*network.changes=\[audio.layers=2\]"),
        ({"audio.dim": 8}, r"network.changes=\[audio.dim=16\]"),
        (
            {"motion.frames": 4, "latent_frames": 3},
            r"motion.frames wants at least 4.*network.changes=\[motion.frames=2\]",
        ),
    ],
)
def test_a_network_of_another_size_is_refused_with_the_setting_to_change(place, change, complaint):
    with pytest.raises(DataError, match=complaint):
        Source(config(place), small(**change))


def test_a_member_that_the_network_needs_and_is_not_there_is_named(tmp_path):
    place = made(tmp_path, samples=1, network=NETWORK, contents=("latent", "motion", "text"))
    with pytest.raises(DataError, match=r"hold no reference.npy: pack with `reference` among contents=…"):
        Source(config(place), NETWORK)
    plain = small(**{"identity": "none", "audio.injection": "none"})
    batch = Source(config(place), plain).batch(["clip000-000000"])
    assert batch.reference_BCHW is batch.face_BC is batch.audio_BTNC is batch.boxes_BT24 is None
    with pytest.raises(DataError, match=r"hold no mp4: pack with `video`"):
        Source(config(place, latents="encode"), plain)


def test_settings_that_make_no_sense_are_refused():
    for asked in ({"drop_text": 1.5}, {"mask_motion": -0.1}, {"shuffle": 0}, {"workers": -1}, {"timeout_s": 0}):
        with pytest.raises(SettingsError, match=f"data.{next(iter(asked))}="):
            DataConfig(shards="x", **asked).check()
    DataConfig(shards="x").check()


# What curation packs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filmed(tmp_path_factory) -> str:
    """A talking man as curation packs him, small: windows of 9 frames, 192×128, everything in them."""
    from curation.plan import Shard, window_starts
    from curation.shards import Place, archived, assemble, staged, write_index
    from curation.stages.pack import Pack
    from model import weights
    from tests.curation.clips import clip
    from tests.curation.packed import config as packing
    from tests.curation.packed import followed

    folder = tmp_path_factory.mktemp("filmed")
    path, asked = weights.path("psychopy-jwpIntro"), packing("", "")
    whole = clip(path, 1.0, 4.2, "0123456789abcdef")
    found = followed(path, whole)
    place, windows = Place(str(folder)), []
    for window, members in Pack(asked)(path, whole, found, window_starts(len(found.left), asked.frames, asked.stride)):
        place.publish(staged("train-000000", window.key), archived(window.key, members))
        windows.append(window)
    written = assemble(place, Shard("train-000000", "train", tuple(windows)), set())
    write_index(place, {"version": "1", "settings": dataclasses.asdict(asked)}, [written])
    return str(folder)


def test_what_curation_packs_is_what_training_reads(filmed):
    network = preset("tiny", latent_frames=3, latent_height=16, latent_width=24)
    source = Source(config(filmed), network)
    codec = codecs.load("dct")
    batch = source.batch(source.keys)
    assert len(batch) == 4 and batch.audio_BTNC.shape == (4, 9 + 4, 5, 384) and batch.face_BC.shape == (4, 128)
    fresh = Source(config(filmed, latents="encode"), network).batch(source.keys)
    for row, key in enumerate(batch.keys):
        film = io.BytesIO(source.video(key))
        span = media.Span(Fraction(2, 25), Fraction(11, 25))
        frames = torch.stack([signed(image[None])[0] for image in media.frames(film, span)])
        for latents in (batch.latent_BFCHW[row], fresh.latent_BFCHW[row]):
            error = (codec.decode(latents) - frames).square().mean()
            assert 10 * torch.log10(4 / error) > 25, "decibels"
        boxes = batch.boxes_BT24[row][batch.boxes_BT24[row].isfinite().all(dim=(1, 2))]
        assert len(boxes) and (boxes[:, :, :2] < boxes[:, :, 2:]).all()
    assert (batch.motion_BNCHW - fresh.motion_BNCHW).abs().mean() < 0.2 * batch.motion_BNCHW.abs().mean()
    steps = list(itertools.islice(loader(config(filmed, workers=1), network, 0, batch=4), 2))
    assert sorted(steps[0].keys) == sorted(steps[1].keys) == sorted(source.keys), "an epoch each"


def test_shards_of_separated_voices_are_known_as_such(tmp_path: Path) -> None:
    """What is animated later must be separated, too: exports carry it on."""
    place = made(tmp_path, network=NETWORK)
    index = json.loads((tmp_path / "index.json").read_text())
    assert "vocals" not in Source(config(place), NETWORK).made_with
    (tmp_path / "index.json").write_text(json.dumps({**index, "weights": {"vocals": "ce74", "minilm": "0872"}}))
    separated = Source(config(place), NETWORK)
    assert separated.made_with == {
        "codec": "dct", "speech": "whisper", "text": "minilm", "identity": "dlib", "vocals": "ce74"
    }  # fmt: skip
    assert separated.line().endswith("made with dct, whisper, minilm, dlib, a separator of voices")
