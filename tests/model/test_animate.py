"""A picture and speech become a playable video with that sound, made again to the byte; what cannot be is refused."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import animation, checkpoint, codecs, media, sampling, weights
from model.animation_job import AnimateConfig, AnimateError, prepare
from model.checkpoint import CheckpointError
from model.config import preset
from model.encoders import speech, text
from model.encoders.face import DlibFace
from model.encoders.speech import FormatError
from model.encoders.vocals import VocalSeparator
from model.inputs import InputError
from model.portrait import Portrait
from model.settings import SettingsError
from tests.conftest import ROOT
from tests.model.handed_in import close, man, saved, spoken
from tests.model.networks import shaken
from tests.model.separators import LEFT, NEITHER, scaled
from tests.model.test_cogvideox import write as write_vae
from tests.model.test_text import write_t5

SMALL = {"width": 144, "height": 96, "clip_frames": 9, "steps": 2}
torch.set_num_threads(1)
SECONDS = Fraction(14, 25) + Fraction(1, 100)  # fifteen frames, the last one begun: two clips


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """The catalogue of model files and the encoders are read once for all videos: that is most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((weights, "_read"), (text, "load"), (speech, "load")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A picture of a man, and what he says."""
    folder = tmp_path_factory.mktemp("given")
    speech_N = media.audio(weights.path("psychopy-jwpIntro"), media.Span(Fraction(1), 1 + SECONDS))
    return {"image": str(saved(man(), folder)), "audio": str(spoken(folder / "speech.wav", speech_N))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which every weight counts."""
    folder = tmp_path_factory.mktemp("runs") / "final"
    checkpoint.save(shaken(Portrait(preset("tiny", **{"motion.frames": 1}))), folder, note={"step": 7})
    return folder


def config(given: dict[str, str], output: Path, **changes: Any) -> AnimateConfig:
    return AnimateConfig(
        **{**given, "output": str(output), "prompt": "a man speaks", "device": "cpu", **SMALL, **changes}
    )


def made(given: dict[str, str], output: Path, **changes: Any) -> tuple[bytes, list[str]]:
    """The video's bytes, and what was said."""
    said: list[str] = []
    animation.animate(config(given, output, overwrite=True, **changes), said.append)
    return output.read_bytes(), said


@pytest.fixture(scope="module")
def plain(given: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video by random weights, its settings beside it."""
    output = tmp_path_factory.mktemp("plain") / "out.mp4"
    made(given, output)
    return output


@pytest.fixture(scope="module")
def usual(given: dict[str, str], trained: Path) -> np.ndarray:
    """The frames of a video by the checkpoint."""
    return drawn(given, trained)


def drawn(given: dict[str, str], trained: Path, **changes: Any) -> np.ndarray:
    """Frames [T, H, W, 3] by the checkpoint."""
    job = prepare(config(given, trained / "x.mp4", checkpoint=str(trained), **changes))
    return np.stack(list(animation.frames(job)))


def test_the_command_makes_a_playable_video_as_long_as_its_sound(given: dict[str, str], tmp_path: Path) -> None:
    video = tmp_path / "new folder" / "out.mp4"
    settings = [f"{key}={value}" for key, value in {**given, **SMALL, "device": "cpu"}.items()]
    command = [sys.executable, str(ROOT / "model" / "animate.py"), *settings, f"output={video}", "prompt=a man speaks"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=one_thread)
    assert ran.returncode == 0, ran.stderr
    assert "the video will be noise" in ran.stdout
    assert "15 frames (0.60 s) of 144x96 in 2 clips of 9, 2 steps each of 2 passes" in ran.stdout
    assert "4/4 steps" in ran.stderr
    found = media.probe(video)
    assert found.video is not None and found.audio is not None
    assert (found.video.width, found.video.height, found.video.fps, found.video.frames) == (144, 96, 25, 15)
    pictures = list(media.frames(video, media.Span(Fraction(0), Fraction(2))))
    assert len(pictures) == 15
    heard_N, said_N = media.audio(video), media.audio(given["audio"])
    assert len(said_N) <= len(heard_N) <= len(said_N) + 1024  # the last packet of AAC is filled up
    assert np.corrcoef(heard_N[: len(said_N)], said_N)[0, 1] > 0.98
    assert sorted(path.name for path in video.parent.iterdir()) == ["out.json", "out.mp4"]


def test_a_video_that_is_there_is_not_replaced_unasked(given: dict[str, str], plain: Path) -> None:
    with pytest.raises(AnimateError, match="is there already: name another, or overwrite=true"):
        animation.animate(config(given, plain))


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(given: dict[str, str], plain: Path) -> None:
    first, record = plain.read_bytes(), plain.with_suffix(".json").read_bytes()
    again, _ = made(given, plain)
    assert again == first
    assert plain.with_suffix(".json").read_bytes() == record
    assert made(given, plain.with_name("other.mp4"), seed=1)[0] != first


def test_ways_of_computing_that_save_memory_give_the_same_video(
    given: dict[str, str], trained: Path, usual: np.ndarray
) -> None:
    """To the eye: in a batch sums are taken in another order."""
    frugal = drawn(given, trained, sequential=True, recompute_reference=True)
    assert np.abs(usual.astype(int) - frugal).max() <= 1
    assert usual.std() > 10


def test_a_checkpoint_s_network_is_what_draws(
    given: dict[str, str], trained: Path, plain: Path, tmp_path: Path
) -> None:
    video, said = made(given, tmp_path / "out.mp4", checkpoint=str(trained), preset="hallo3")
    assert video != plain.read_bytes()
    job = prepare(config(given, tmp_path / "x.mp4", checkpoint=str(trained)))
    network = animation._network(job.config, job.models)
    expected = shaken(Portrait(preset("tiny", **{"motion.frames": 1}))).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert not [line for line in said if "noise" in line.lower()]
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["random_weights"] is False
    assert record["network"]["motion.frames"] == 1
    assert set(record["sha256"]["checkpoint"]) == {path.name for path in trained.iterdir()}


@pytest.mark.parametrize("change", [{"prompt": "a woman sings in the rain"}, {"audio_scale": 1.0}])
def test_what_is_asked_for_changes_the_video(
    given: dict[str, str], trained: Path, usual: np.ndarray, change: dict[str, Any]
) -> None:
    assert (drawn(given, trained, **change) != usual).mean() > 0.1


def test_the_record_beside_the_video_says_what_it_was_made_with(given: dict[str, str], plain: Path) -> None:
    record = json.loads(plain.with_suffix(".json").read_text())
    asked = config(given, plain, overwrite=True)
    assert AnimateConfig(**record["settings"]) == asked
    assert record["seed"] == 0
    assert record["random_weights"] is True
    assert record["models"] == {"codec": "dct", "text": "minilm", "speech": "whisper", "face": "dlib"}
    assert record["video"] == {
        "frames": 15, "fps": 25, "width": 144, "height": 96, "clips": 2, "clip_frames": 9, "frames_made_again": 0
    }  # fmt: skip
    assert record["sha256"]["image"] == animation._sha256(Path(given["image"]))
    assert record["sha256"]["models"]["dlib-face"] == weights.entry("dlib-face").sha256
    assert record["versions"]["torch"] == torch.__version__
    assert record["picture"]["shown"] == [0, 0, 639, 426]


def test_the_face_is_the_one_in_the_picture(given: dict[str, str], tmp_path: Path) -> None:
    vector = animation._face(prepare(config(given, tmp_path / "x.mp4"))).numpy()
    other = saved(man()[:, ::-1], tmp_path)
    mirrored = animation._face(prepare(config({**given, "image": str(other)}, tmp_path / "x.mp4"))).numpy()
    cosine = vector @ mirrored / np.linalg.norm(vector) / np.linalg.norm(mirrored)
    assert cosine > DlibFace.same


def test_a_dry_run_writes_nothing_and_says_what_it_would_take(given: dict[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    animation.animate(config(given, tmp_path / "out.mp4", dry_run=True, preset="small", steps=50), said.append)
    assert list(tmp_path.iterdir()) == []
    (costs,) = [line for line in said if "TFLOP" in line]
    assert "of memory on cpu (weights" in costs


def test_too_little_memory_is_said_before_the_start(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.footprint.free", lambda device: 1_000_000)
    said: list[str] = []
    animation.animate(config(given, tmp_path / "out.mp4", dry_run=True), said.append)
    assert said[-1].startswith("WARNING: only 1 MB are free; sequential=true")


def test_a_video_that_was_stopped_leaves_nothing_behind(given: dict[str, str], tmp_path: Path) -> None:
    def stop(done: int, steps: int) -> None:
        if done == 3:  # in the second clip
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animation.animate(config(given, tmp_path / "out.mp4"), lambda line: None, stop)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_too_long_is_cut_off_and_that_is_said(given: dict[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    job = prepare(config(given, tmp_path / "x.mp4", prompt="and then he says a word " * 20))
    text_SD, negative_SD = animation._texts(job, said.append)
    assert len(text_SD) == job.models.network.text_length == 64
    assert len(negative_SD) == 2  # its marks alone
    assert "tokens: the network reads 64" in said[0]


@pytest.mark.parametrize("room", [226, 40])
def test_t5_s_vectors_are_those_that_packing_stores_cut_to_the_network_s_room(
    given: dict[str, str], tmp_path: Path, room: int
) -> None:
    source, prompt = str(write_t5(tmp_path / "t5")), "He stands, and looks to the left."
    job = prepare(config(given, tmp_path / "x.mp4", prompt=prompt, text_source=source))
    encoder = text.load("t5", source)
    said: list[str] = []
    for compat in ("", "hallo3"):
        network = preset("tiny", text_dim=24, text_length=room, compat=compat)
        job = dataclasses.replace(job, models=dataclasses.replace(job.models, network=network, text="t5"))
        texts = animation._texts(job, said.append)
        for text_SD, words in zip(texts, (prompt, ""), strict=True):
            assert np.array_equal(text_SD.numpy(), encoder.encode(words)[:room])
        assert sampling.padded(texts)[1] is None, "nothing to mask"
    assert said == []
    long = dataclasses.replace(job.config, prompt=prompt * 40)
    animation._texts(dataclasses.replace(job, config=long), said.append)
    (line,) = said
    assert line.startswith(f"a prompt of {encoder.vocabulary.count(long.prompt)} tokens: the network reads {room},")


@pytest.mark.parametrize(("compat", "alone"), [("", False), ("hallo3", True)])
def test_the_released_network_is_shown_the_face_alone(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compat: str, alone: bool
) -> None:
    """Of its picture; the motion frames begin with the whole of it."""
    folder = tmp_path / "final"
    checkpoint.save(Portrait(preset("tiny", compat=compat, **{"motion.frames": 4})), folder, note={"codec": "dct"})
    job = prepare(config(given, tmp_path / "x.mp4", checkpoint=str(folder), clip_frames=17))
    people: list[sampling.Subject] = []
    monkeypatch.setattr(sampling, "video", lambda portrait, codec, person, *_: iter(people.append(person) or ()))  # type: ignore[func-returns-value]
    assert list(animation.frames(job, lambda _: None)) == []
    (person,) = people
    left, top, right, bottom = job.picture.shown_face
    face = job.picture.face
    assert (right - left) / (bottom - top) == pytest.approx((face.right - face.left) / face.height)
    picture_CHW = sampling.signed(job.picture.shown_HW3[None])[0]
    shown_CHW = sampling.face_alone(picture_CHW, (left, top, right, bottom)) if alone else picture_CHW
    assert torch.equal(person.picture_CHW, picture_CHW)
    assert torch.equal(person.reference_CHW, codecs.load("dct").encode(shown_CHW[None])[0])


FFT = 7680


def test_a_network_trained_on_separated_voices_asks_for_the_separator(given: dict[str, str], tmp_path: Path) -> None:
    separator, other = scaled(tmp_path / "separator.onnx"), scaled(tmp_path / "other.onnx", LEFT)
    digest = hashlib.sha256(separator.read_bytes()).hexdigest()
    folder = tmp_path / "final"
    checkpoint.save(Portrait(preset("tiny")), folder, note={"step": 7, "vocals": digest})

    def remarks(**changes: Any) -> str:
        job = prepare(config(given, tmp_path / "x.mp4", checkpoint=str(folder), vocals_fft=FFT, **changes))
        return " ".join(line for line in job.remarks if "network" in line)

    with pytest.raises(AnimateError, match=rf"a separator had taken out .*\({digest}\): vocals=… names.*vocals=none"):
        remarks()
    assert remarks(vocals=str(separator)) == ""
    assert "another separator than the one that the network was trained with" in remarks(vocals=str(other))
    assert "was trained on voices alone" in remarks(vocals="none")
    with pytest.raises(FormatError, match=r"missing\.onnx: no such file"):
        remarks(vocals=str(tmp_path / "missing.onnx"))
    deaf = tmp_path / "deaf"
    checkpoint.save(Portrait(preset("tiny", **{"audio.injection": "none"})), deaf, note={"vocals": digest})
    assert prepare(config(given, tmp_path / "x.mp4", checkpoint=str(deaf))).models.vocals == ""


def test_with_a_separator_the_network_hears_the_voice_alone_and_the_video_keeps_its_sound(
    given: dict[str, str], tmp_path: Path
) -> None:
    """Speech on the left, noise on the right, and a separator that leaves the left."""
    said_N = media.audio(given["audio"])
    noise_N = np.random.default_rng(0).normal(0, 0.05, len(said_N)).astype(np.float32)
    both = {**given, "audio": str(spoken(tmp_path / "both.wav", np.stack([said_N, noise_N], axis=1)))}
    left = scaled(tmp_path / "left.onnx", LEFT)
    job = prepare(config(both, tmp_path / "x.mp4", vocals=str(left), vocals_fft=FFT))
    states_TNC = animation._states(job)
    assert states_TNC is not None
    encoder = speech.load("whisper")
    voice_N = VocalSeparator(left, FFT)(media.audio(both["audio"], rate=44_100, layout="stereo"))
    assert np.array_equal(states_TNC.numpy(), encoder.frames(voice_N, job.plan.heard))
    alone_TNC = encoder.frames(said_N / 2, job.plan.heard)

    def apart(found_TNC: np.ndarray) -> float:
        return float(np.sqrt(np.mean((found_TNC - alone_TNC) ** 2)) / alone_TNC.std())

    mixed_TNC = encoder.frames(job.sound.heard_N, job.plan.heard)
    assert apart(states_TNC.numpy()) < 0.15 < 0.5 < apart(mixed_TNC)
    assert np.array_equal(job.sound.played_N, media.audio(both["audio"], rate=48_000)[: len(job.sound.played_N)])
    assert animation._record(job)["sha256"]["vocals"] == hashlib.sha256(left.read_bytes()).hexdigest()


def test_a_sound_without_a_voice_is_refused_before_the_network_is_loaded(given: dict[str, str], tmp_path: Path) -> None:
    nobody = scaled(tmp_path / "nobody.onnx", NEITHER)
    job = prepare(config(given, tmp_path / "x.mp4", vocals=str(nobody), vocals_fft=FFT))
    with pytest.raises(InputError, match=r"speech\.wav: the separator hears no voice in it; vocals=none"):
        animation.frames(job)


def test_a_close_square_is_animated_between_black_sides_as_it_would_be_packed(
    given: dict[str, str], tmp_path: Path
) -> None:
    square = {**given, "image": str(saved(close(), tmp_path))}
    job = prepare(config(square, tmp_path / "x.mp4"))
    side, record = len(close()), animation._record(job)["picture"]
    assert record["padded"] == pytest.approx(1 / 3, abs=0.06) and record["shown"] == [0, 0, side, side]
    assert any("of the width is black" in line for line in job.remarks)
    with pytest.raises(InputError, match="pad=true"):
        prepare(config(square, tmp_path / "x.mp4", pad=False))


def test_settings_that_do_not_go_together_are_refused_with_what_to_do(given: dict[str, str], tmp_path: Path) -> None:
    def refused(kind: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(kind, match=match):
            prepare(config(given, **{"output": tmp_path / "x.mp4", **changes}))

    refused(SettingsError, "steps=0: 1 to 1000", steps=0)
    refused(SettingsError, "an .mp4 is written", output=tmp_path / "x.avi")
    refused(SettingsError, "width=150: this network needs a multiple of 48", width=150)
    refused(SettingsError, "width and height go together", height=0)
    refused(SettingsError, r"clip_frames=10: 1 \+ 4k", clip_frames=10)
    refused(SettingsError, "clip_frames=1: clips of 1 frames have no room for 2 motion frames", clip_frames=1)
    refused(SettingsError, "there is tiny, small, hallo3", preset="huge")
    refused(CheckpointError, "no such file or folder", checkpoint=str(tmp_path / "none"))
    refused(AnimateError, "insightface=… names the folder", preset="hallo3")
    if not torch.cuda.is_available():
        refused(AnimateError, "device=cuda: there is none here", device="cuda")


def test_encoders_that_do_not_fit_the_network_are_refused_with_the_numbers(
    given: dict[str, str], tmp_path: Path
) -> None:
    job = prepare(config(given, tmp_path / "x.mp4"))
    for changes, match in (
        ({"text_dim": 100}, "text=minilm makes 384 numbers a token, the network reads 100"),
        ({"audio.layers": 4}, "speech=whisper makes 5 states of 384 numbers a frame, the network reads 4 of 384"),
        ({"latent_channels": 8}, "codec=dct has 16 channels, the network reads 8"),
    ):
        models = dataclasses.replace(job.models, network=preset("tiny", **changes))
        with pytest.raises(AnimateError, match=match):
            list(animation.frames(dataclasses.replace(job, models=models)))


def test_a_face_network_that_is_not_there_is_named(given: dict[str, str], tmp_path: Path) -> None:
    changes = {"preset": "hallo3", "insightface": str(tmp_path), "width": 720, "height": 480, "clip_frames": 49}
    job = prepare(config(given, tmp_path / "x.mp4", upscale=True, **changes))
    with pytest.raises(AnimateError, match=r"no face network at .*unpack InsightFace's buffalo_l"):
        animation.frames(job)


def test_a_place_that_cannot_be_written_is_named(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AnimateError, match=r"output=.*out\.mp4: cannot be written"):
        animation.animate(config(given, tmp_path / "file" / "out.mp4"), lambda line: None)


def test_a_network_that_cannot_go_on_is_given_one_clip_at_most(given: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "still"
    checkpoint.save(Portrait(preset("tiny", condition_channels=0)), folder)
    with pytest.raises(AnimateError, match=r"need 2 clips, and this network takes no motion frames.*at most 0\.36 s"):
        prepare(config(given, tmp_path / "x.mp4", checkpoint=str(folder)))
    job = prepare(config(given, tmp_path / "x.mp4", checkpoint=str(folder), clip_frames=17))
    assert len(list(animation.frames(job))) == 15


def test_a_network_as_released_is_animated_with_cogvideox_s_codec(given: dict[str, str], tmp_path: Path) -> None:
    """Clips of nine frames of which two are made again: seven new ones each, and three clips for fifteen."""
    folder, vae = tmp_path / "published", write_vae(tmp_path / "vae")
    checkpoint.save(shaken(Portrait(preset("tiny", compat="hallo3"))), folder)
    with pytest.raises(AnimateError, match="codec=dct cannot; codec=cogvideox"):
        prepare(config(given, tmp_path / "x.mp4", checkpoint=str(folder), codec="dct"))
    job = prepare(config(given, tmp_path / "x.mp4", checkpoint=str(folder), codec_source=str(vae), steps=1))
    assert job.models.codec == "cogvideox"
    assert (job.plan.clips, job.plan.overlap) == (3, 2)
    assert len(list(animation.frames(job))) == 15


def test_help_and_a_misspelt_setting_help() -> None:
    script = str(ROOT / "model" / "animate.py")
    wrong = subprocess.run([sys.executable, script, "imagee=x"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "did you mean 'image'" in wrong.stderr
