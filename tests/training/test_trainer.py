"""The loop: the same training on any number of ranks, whatever interrupts it; and clear words when it cannot go on.

All trainings run in one process that forks their ranks (`ranks_train.py`); the tests look at what came of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint, media, portrait
from model.config import ModelConfig
from model.layouts import write_hallo3
from model.settings import read
from tests.model.networks import inputs, shaken, small
from tests.training.packed import CONTENTS, made
from tests.training.runs import NETWORK, losses, same, settings, state, weights
from tests.training.worlds import ROOT
from training import trainer
from training.config import TrainConfig
from training.data import DataError
from training.observe import metrics
from training.stages import StageError, trained
from training.state import StateError
from training.trainer import TrainError

Case = dict[str, Any]

DRAWN = small(latent_channels=16, condition_channels=16)
"""A network whose latents the dct codec makes pictures of."""
CLIPS = ("validation.clips_every=1", "validation.clips=3", "validation.clip_steps=2")


@dataclass(frozen=True)
class Runs:
    """What came of the cases. folder: of their logs and outputs."""

    folder: Path

    def output(self, name: str) -> Path:
        return self.folder / name

    def statuses(self, case: str) -> list[int]:
        return json.loads((self.folder / f"{case}.json").read_text())["statuses"]

    def seconds(self, case: str) -> float:
        return json.loads((self.folder / f"{case}.json").read_text())["seconds"]

    def log(self, case: str, rank: int = 0) -> str:
        return (self.folder / f"{case}.rank-{rank}.log").read_text()

    def weighed(self, case: str, rank: int) -> list[dict[str, int]]:
        """What each piece of each step found held, and added up, as it began."""
        return [json.loads(row) for row in (self.folder / f"{case}.held-{rank}.jsonl").read_text().splitlines()]

    def seen(self, *cases: str) -> dict[tuple[int, int], tuple[str, int]]:
        """Sample and noise level at each (step, place) of some cases; later ones win, as in the run itself."""
        found = {}
        for case in cases:
            for file in sorted(self.folder.glob(f"{case}.seen-*.jsonl")):
                for row in map(json.loads, file.read_text().splitlines()):
                    for place, key, t in zip(row["places"], row["keys"], row["t"], strict=True):
                        found[row["step"], place] = key, t
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Trainings of 12 steps, whole and interrupted."""
    cases = Cases(tmp_path_factory.mktemp("runs"))
    lost = made(cases.folder / "lost", samples=18, network=NETWORK, per_shard=1)
    gone = [str(file) for file in sorted(Path(lost).glob("*.tar"))[5:]]
    cases.add("one", 1)
    cases.add("two", 2)
    cases.add("micro", 1, "steps=6", "micro=1")
    cases.add("one-killed", 1, "steps=10", kill_in_step=7)
    cases.add("one-again", 1, "steps=10", output="one-killed")
    cases.add("saves-killed", 2, rank=1, kill_in_save=10)
    cases.add("saves-again", 2, "steps=10", output="saves-killed")
    cases.add("asked", 2, rank=1, ask_in_step=6)
    cases.add("fewer", 1, output="asked")
    cases.add("more-first", 1, "steps=10")
    cases.add("more", 2, "micro=1", output="more-first", weigh=True)
    checkpoint.save(shaken(portrait.build(NETWORK)), cases.folder / "shaken")
    cases.add("still", 1, "optimizer.lr=0", "steps=3", f"initial={cases.folder / 'shaken'}")
    filled = made(cases.folder / "filled", samples=8, network=NETWORK, filled=NETWORK.text_length)
    cases.add("filled", 1, "steps=3", "data.drop_text=0.5", place=filled)
    shared = ("parallel.context=2", "parallel.shard=none")
    cases.add("filled-shared", 2, "steps=3", "data.drop_text=0.5", *shared, place=filled, weigh=True)
    films = made(cases.folder / "films", samples=3, network=DRAWN, contents=(*CONTENTS, "video"))
    cases.add("drawn", 2, "steps=2", "batch=2", *CLIPS, place=films, network=DRAWN)
    cases.add("spoilt", 2, rank=1, spoil=2)
    cases.add("lost", 2, "steps=6", place=lost, rank=1, remove_in_step=0, remove=gone)
    cases.add("all-lost", 1, place=lost)
    cases.add("odd", 2, "batch=3")
    return cases.run()


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Kills at every place of a step and of a save."""
    cases = Cases(tmp_path_factory.mktemp("kills"))
    for ranks in (1, 2):
        cases.add(f"whole-{ranks}", ranks, "steps=10")
        for what in ("kill_in_step", "kill_in_save", "ask_in_step"):
            for step in (5, 10) if what == "kill_in_save" else (0, 4, 5, 8):
                name = f"{ranks}-{what}-{step}"
                cases.add(name, ranks, "steps=10", rank=ranks - 1, **{what: step})
                cases.add(f"{name}-again", ranks, "steps=10", output=name)
    for what in ("kill_in_step", "kill_in_save"):  # all ranks at once
        for step in (5, 10) if what == "kill_in_save" else (4, 7):
            cases.add(f"2-all-{what}-{step}", 2, "steps=10", **{what: step})
            cases.add(f"2-all-{what}-{step}-again", 2, "steps=10", output=f"2-all-{what}-{step}")
    return cases.run()


class Cases:
    """Cases to be run in one process. A case that goes on with a run names its output."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan = folder, list[Case]()
        self.shards = made(folder / "shards", samples=18, network=NETWORK, per_shard=5)

    def add(
        self,
        name: str,
        ranks: int,
        *more: str,
        output: str = "",
        place: str = "",
        network: ModelConfig = NETWORK,
        **mishap: Any,
    ) -> None:
        asked = settings(place or self.shards, self.folder / (output or name), *more, network=network)
        self.plan.append({"name": name, "ranks": ranks, "settings": asked, **mishap})

    def run(self) -> Runs:
        (self.folder / "plan.json").write_text(json.dumps(self.plan))
        script = ROOT / "tests" / "training" / "ranks_train.py"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, str(script), str(self.folder / "plan.json")], env=environment, check=True)
        return Runs(self.folder)


