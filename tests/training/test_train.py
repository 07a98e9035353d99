"""The script itself, as it is called: its settings, its words, its exit status, and torchrun."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.config import preset
from model.settings import SettingsError, describe, read
from tests.training.packed import made
from tests.training.runs import NETWORK, losses, settings
from tests.training.worlds import ROOT
from training.config import NEUTRAL, NetworkConfig, TrainConfig, different, flat
from training.stages import trained

SCRIPT = ROOT / "training" / "train.py"
CONFIGS = sorted((ROOT / "training" / "configs").glob("*.yaml"))
GIVEN = ["data.shards=shards", "output=run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def config(*asked: str) -> TrainConfig:
    return read(TrainConfig, [*GIVEN, *asked])


# Settings


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_settings_that_are_shipped_are_whole_and_fit_their_stage(path: Path) -> None:
    found = read(TrainConfig, [str(path), *GIVEN])
    found.check()
    names = trained(found.network.sizes(), found.stage, found.trained).names
    assert names


def test_the_paper_is_what_stage_1_and_2_are_set_to() -> None:
    for stage, name in (("identity", "stage1"), ("audio", "stage2")):
        found = read(TrainConfig, [str(ROOT / f"training/configs/{name}.yaml"), *GIVEN])
        assert (found.stage, found.steps, found.optimizer.lr) == (stage, 20_000, 1e-5)
        assert (found.data.drop_audio, found.data.mask_motion) == (0.05, 0.25)
        assert found.network.sizes().width == 3072
        assert found.network.sizes().compat == ""


def test_a_full_size_stage_wants_weights_to_start_from() -> None:
    stage1 = str(ROOT / "training/configs/stage1.yaml")
    with pytest.raises(SettingsError, match=r"stage=identity .* initial=… names its weights"):
        read(TrainConfig, [stage1, *GIVEN]).check_start()
    for way in ("initial=weights", "fresh=['*']", "stage=all"):
        read(TrainConfig, [stage1, *GIVEN, way]).check_start()


def test_any_setting_of_the_network_may_be_changed() -> None:
    changes = "network.changes=[audio.injection=self, layers=6, compat=, learned_positions=true]"
    expected = preset("tiny", **{"audio.injection": "self", "layers": 6, "learned_positions": True})
    assert config(changes).network.sizes() == expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("layrs=6", "did you mean 'layers'"),
        ("layers", "not of the form"),
        ("layers=many", "int is expected"),
        ("learned_positions=1", "bool is expected"),
        ("audio.injection=loud", "there is none, cross"),
        ("heads=3", "does not divide"),
    ],
)
def test_a_change_of_the_network_that_cannot_be_is_told(change: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        NetworkConfig(changes=[change]).sizes()


@pytest.mark.parametrize(
    "asked",
    [
        "steps=-1",
        "batch=0",
        "micro=-1",
        "optimizer.lr=-1",
        "optimizer.beta2=1",
        "output=s3://bucket/run",
        "objective.face_weight=-1",
        "data.drop_text=2",
        "state.keep_last=0",
        "validation.levels=[1000]",
        "observe.every=0",
        "lora.rank=-1",
        "parallel.context=0",
    ],
)
def test_settings_that_make_no_sense_are_named(asked: str) -> None:
    with pytest.raises(SettingsError, match=asked.partition("=")[0].replace(".", r"\.")):
        config(asked).check()


def test_the_learning_rate_rises_and_stays() -> None:
    rates = [config("optimizer.warmup=4", "optimizer.lr=8").optimizer.lr_at(step) for step in range(6)]
    assert rates == [2, 4, 6, 8, 8, 8]
    assert config("optimizer.warmup=0", "optimizer.lr=8").optimizer.lr_at(0) == 8


def test_every_setting_counts_when_a_run_goes_on_but_those_that_change_nothing() -> None:
    known = [name for name, _ in describe(TrainConfig)]
    assert list(flat(config())) == known
    for pattern in NEUTRAL:
        assert any(name == pattern or name.startswith(pattern.removesuffix("*")) for name in known), pattern
    neutral = ("steps=3", "observe.every=3", "data.workers=5", "data.incomplete=true", "optimizer.fused=false")
    now = flat(config("optimizer.lr=1", "parallel.dtype=float32", *neutral))
    assert different(flat(config()), now) == ["optimizer.lr=1.0 (was 1e-05)", "parallel.dtype=float32 (was bfloat16)"]


# The script


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made(tmp_path_factory.mktemp("packed"), samples=8, network=NETWORK)


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str, str]]:
    """Runs the script, in this process: how it ended, and what it said on either stream."""

    def run(*asked: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *asked])
        monkeypatch.setattr(sys, "path", ["", *sys.path[1:]])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run


def test_a_setting_that_does_not_exist_ends_the_script_with_one_line(
    script: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    status, _, said = script("training/configs/tiny.yaml", "data.shards=x", f"output={tmp_path}", "optimizer.rl=1")
    assert status == 2
    assert said.splitlines() == ["train.py: unknown setting 'optimizer.rl'; did you mean 'optimizer.lr'?"]


def test_a_plan_is_made_without_training(
    script: Callable[..., tuple[Any, str, str]], shards: str, tmp_path: Path
) -> None:
    status, said, problems = script(*settings(shards, tmp_path / "run", "plan=true"))
    assert status == 0, problems
    assert "stage all: trains" in said
    assert not (tmp_path / "run").exists()


def test_torchrun_asked_to_stop_leaves_a_checkpoint_to_go_on_from(shards: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    asked = settings(shards, tmp_path, "steps=100000", "observe.every=1")
    with subprocess.Popen(
        [*torchrun, *asked], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 60
        while "step 3/" not in (line := run.stdout.readline()):  # type: ignore[union-attr]
            assert line and time.monotonic() < deadline
        run.send_signal(signal.SIGTERM)
        out, _ = run.communicate(timeout=60)
    assert "asked to stop: saved after step" in out
    done = int(out.partition("saved after step ")[2].partition(";")[0])
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == f"step-{done:08}"
    assert len(losses(tmp_path)) == done
