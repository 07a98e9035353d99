"""A clip's samples: what is in them, where it lies, and that it is the same every time."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.config import PackConfig
from curation.plan import window_starts
from curation.stages.pack import FPS, RATE, STEP, Pack, PackError, Subject
from manifests.schema import Clip, Track
from model import codecs, media, weights
from model.crop import CropError
from tests.curation.clips import clip
from tests.curation.packed import SMALL, array, config, facts, followed, track

Samples = dict[int, dict[str, bytes]]
ALL = media.Span(Fraction(0), Fraction(9))


def samples(stage: Pack, path: Path, whole: Clip, found: Track) -> Samples:
    """The clip's samples, by their window's first frame."""
    starts = window_starts(len(found.left), stage.config.frames, stage.config.stride)
    return {window.first: members for window, members in stage(path, whole, found, starts)}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> tuple[Path, Clip, Track]:
    """3.2 s of a man who talks to the camera, 640 x 480, from the middle of the film."""
    path = weights.path("psychopy-jwpIntro")
    whole = clip(path, 1.0, 4.2, "0123456789abcdef")
    return path, whole, followed(path, whole)


@pytest.fixture(scope="module")
def stage() -> Pack:
    return Pack(config("", "", captions=""))


@pytest.fixture(scope="module")
def packed(stage, speaker) -> Samples:
    """His samples, small: windows of 9 frames."""
    return samples(stage, *speaker)


@pytest.fixture(scope="module")
def pictures(speaker) -> list[np.ndarray]:
    path, whole, _ = speaker
    span = media.Span(Fraction(1), Fraction(str(whole.end)))
    return list(media.frames(path, span, Fraction(FPS)))


def crop(stage: Pack, speaker: tuple[Path, Clip, Track]):
    path, whole, found = speaker
    return stage.crop(path, whole, Subject.of(found))


def test_every_member_has_its_shape_and_type(speaker):
    asked = PackConfig(output="", selection="", upscale=True, preset="ultrafast", stride=1000)
    found = samples(Pack(asked), *speaker)
    assert list(found) == [0, 31]
    arrays = {name: array(content) for name, content in found[31].items() if name.endswith("npy")}
    shapes = {name: (value.shape, value.dtype.name) for name, value in arrays.items()}
    tokens = shapes.pop("text.npy")
    assert tokens[0][1:] == (384,) and tokens[1] == "float16"
    assert shapes == {
        "latent.npy": ((13, 16, 60, 90), "float16"),
        "motion.npy": ((2, 16, 60, 90), "float16"),
        "reference.npy": ((4, 16, 60, 90), "float16"),
        "face.npy": ((128,), "float32"),
        "audio.npy": ((49 + 4, 5, 384), "float16"),
        "mask.npy": ((49, 2, 4), "float32"),
    }
    assert set(found[31]) == {*arrays, "json", "mp4"}


def likeness(shown_THWC: np.ndarray, wanted_THWC: np.ndarray) -> float:
    """PSNR, dB."""
    return float(10 * np.log10(255**2 / np.mean((shown_THWC - wanted_THWC.astype(np.float32)) ** 2)))


def decoded(latents: np.ndarray) -> np.ndarray:
    """What latents of the dct codec show, 0-255 [T, H, W, 3]."""
    shown = codecs.load("dct").decode(torch.from_numpy(latents).float())
    return (shown.clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) * 127.5


def test_latents_decode_to_the_pictures_of_their_window_and_of_no_other(stage, speaker, packed, pictures):
    box = crop(stage, speaker)
    shown = decoded(array(packed[30]["latent.npy"]))
    found = [likeness(shown, np.stack([box.cut(image) for image in pictures[n : n + 9]])) for n in range(25, 36)]
    assert int(np.argmax(found)) + 25 == 30


def test_motion_is_the_frames_before_the_window_each_encoded_alone(stage, speaker, packed, pictures):
    codec, box = codecs.load("dct"), crop(stage, speaker)

    def alone(index: int) -> np.ndarray:
        frame = torch.from_numpy(box.cut(pictures[index])).permute(2, 0, 1).float() / 127.5 - 1
        return codec.encode(frame[None])[0].numpy().astype(np.float16)

    assert np.array_equal(array(packed[30]["motion.npy"]), [alone(28), alone(29)])
    assert np.array_equal(array(packed[0]["motion.npy"]), [alone(0), alone(0)]), "before the clip: its first frame"
    assert facts(packed[0])["window"]["repeated"] == 2 and facts(packed[30])["window"]["repeated"] == 0


def test_references_are_frames_of_the_whole_clip_and_the_same_for_all_its_windows(stage, speaker, packed, pictures):
    found = facts(packed[0])["reference"]
    assert len(found["frames"]) == 4 and max(found["frames"]) > 20
    assert len({members["reference.npy"] for members in packed.values()}) == 1
    codec, box = codecs.load("dct"), crop(stage, speaker)
    frame = torch.from_numpy(box.cut(pictures[found["frames"][2]])).permute(2, 0, 1).float() / 127.5 - 1
    expected = codec.encode(frame[None])[0].numpy().astype(np.float16)
    assert np.array_equal(array(packed[0]["reference.npy"])[2], expected)
    left, top, right, bottom = found["faces"][2]
    assert 0 <= left < right <= SMALL["width"] and 0 <= top < bottom <= SMALL["height"]


def test_the_face_embedding_is_that_of_the_frame_it_names(stage, speaker, packed, pictures):
    subject = Subject.of(speaker[2])
    named = set()
    for members in packed.values():
        frame = facts(members)["face"]["frame"]
        named.add(frame)
        assert np.array_equal(array(members["face.npy"]), stage.recognise(pictures[frame], subject.points_T52[frame]))
    assert len(named) > 1, "each window draws its own"


def test_all_face_embeddings_are_kept_on_request(stage, speaker, packed):
    every = Pack(dataclasses.replace(stage.config, face="all", face_samples=5, contents=["face"]))
    members = samples(every, *speaker)[30]
    assert array(members["face.npy"]).shape == (5, 128) and len(facts(members)["face"]["frames"]) == 5


def test_speech_is_embedded_with_the_whole_clip_in_view_and_margins_repeat_its_ends(stage, speaker, packed):
    path, _, found = speaker
    sound = media.audio(path, media.Span(Fraction(1), 1 + Fraction(len(found.left), FPS)), RATE)
    states = stage.speech.frames(sound, len(found.left)).astype(np.float16)
    assert np.array_equal(array(packed[30]["audio.npy"]), states[28:41])
    assert np.array_equal(array(packed[0]["audio.npy"]), states[[0, 0, *range(11)]])
    last = max(packed)
    assert np.array_equal(array(packed[last]["audio.npy"])[-3:], states[[-1, -1, -1]])


def test_masks_lie_where_face_and_lips_are_in_the_picture_that_was_made(stage, speaker, packed):
    subject, box = Subject.of(speaker[2]), crop(stage, speaker)
    mask = array(packed[30]["mask.npy"])
    assert np.allclose(mask[:, 0], box.place(subject.boxes_T4[30:39]), atol=1e-3)
    assert (mask[:, 1, 1] > mask[:, 0, 1]).all() and (mask[:, 1, 3] <= mask[:, 0, 3] + 1e-3).all()


def test_the_json_says_where_the_sample_comes_from(speaker, packed):
    _, whole, found = speaker
    about = facts(packed[30])
    assert about["clip"]["clip_id"] == whole.clip_id and about["clip"]["path"] == whole.path
    assert about["window"]["start"] == pytest.approx(1.0 + 30 / 25)
    assert about["window"]["clip_frames"] == len(found.left) == 80
    assert about["crop"]["upscaled"] is False and about["crop"]["scale"] == pytest.approx(128 / about["crop"]["height"])
    assert about["metrics"]["sync_c"] is None and about["caption"] == ""
    assert about["made_with"] == {"codec": "dct", "speech": "whisper", "text": "minilm", "face": "dlib"}


def test_the_same_clip_gives_the_same_bytes(stage, speaker, packed):
    assert samples(stage, *speaker) == packed


def test_contents_choose_what_a_sample_holds(stage, speaker):
    bare = Pack(dataclasses.replace(stage.config, contents=["latent", "mask"]))
    assert {frozenset(members) for members in samples(bare, *speaker).values()} == {
        frozenset({"json", "latent.npy", "mask.npy"})
    }


def test_a_caption_reaches_the_sample_and_its_embedding(stage, speaker, packed, tmp_path):
    _, whole, _ = speaker
    (tmp_path / "captions.csv").write_text(f"clip_id,caption\n{whole.clip_id},A man with a beard talks.\n")
    captioned = Pack(dataclasses.replace(stage.config, captions=str(tmp_path / "captions.csv"), contents=["text"]))
    members = samples(captioned, *speaker)[0]
    assert facts(members)["caption"] == "A man with a beard talks."
    expected = np.asarray(stage.text.encode("A man with a beard talks.")).astype(np.float16)
    assert np.array_equal(array(members["text.npy"]), expected)
    assert len(expected) > len(array(packed[0]["text.npy"])), "unpadded"


def test_a_small_source_is_refused_unless_it_may_be_enlarged_or_shown_between_black_sides(stage, speaker):
    bare = dataclasses.replace(stage.config, width=720, height=480, upscale=False, pad=False, contents=["mask"])
    with pytest.raises(CropError, match="upscale=true"):
        samples(Pack(bare), *speaker)
    for allowed, upscaled, padded in (({"upscale": True}, True, 0), ({"pad": True}, False, pytest.approx(80 / 720))):
        (about, *_) = (facts(m) for m in samples(Pack(dataclasses.replace(bare, **allowed)), *speaker).values())
        assert about["crop"]["upscaled"] is upscaled and about["crop"]["padded"] == padded


def test_pictures_that_are_not_those_that_were_scored_are_refused(stage, speaker):
    path, whole, found = speaker
    fewer = {name: value[:-1] for name, value in vars(found).items() if isinstance(value, list) and len(value) == 80}
    shorter = dataclasses.replace(found, **fewer, points=found.points[:-10])
    with pytest.raises(PackError, match="not those that were scored"):
        samples(stage, path, whole, shorter)


def test_a_source_without_sound_needs_contents_without_audio(stage, speaker, pictures, tmp_path):
    media.encode(tmp_path / "silent.mp4", pictures[:40], Fraction(25), preset="ultrafast")
    whole = clip(tmp_path / "silent.mp4")
    boxes = Subject.of(speaker[2]).boxes_T4[:40]
    with pytest.raises(PackError, match="the source has no sound"):
        samples(stage, tmp_path / "silent.mp4", whole, track(whole, boxes))
    seen = Pack(dataclasses.replace(stage.config, contents=["video"]))
    assert len(samples(seen, tmp_path / "silent.mp4", whole, track(whole, boxes))) == 3


# Squares that a face fills, and black bars -------------------------------------------------------------------------


def framed(film: Path, pictures: list[np.ndarray]) -> Clip:
    media.encode(film, pictures, Fraction(25), crf=4, preset="ultrafast")
    return clip(film)


def moved(found: Track, whole: Clip, left: int, top: int, frames: int) -> Track:
    """A track where the pictures begin further right and further down."""
    subject = Subject.of(found)
    points = subject.points_T52[:frames] - [left, top]
    return track(whole, subject.boxes_T4[:frames] - [left, top, left, top], points)


@pytest.fixture(scope="module")
def tight(speaker, pictures, tmp_path_factory) -> tuple[Path, Clip, Track]:
    """His face alone: a square, of which it takes three quarters of the height."""
    boxes = Subject.of(speaker[2]).boxes_T4[:40]
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    side = 2 * round((bottom - top) / 0.75 / 2)
    left, top = round((left + right - side) / 2), round((top + bottom - side) / 2)
    film = tmp_path_factory.mktemp("tight") / "tight.mp4"
    whole = framed(film, [image[top : top + side, left : left + side] for image in pictures[:40]])
    return film, whole, moved(speaker[2], whole, left, top, 40)


def test_a_square_that_a_face_fills_is_packed_whole_between_black_sides(stage, tight, tmp_path):
    path, whole, found = tight
    seen = Pack(dataclasses.replace(stage.config, contents=["video", "latent", "mask"]))
    members = samples(seen, path, whole, found)[0]
    about, mask = facts(members)["crop"], array(members["mask.npy"])
    left, _, right, _ = about["shown"]
    assert about["padded"] > 0.25 and about["padded"] == pytest.approx(1 - (right - left) / SMALL["width"])
    assert (mask[..., 0] >= left).all() and (mask[..., 2] <= right).all()
    assert (mask[:, 0, 3] - mask[:, 0, 1]).min() > 0.5 * SMALL["height"]
    (tmp_path / "window.mp4").write_bytes(members["mp4"])
    shown = np.stack(list(media.frames(tmp_path / "window.mp4", ALL, Fraction(FPS))))
    for window in (shown[2:], decoded(array(members["latent.npy"]))):
        outside = np.concatenate([window[:, :, : int(left) - 8], window[:, :, int(right) + 9 :]], axis=2)
        assert outside.size and np.abs(outside.astype(float)).max() < 6, "black throughout, and the same in every frame"
        assert window[:, :, int(left) + 1 : int(right)].mean() > 40
    refusing = Pack(dataclasses.replace(seen.config, pad=False))
    with pytest.raises(CropError, match=r"moves over .*: pad=true fills its sides with black"):
        samples(refusing, path, whole, found)


def test_a_crop_stays_between_black_bars(stage, speaker, pictures, tmp_path):
    bars = 40, 8, 44, 12  # above, left, below, right
    lit = [np.maximum(image, 60)[bars[0] : -bars[2], bars[1] : -bars[3]] for image in pictures[:20]]
    barred = [np.pad(image, [(bars[0], bars[2]), (bars[1], bars[3]), (0, 0)]) for image in lit]
    whole = dataclasses.replace(framed(tmp_path / "film.mp4", barred), letterbox=0.3)
    found = moved(speaker[2], whole, 0, 0, 20)
    seen = Pack(dataclasses.replace(stage.config, width=480, height=320, contents=["video"]))
    box = seen.crop(tmp_path / "film.mp4", whole, Subject.of(found))
    assert box.left >= bars[1] and box.top >= bars[0]
    assert box.left + box.width <= 640 - bars[3] and box.top + box.height <= 480 - bars[2]
    assert box.height >= 480 - bars[0] - bars[2] - 8, "and no smaller than need be"
    darkest = {}
    for name, letterbox in (("known", 0.3), ("unknown", None)):
        members = samples(seen, tmp_path / "film.mp4", dataclasses.replace(whole, letterbox=letterbox), found)[0]
        (tmp_path / f"{name}.mp4").write_bytes(members["mp4"])
        shown = np.stack(list(media.frames(tmp_path / f"{name}.mp4", ALL, Fraction(FPS))))
        darkest[name] = shown.max(axis=3).min()
    assert darkest["known"] > 45 and darkest["unknown"] < 10


# Motion's scale ----------------------------------------------------------------------------------------------------


def test_motion_is_scaled_as_the_codec_s_conditions_are_and_references_are_not(stage, speaker, pictures, tmp_path):
    """CogVideoX 1.5 was trained on first pictures divided by the scale that all other latents are multiplied by."""
    from tests.model.test_cogvideox import write

    source = str(write(tmp_path / "vae", invert_scale_latents=True))
    asked = {"codec": "cogvideox", "codec_source": source, "contents": ["motion", "reference"], "upscale": True}
    members = samples(Pack(dataclasses.replace(stage.config, **asked)), *speaker)[30]
    codec, box = codecs.load("cogvideox", source), crop(stage, speaker)
    frames = [28, 29, *facts(members)["reference"]["frames"]]
    latents = codecs.each_alone(codec, codecs.signed([box.cut(pictures[frame]) for frame in frames])).numpy()
    assert np.allclose(array(members["motion.npy"]), latents[:2] / 0.7**2, atol=1e-3, rtol=1e-3)
    assert np.allclose(array(members["reference.npy"]), latents[2:], atol=1e-3, rtol=1e-3)


# Sound and picture in step -----------------------------------------------------------------------------------------

FLASHES = (0, 20, 75, 118)


@pytest.fixture(scope="module")
def clapper(tmp_path_factory) -> tuple[Path, Clip, Track]:
    """5 s of black with some white frames, each with a click at the moment it appears."""
    path = tmp_path_factory.mktemp("clapper") / "clapper.mp4"
    frames = [np.full((480, 720, 3), 255 if n in FLASHES else 0, np.uint8) for n in range(125)]
    sound = np.zeros(125 * STEP, np.float32)
    for n in FLASHES:
        sound[n * STEP : n * STEP + 80] = 0.9 * (-1.0) ** np.arange(80).repeat(4)[:80]
    media.encode(path, frames, Fraction(25), sound, RATE)
    whole = clip(path)
    return path, whole, track(whole, np.tile([300.0, 150, 420, 300], (125, 1)))


@pytest.mark.parametrize("first", [0, 49, 76])
def test_a_click_is_heard_when_its_flash_is_seen(clapper, first, tmp_path):
    stage = Pack(PackConfig(output="", selection="", contents=["video"]))
    (members,) = (m for window, m in stage(*clapper, [first]) if window.first == first)
    made = tmp_path / "window.mp4"
    made.write_bytes(members["mp4"])
    shown = [
        n
        for n, image in enumerate(media.frames(made, media.Span(Fraction(0), Fraction(51, 25)), Fraction(25)))
        if image.mean() > 128
    ]
    heard = media.audio(made, None, RATE)
    loud = np.flatnonzero(np.abs(heard) > 0.2) / RATE
    onsets = loud[np.r_[True, np.diff(loud) > 0.1]]
    expected = [n - first + 2 for n in FLASHES if first - 2 <= n < first + 49]
    if first == 0:  # the clip's first frame, a flash, stands in for the two before it; they are silent
        assert shown[:2] == [0, 1]
        shown = shown[2:]
    assert shown == expected and len(onsets) == len(expected)
    assert np.abs(onsets - np.array(expected) / 25).max() < 0.020


# On real heads -----------------------------------------------------------------------------------------------------


def quality(path: Path) -> float:
    """PSNR of the decoded latents of a film's first window at full size, dB."""
    whole = clip(path, 0.0, 2.0)
    stage = Pack(PackConfig(output="", selection="", contents=["latent"], upscale=True))
    found = followed(path, whole)
    ((_, members),) = stage(path, whole, found, [0])
    box = stage.crop(path, whole, Subject.of(found))
    images = media.frames(path, media.Span(Fraction(0), Fraction(49, 25)), Fraction(FPS))
    return likeness(decoded(array(members["latent.npy"])), np.stack([box.cut(image) for image in images]))


def test_latents_of_a_real_head_decode_to_33_dB(footage):
    assert quality(footage / "talking_head" / "sv_head5.mp4") >= 33


@pytest.mark.soak
def test_latents_of_real_heads_decode_to_33_dB_but_where_much_moves(footage):
    found = {}
    for path in sorted((footage / "talking_head").glob("*.mp4")):
        found[path.name] = quality(path)
    print({name: round(psnr, 1) for name, psnr in found.items()})
    below = {name for name, psnr in found.items() if psnr < 33}
    # A camera that zooms at hands that move; curls before a stage; a man who turns; hair in a sharp square.
    assert below == {"sv_half4.mp4", "sv_full4.mp4", "sv_multiturn15.mp4", "hdtf_WDA_KatieHill_000.mp4"}
    assert len(found) == 19
    assert min(found.values()) > 28