# The same training


def test_a_run_ends_with_a_network_that_others_load(runs: Runs) -> None:
    assert runs.statuses("one") == [0]
    assert "done: 12" in runs.log("one")
    whole = portrait.build(NETWORK, "meta")
    loaded = checkpoint.load(whole, runs.output("one") / "final")
    assert loaded.fresh == ()
    assert loaded.checkpoint.note == {
        "step": 12, "weights": "ema", "codec": "dct", "speech": "whisper", "text": "minilm", "identity": "dlib"
    }  # fmt: skip


def test_one_and_two_ranks_agree_in_loss(runs: Runs) -> None:
    one, two = losses(runs.output("one")), losses(runs.output("two"))
    assert len(one) == len(two) == 12
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-6
    assert runs.seen("one") == runs.seen("two")
    assert len(set(one)) == 12


def test_micro_batches_change_rounding_alone(runs: Runs) -> None:
    one, micro = losses(runs.output("one"))[:6], losses(runs.output("micro"))
    assert one != micro
    assert max(abs(a - b) for a, b in zip(one, micro, strict=True)) < 1e-5


@pytest.mark.parametrize(
    ("killed", "again", "whole", "ended"),
    [("one-killed", "one-again", "one", [-9]), ("saves-killed", "saves-again", "two", [1, -9])],
)
def test_killed_and_gone_on_is_never_killed_to_the_bit(
    runs: Runs, killed: str, again: str, whole: str, ended: list[int]
) -> None:
    assert runs.statuses(killed) == ended
    _same_after_10_steps(runs, killed, again, whole)


@pytest.mark.soak
def test_wherever_it_is_killed_or_asked_to_stop_it_goes_on_to_the_bit(kills: Runs) -> None:
    names = [file.stem for file in kills.folder.glob("*.json") if "_in_" in file.stem and "again" not in file.stem]
    assert len(names) == 24
    for name in names:
        if "kill" in name:
            assert -9 in kills.statuses(name), name
        if "all" in name:
            assert kills.statuses(name) == [-9, -9], name
        _same_after_10_steps(kills, name, f"{name}-again", f"whole-{name[0]}")


