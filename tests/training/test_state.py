"""A run that was stopped is the run that was not; a checkpoint is whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model import portrait as plain
from model.layouts import CheckpointError
from model.settings import SettingsError
from tests.conftest import ROOT
from tests.model.networks import inputs, shaken, small
from tests.training.killed import MOMENTS
from tests.training.small_training import PLAIN, Run, predicted
from tests.training.worlds import together
from training import outcome, parallel, saved
from training.saved import Saved
from training.shares import Share, trainable
from training.state import Keeper, StateConfig, StateError, folder_of, latest_in

SCRIPTS = Path(__file__).parent
WORLD = parallel.join(PLAIN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank wrote after three steps, and what two ranks wrote and saw."""
    place = tmp_path_factory.mktemp("state")
    run = Run(WORLD, folder=place / "one")
    run.steps(0, 3)
    run.save(3)
    done = together(SCRIPTS / "ranks_state.py", str(place))
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seen.json").read_text())


def everything(run: Run) -> dict[str, torch.Tensor]:
    """All that a run's next step depends on."""
    state = {f"model.{name}": one.detach() for name, one in run.portrait.named_parameters()}
    for name, one in trainable(run.portrait).items():
        state |= {f"{key}.{name}": value for key, value in run.optimizer.state[one].items()}
    return state | {f"ema.{name}": one for name, one in run.ema.shadow.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_that_was_interrupted_is_to_the_bit_the_run_that_was_not(tmp_path: Path) -> None:
    whole = Run(WORLD)
    losses = whole.steps(0, 6)
    first = Run(WORLD, folder=tmp_path)
    assert first.steps(0, 3) == losses[:3]
    first.save(3)
    again = Run(WORLD, folder=tmp_path)
    assert again.restore() == {"note": "step 3"}
    assert again.steps(3, 6) == losses[3:]
    assert same(everything(again), everything(whole))


def test_and_so_it_is_on_two_ranks(folder: Path, seen: dict[str, Any]) -> None:
    found = seen["going on"]
    assert found["note"] == {"note": "step 3"}
    assert found["parts"] == found["whole"]
    left, right = (Saved(folder_of(folder / name, 6)) for name in ("whole", "two"))
    assert left.shapes == right.shapes
    assert all(torch.equal(left.whole(name), right.whole(name)) for name in left.shapes)


def test_one_rank_goes_on_from_what_two_wrote_and_two_from_what_one_did(folder: Path, seen: dict[str, Any]) -> None:
    run = Run(WORLD, folder=folder / "two")
    run.restore(3)
    written = Saved(folder_of(folder / "two", 3))
    assert written.contents["parts"] == 2
    assert all(torch.equal(written.whole(f"ema.{name}"), one) for name, one in run.ema.shadow.items())
    alone = torch.tensor(run.steps(3, 6))
    assert (alone - torch.tensor(seen["going on"]["whole"][3:])).abs().max() < 1e-6
    assert (torch.tensor(seen["going on"]["from one"]) - alone).abs().max() < 1e-6


def test_a_checkpoint_written_meanwhile_holds_what_was_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(WORLD, folder=tmp_path, state=StateConfig(asynchronous=True))
    run.steps(0, 2)
    before = {name: one.clone() for name, one in everything(run).items()}
    go_on, write = threading.Event(), saved.write_part

    def slowly(*given: Any) -> None:
        assert go_on.wait(30)
        write(*given)

    monkeypatch.setattr(saved, "write_part", slowly)
    go_on.set()
    run.save(1, wait=True)
    go_on.clear()
    run.save(2)
    run.steps(2, 4)
    assert run.keeper.latest() == 1
    go_on.set()
    run.keeper.wait()
    assert run.keeper.latest() == 2
    again = Run(WORLD, folder=tmp_path)
    again.restore()
    assert same(everything(again), before)


def test_killed_at_any_moment_of_a_save_the_run_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPTS / "killed.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    latest = []
    for moment in MOMENTS:
        run = Run(WORLD, folder=tmp_path / moment)
        latest.append(run.keeper.latest())
        assert run.restore()["note"] == f"step {latest[-1]}"
        run.save(5)
        left = {path.name for path in (tmp_path / moment).iterdir()}
        assert not {name for name in left if name.startswith(".")}, moment
        assert run.keeper.latest() == 5
    assert latest == [1, 1, 1, 1, 2]


def test_a_full_disk_is_said_and_the_last_checkpoint_stays_whole(small_disk: Path) -> None:
    network = small(layers=1, width=32, time_dim=16, text_dim=8, identity="none")  # 93 kB frozen, 180 kB a step
    run = Run(WORLD, stage="audio", network=network, folder=small_disk)
    for step in range(1, 20):
        try:
            run.save(step)
        except StateError as error:
            said = str(error)
            break
    assert re.search(rf"step-{step:08}: not written: .*No space left.*; step-{step - 1:08} is whole", said)
    assert latest_in(small_disk) == step - 1 >= 1
    assert Run(WORLD, stage="audio", network=network, folder=small_disk).restore()["note"] == f"step {step - 1}"
    assert not list(small_disk.glob(".step*"))


def test_a_rank_that_cannot_write_stops_all_and_is_named(folder: Path, seen: dict[str, Any]) -> None:
    first, second = (json.loads((folder / f"refused-{rank}.json").read_text()) for rank in (0, 1))
    for when in ("at once", "later"):
        assert "step-00000002: not written: rank 1 could not" in first[when]
        assert "rank 1: No space left on device; step-00000001 is whole" in second[when]
    assert seen["refused"] == {"left": ["frozen", "latest", "step-00000001"], "latest": 3}


def test_the_newest_checkpoints_stay_and_every_so_many(tmp_path: Path) -> None:
    run = Run(WORLD, stage="audio", folder=tmp_path, state=StateConfig(keep_last=2, keep_every=4, asynchronous=False))
    for step in range(1, 8):
        run.save(step)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{step:08}" for step in (4, 6, 7)]


def test_latest_may_be_pointed_back_and_is_not_believed_when_it_names_nothing(tmp_path: Path) -> None:
    run = Run(WORLD, stage="audio", folder=tmp_path, state=StateConfig(keep_last=2, asynchronous=False))
    assert run.keeper.latest() is None
    for step in (1, 2):
        run.save(step)
    (tmp_path / "latest").write_text("step-00000001\n")
    assert run.keeper.latest() == 1
    run.steps(0, 1)
    run.save(2)  # another step 2 than before
    assert run.keeper.latest() == 2
    for nonsense in ("step-00000009", "", "\xff", "../elsewhere"):
        (tmp_path / "latest").write_text(nonsense, encoding="latin-1")
        assert run.keeper.latest() == 2


def test_what_is_frozen_is_written_once(tmp_path: Path) -> None:
    run = Run(WORLD, stage="audio", folder=tmp_path)
    run.save(1)
    written = (tmp_path / "frozen" / "state.json").stat().st_mtime_ns
    run.save(2)
    assert (tmp_path / "frozen" / "state.json").stat().st_mtime_ns == written
    held = set(Saved(folder_of(tmp_path, 2)).shapes)
    assert {name for name in held if name.startswith("model.")} == {f"model.{name}" for name in run.names}


def test_what_another_run_left_frozen_is_not_taken_over(tmp_path: Path) -> None:
    Run(WORLD, stage="audio", folder=tmp_path).save(1)
    shutil.rmtree(folder_of(tmp_path, 1))
    other = Run(WORLD, stage="audio", folder=tmp_path)
    shaken(other.portrait, seed=9)
    other.save(1)
    again = Run(WORLD, stage="audio", folder=tmp_path)
    again.restore()
    assert torch.equal(again.portrait.denoiser.proj_out.weight, other.portrait.denoiser.proj_out.weight)


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path) -> None:
    run = Run(WORLD, stage="audio", folder=tmp_path)
    run.save(1)
    place = folder_of(tmp_path, 1)
    part, contents = place / "part-00000.safetensors", place / "state.json"
    content, about = part.read_bytes(), json.loads(contents.read_text())
    damages: list[tuple[str, Any]] = [
        (r"part-00000.safetensors: damaged", lambda: part.write_bytes(content[: len(content) // 2])),
        (r"part-00000.safetensors: damaged", lambda: part.write_bytes(b"\x80\x04cos\nsystem\n")),
        (r"part-00000.safetensors: no such file", part.unlink),
        (r"part-00001.safetensors: no such file", lambda: contents.write_text(json.dumps({**about, "parts": 2}))),
        (r"of version 2; this program reads 1", lambda: contents.write_text(json.dumps({**about, "version": 2}))),
        (r"state.json: not readable", lambda: contents.write_text("{")),
        (r"state.json: not readable", lambda: contents.write_text('{"format": "else", "parts": 1, "version": 1}')),
    ]
    for said, damage in damages:
        damage()
        with pytest.raises(StateError, match=said + r".*training goes on from the checkpoint before"):
            run.restore(1)
        part.write_bytes(content)
        contents.write_text(json.dumps(about))
    run.restore(1)


def test_rows_that_are_missing_or_there_twice_are_found(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    kinds = {"gap": [(0, 2), (3, 6)], "end": [(0, 4)], "twice": [(0, 4), (3, 6)], "good": [(4, 6), (0, 4)]}
    for name, parts in kinds.items():
        place = tmp_path / name
        place.mkdir()
        for number, (start, stop) in enumerate(parts):
            share = Share(whole[start:stop], range(start, stop), (6, 2), True)
            saved.write_part(place, number, {"one": share})
        saved.write_contents(place, len(parts), {})
        if name != "good":
            with pytest.raises(StateError, match="the rows of one are not all there, or some are there twice"):
                Saved(place)
    good = Saved(tmp_path / "good")
    for wanted in (range(6), range(3, 5), range(1, 2), range(5, 6), range(4, 4), range(6, 6)):
        assert torch.equal(good.rows("one", wanted), whole[wanted.start : wanted.stop])


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    Run(WORLD, stage="audio", folder=tmp_path).save(1)
    other = Run(WORLD, stage="identity", folder=tmp_path)
    with pytest.raises(StateError, match=r"of another network, or of a run that trains other parameters: model.*more"):
        other.restore()
    wider = Run(WORLD, stage="audio", folder=tmp_path, network=small(**{"audio.inner": 64}))
    with pytest.raises(StateError, match=r"is \[\d+, \d+\], not"):
        wider.restore()
    with pytest.raises(StateError, match="no checkpoint to go on from"):
        Run(WORLD, folder=tmp_path / "nowhere").restore()


def test_training_at_no_rate_and_exporting_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    run = Run(WORLD, folder=tmp_path / "run", lr=0.0)
    shaken(run.portrait)
    given = inputs(run.network)
    before = predicted(run.portrait, given)
    run.steps(0, 2)
    run.save(2)
    outcome.export(outcome.found(tmp_path / "run"), tmp_path / "network")
    network = plain.build(run.network, "meta")
    loaded = checkpoint.load(network, tmp_path / "network")
    assert loaded.checkpoint.note == {"step": 2, "weights": "trained"}
    assert torch.equal(predicted(network, given), before)


def test_the_average_is_exported_when_asked_for(folder: Path, tmp_path: Path) -> None:
    step = folder_of(folder / "two", 3)
    trained, average = (outcome.network(step, weights) for weights in ("trained", "ema"))
    state = Saved(step)
    for name in trained.tensors:
        kind = "ema" if f"ema.{name}" in state.shapes else "model"
        source = state if f"{kind}.{name}" in state.shapes else Saved(folder / "two" / "frozen")
        assert torch.equal(average.tensors[name], source.whole(f"{kind}.{name}")), name
    assert not torch.equal(trained.tensors["denoiser.proj_out.weight"], average.tensors["denoiser.proj_out.weight"])
    half = outcome.network(step, dtype=torch.bfloat16).tensors["denoiser.proj_out.weight"]
    assert torch.equal(half, trained.tensors["denoiser.proj_out.weight"].bfloat16())


def test_on_the_command_line_a_run_becomes_diffusers_and_ours(folder: Path, tmp_path: Path) -> None:
    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "training" / "export.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = ran(f"run={folder / 'two'}", f"target={tmp_path / 'cogvideox'}", "layout=diffusers", "weights=ema")
    assert done.returncode == 0, done.stderr
    assert "ema weights of step-00000006, diffusers layout" in done.stdout and "left behind" in done.stdout
    published = checkpoint.read(tmp_path / "cogvideox")
    wanted = outcome.network(folder_of(folder / "two", 6), "ema").tensors
    assert published.layout == "diffusers" and len(published.tensors) > 20
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in published.tensors.items())
    lost = ran(f"run={tmp_path}", f"target={tmp_path / 'x'}")
    assert lost.returncode == 1
    assert lost.stderr.count("\n") == 1 and "no checkpoint of training, and none in it" in lost.stderr


def test_a_run_without_an_average_says_so(tmp_path: Path) -> None:
    run = Run(WORLD, stage="audio", folder=tmp_path)
    Keeper(tmp_path, StateConfig(asynchronous=False), WORLD).save(1, run.portrait)
    with pytest.raises(StateError, match=r"holds no average.*take weights=trained"):
        outcome.network(folder_of(tmp_path, 1), "ema")
    with pytest.raises(CheckpointError, match="is there already"):
        outcome.export(folder_of(tmp_path, 1), tmp_path)


def test_settings_that_make_no_sense_are_refused() -> None:
    for name, value in {"every": -1, "keep_last": 0, "keep_every": -1, "ema": 1.0}.items():
        with pytest.raises(SettingsError, match=f"state.{name}="):
            dataclasses.replace(StateConfig(), **{name: value}).check()
    assert [step for step in range(9) if StateConfig(every=4).due(step)] == [4, 8]
    assert not StateConfig(every=0).due(0)