def _same_after_10_steps(runs: Runs, killed: str, again: str, whole: str) -> None:
    assert set(runs.statuses(again)) == {0}, again
    assert losses(runs.output(killed)) == losses(runs.output(whole))[:10]
    kept, expected = (state(runs.output(name), 10) for name in (killed, whole))
    assert {name.partition(".")[0] for name in kept} == {"model", "optimizer", "ema"}
    assert same(kept, expected)
    seen, expected_seen = (
        {place: what for place, what in found.items() if place[0] < 10}
        for found in (runs.seen(killed, again), runs.seen(whole))
    )
    assert seen == expected_seen


def test_a_run_goes_on_after_the_last_whole_checkpoint(runs: Runs) -> None:
    assert "goes on after step 5" in runs.log("one-again")
    assert "goes on after step 5" in runs.log("saves-again")  # the one of step 10 was killed half written


def test_a_rank_asked_to_stop_stops_all_after_the_step_at_hand(runs: Runs) -> None:
    assert "saved after step 7" in runs.log("asked")
    assert "goes on after step 7" in runs.log("fewer")


@pytest.mark.parametrize(("first", "then"), [("asked", "fewer"), ("more-first", "more")])
def test_another_number_of_ranks_goes_on_with_the_same_samples(runs: Runs, first: str, then: str) -> None:
    assert set(runs.statuses(first) + runs.statuses(then)) == {0}
    assert runs.seen(first, then) == runs.seen("one")
    one, moved = losses(runs.output("one")), losses(runs.output(first))
    assert max(abs(a - b) for a, b in zip(one, moved, strict=True)) < 1e-6
    assert json.loads((runs.output(first) / "final" / "config.json").read_text())["note"]["step"] == 12


def test_training_without_learning_saved_exported_and_loaded_gives_the_same_output_to_the_bit(runs: Runs) -> None:
    assert len(set(losses(runs.output("still")))) == 3
    given, outputs = inputs(NETWORK), []
    for folder in ("shaken", "still/final", "one/final"):
        network = portrait.build(NETWORK, "meta")
        checkpoint.load(network, runs.output(folder))
        with torch.no_grad():
            outputs.append(network(given.noisy, given.timestep, given.text, **given.given()))
    started, still, learnt = outputs
    assert torch.equal(still, started)
    assert not torch.equal(learnt, started)


def test_texts_without_a_mask_train_alike_on_ranks_that_share_samples(runs: Runs) -> None:
    alone, shared = losses(runs.output("filled")), losses(runs.output("filled-shared"))
    assert len(set(alone)) == 3
    assert max(abs(a - b) for a, b in zip(alone, shared, strict=True)) < 1e-6


def test_pieces_of_a_step_add_up_to_the_same_gradient(runs: Runs) -> None:
    for whole, pieces in (("one", "more-first"), ("filled", "filled-shared")):
        lengths = [
            [row["gradient_norm"] for row in metrics(runs.output(name)) if "loss" in row] for name in (whole, pieces)
        ]
        assert lengths[1] == pytest.approx(lengths[0], rel=1e-4), pieces


def test_between_pieces_a_rank_holds_its_own_share_of_the_gradient(runs: Runs) -> None:
    what = trained(NETWORK, "all")
    whole = 4 * sum(what.sizes[name] for name in what.names)
    for rank in (0, 1):
        first, second = (row for row in runs.weighed("more", rank) if row["step"] == 11)
        assert second["bytes"] - first["bytes"] == pytest.approx(whole / 2, rel=0.1)


def test_replicas_add_up_once_a_step(runs: Runs) -> None:
    groups = len(portrait.build(NETWORK, "meta").denoiser.transformer_blocks) * 2 + 2  # sound's tokens, and the rest
    before = [row["sums"] for row in runs.weighed("filled-shared", 0)]
    assert before == [0, 0, groups, groups, 2 * groups, 2 * groups]


def test_clips_are_drawn_on_the_way_and_change_no_training(runs: Runs) -> None:
    assert runs.statuses("drawn") == [0, 0], runs.log("drawn")
    films = {
        path.relative_to(runs.output("drawn") / "validation")
        for path in runs.output("drawn").glob("validation/*/*.mp4")
    }
    assert {path.parent.name for path in films} == {"real", "step-1", "step-2"} and len(films) == 9
    facts = media.probe(next(runs.output("drawn").glob("validation/step-2/*.mp4")))
    assert facts.video is not None and (facts.video.width, facts.video.height) == (96, 64)
    assert facts.audio is not None


# What ends a run


def test_a_rank_that_dies_ends_the_others_with_a_word(runs: Runs) -> None:
    assert "GoneError: rank 0: another rank ended or does not answer" in runs.log("saves-killed")
    assert runs.seconds("saves-killed") < 30


def test_a_loss_that_is_not_finite_stops_all_ranks_before_anything_is_learnt(runs: Runs) -> None:
    assert runs.statuses("spoilt") == [1, 1]
    for rank in (0, 1):
        assert re.search(
            r"NonFiniteError: step 3: the loss of clip\d+-000000, clip\d+-000000 is not finite",
            runs.log("spoilt", rank),
        )
    assert (runs.output("spoilt") / "nonfinite-step-3" / "rank-1.safetensors").exists()
    assert len(losses(runs.output("spoilt"))) == 2


def test_samples_of_a_shard_that_vanishes_are_replaced_and_named(runs: Runs) -> None:
    assert runs.statuses("lost") == [0, 0]
    said = runs.log("lost") + runs.log("lost", 1)
    assert re.search(r"sample clip\d+-000000 is left out: train-\d+.*is not there", said)


def test_shards_that_are_not_there_are_refused_before_the_first_step(runs: Runs) -> None:
    assert runs.statuses("all-lost") == [1]
    assert "DataError" in runs.log("all-lost")
    assert "13 of 18 shards" in runs.log("all-lost")


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(runs: Runs) -> None:
    assert runs.statuses("odd") == [1, 1]
    assert "SettingsError: batch=3 does not divide among 2 ranks" in runs.log("odd")


# In this process: one rank in float32 needs no other


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made(tmp_path_factory.mktemp("packed"), samples=6, network=NETWORK, windows=2)


def train(*asked: str) -> list[str]:
    """Train; what was said."""
    said: list[str] = []
    trainer.train(read(TrainConfig, asked), said.append)
    return said


def test_other_settings_are_refused_by_name_unless_asked_for(shards: str, tmp_path: Path) -> None:
    train(*settings(shards, tmp_path, "steps=1"))
    with pytest.raises(TrainError, match=r"seed=4 \(was 3\); optimizer\.lr=0\.01 \(was 0\.001\)"):
        train(*settings(shards, tmp_path, "steps=2", "seed=4", "optimizer.lr=0.01"))
    with pytest.raises(TrainError, match="layers=1"):
        train(*settings(shards, tmp_path, "steps=2", network=small(layers=1)))
    with pytest.raises(TrainError, match="resume=true"):
        train(*settings(shards, tmp_path, "steps=2", "resume=false"))
    said = train(*settings(shards, tmp_path, "steps=2", "seed=4", "changed=true"))
    assert "goes on after step 1 with changes: seed=4 (was 3)" in said
    assert len(losses(tmp_path)) == 2


def test_settings_that_change_nothing_may_change(shards: str, tmp_path: Path) -> None:
    train(*settings(shards, tmp_path, "steps=1"))
    moved = shutil.copytree(shards, tmp_path / "moved")
    changed = [
        "micro=2",
        "state.every=1",
        "observe.every=1",
        "data.workers=1",
        "data.timeout_s=9",
        "optimizer.fused=false",
    ]
    train(*settings(str(moved), tmp_path, "steps=2", "data.incomplete=true", *changed))
    assert len(losses(tmp_path)) == 2


def test_other_samples_are_refused(shards: str, tmp_path: Path) -> None:
    train(*settings(shards, tmp_path, "steps=1"))
    others = made(tmp_path / "others", samples=6, network=NETWORK, seed=1)
    with pytest.raises(TrainError, match="the shards hold other samples"):
        train(*settings(others, tmp_path, "steps=2"))


def test_a_run_that_is_done_does_nothing_and_says_so(shards: str, tmp_path: Path) -> None:
    train(*settings(shards, tmp_path, "steps=1"))
    before = (tmp_path / "final" / "model.safetensors").stat()
    assert any(
        "is there already, ema weights of step 1" in line for line in train(*settings(shards, tmp_path, "steps=1"))
    )
    assert (tmp_path / "final" / "model.safetensors").stat() == before


def test_stage_2_goes_on_from_stage_1_and_leaves_it_as_it_is(shards: str, tmp_path: Path) -> None:
    deaf = small(**{"audio.injection": "none"})
    train(*settings(shards, tmp_path / "one", "steps=2", "stage=identity", "fresh=['*']", network=deaf))
    last = [
        "stage=audio",
        f"initial={tmp_path / 'one' / 'final'}",
        "fresh=[denoiser.audio_tokens.*, '*.audio_attention.*']",
    ]
    said = train(*settings(shards, tmp_path / "two", "steps=2", *last))
    assert any(line.startswith("starts from") and "made new" in line for line in said)
    one, two = weights(tmp_path / "one" / "final"), weights(tmp_path / "two" / "final")
    assert all(torch.equal(one[name], two[name]) for name in one)
    new = {name for name in two if name not in one}
    assert new == set(trained(NETWORK, "audio").names)
    assert two["denoiser.transformer_blocks.0.audio_attention.to_out.0.weight"].any()  # it began as zero


def test_stage_1_starts_from_cogvideox(shards: str, tmp_path: Path) -> None:
    deaf = small(**{"audio.injection": "none", "learned_positions": True})
    backbone = shaken(portrait.build(deaf.backbone()).denoiser)
    checkpoint.export(backbone, tmp_path / "cogvideox" / "transformer")
    asked = ["steps=2", "stage=identity", f"initial={tmp_path / 'cogvideox'}", "state.ema=0"]
    said = train(*settings(shards, tmp_path / "run", *asked, network=deaf))
    assert any(line.startswith("starts from") and "made new: " in line for line in said)
    final = weights(tmp_path / "run" / "final")
    learnt = set(trained(deaf, "identity").names)
    for name, tensor in backbone.state_dict().items():
        for ours in (f"denoiser.{name}", f"reference.{name}"):
            assert torch.equal(final[ours], tensor) == (ours not in learnt), ours


def test_stage_2_starts_from_the_published_weights(tmp_path: Path) -> None:
    network = small(compat="hallo3", learned_positions=True, heads=1, latent_frames=13)  # as its layout is read
    shards = made(tmp_path / "shards", samples=4, network=network)
    published = shaken(portrait.build(network)).state_dict()
    write_hallo3(tmp_path / "hallo3", network, published)
    asked = ["steps=2", "stage=audio", f"initial={tmp_path / 'hallo3'}", "state.ema=0"]
    said = train(*settings(shards, tmp_path / "run", *asked, network=network))
    assert f"starts from {tmp_path / 'hallo3'}" in said  # and nothing is made new
    final, learnt = weights(tmp_path / "run" / "final"), set(trained(network, "audio").names)
    assert {name for name in final if not torch.equal(final[name], published[name])} == learnt


def test_what_is_trained_without_a_gradient_is_an_error_that_names_it(shards: str, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"36 parameters .* denoiser\.transformer_blocks\.0\.audio_attention\.norm\.weight"
    ):
        train(*settings(shards, tmp_path, "stage=identity", "fresh=['*']", "trained=[denoiser.*]"))


def test_adapters_alone_are_trained_and_end_up_in_the_weights(shards: str, tmp_path: Path) -> None:
    said = train(*settings(shards, tmp_path, "steps=2", "lora.rank=2", "lora.patterns=['*.to_q']", "state.ema=0"))
    assert any("adapters of rank 2" in line for line in said)
    checkpoint.load(portrait.build(NETWORK, "meta"), tmp_path / "final")


def test_validation_is_recorded_on_the_way_and_at_the_end(shards: str, tmp_path: Path) -> None:
    train(*settings(shards, tmp_path, "steps=3", "validation.every=2", "validation.samples=3"))
    rows = {row["step"]: row for row in metrics(tmp_path) if "validation/loss" in row}
    assert list(rows) == [2, 3]
    assert rows[2]["validation/loss@t=500"] != rows[3]["validation/loss@t=500"]
    assert "validation/wrong_audio_gap" in rows[3]


def test_a_full_disk_is_told(shards: str, small_disk: Path) -> None:
    with pytest.raises(StateError, match=r"No space left on device.*go on"):
        train(*settings(shards, small_disk, "steps=2"))
    assert not list(small_disk.glob("checkpoints/step-*"))


def test_a_folder_without_shards_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no index\.json"):
        train(*settings(str(tmp_path), tmp_path / "run"))


def test_an_output_that_cannot_be_written_is_told(shards: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((TrainError, StateError), match="file"):
        train(*settings(shards, tmp_path / "file" / "run", "steps=1"))
