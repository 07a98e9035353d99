"""What a run says of itself: readable while it runs, exact afterwards, and silent about what nobody knows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.settings import SettingsError
from tests.training.worlds import alone
from training.cost import Work
from training.devices import Peak, named, peak
from training.observe import METRICS, ObserveConfig, Observer, metrics

WORK = Work(tokens=1000, model=4 * 10**9, hardware=5 * 10**9)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def observer(folder: Path, out: io.StringIO, **changes: object) -> Observer:
    known = {"config": ObserveConfig(every=2, tensorboard=False), "peak": Peak(1e10, "stated"), "steps": 4, **changes}
    return Observer(known.pop("config"), folder, alone(), WORK, known.pop("peak"), out=out, **known)  # type: ignore[arg-type]


def run(record: Observer, steps: range, **changes: object) -> None:
    for step in steps:
        given = {"waited_s": 0.25, "seconds": 1.0, "tokens": 1000, "skipped": {}, **changes}
        record.step(step, 1 / step, 0.5, 1e-3, **given)  # type: ignore[arg-type]
    record.close()


def test_every_step_is_a_line_of_the_record_and_some_are_lines_on_the_console(tmp_path: Path) -> None:
    out = io.StringIO()
    run(observer(tmp_path, out), range(1, 5))
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert rows[0]["data_wait"] == 0.25 and rows[0]["tokens_per_s"] == 1000
    assert rows[0]["mfu"] == pytest.approx(0.4) and rows[0]["hfu"] == pytest.approx(0.5)
    assert "memory_bytes" not in rows[0] and rows[1]["memory_bytes"] > 50e6  # a process with torch in it
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 2/4  loss 0.7500  gradient 0.5  lr 1.00e-03  1 s  1,000 tokens/s  MFU 40.0%")
    assert "data 25.0%" in lines[0] and lines[0].endswith("2 s left") and "left" not in lines[1]


def test_without_a_terminal_there_are_plain_lines_alone(tmp_path: Path) -> None:
    plain, terminal = io.StringIO(), Terminal()
    run(observer(tmp_path / "a", plain), range(1, 5))
    run(observer(tmp_path / "b", terminal), range(1, 5))
    assert "\r" not in plain.getvalue() and "\x1b" not in plain.getvalue()
    assert terminal.getvalue().count("\r\x1b[Kstep 1/4") == 1
    assert [line for line in terminal.getvalue().replace("\r\x1b[K", "\n").splitlines() if "tokens/s" in line]


def test_utilisation_of_an_unknown_device_is_left_out(tmp_path: Path) -> None:
    out = io.StringIO()
    run(observer(tmp_path, out, peak=None), range(1, 3))
    assert "mfu" not in metrics(tmp_path)[0]
    assert "MFU 4" not in out.getvalue() and "observe.device_tflops" in out.getvalue()


def test_a_share_of_what_was_timed_is_not_called_mfu(tmp_path: Path) -> None:
    out = io.StringIO()
    run(observer(tmp_path, out, peak=peak(torch.device("cpu"), "float32")), range(1, 3))
    assert {"mfu_of_measured", "hfu_of_measured"} <= metrics(tmp_path)[0].keys()
    assert "mfu" not in metrics(tmp_path)[0] and "was timed at" in out.getvalue()


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce GTX 1080", None),
        ("Quadro RTX 4000", None),
    ],
)
def test_what_a_device_does_at_most_is_known_by_its_name(name: str, tflops: float | None) -> None:
    assert named(name) == (None if tflops is None else tflops * 1e12)


def test_what_is_stated_wins_over_the_table() -> None:
    assert peak(torch.device("cpu"), "bfloat16", 123.0) == Peak(123e12, "stated")


def test_a_run_that_goes_on_drops_what_its_record_says_of_later_steps(tmp_path: Path) -> None:
    run(observer(tmp_path, io.StringIO()), range(1, 5))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "loss": 0.')  # where a kill cut it off
    assert len(metrics(tmp_path)) == 4
    run(observer(tmp_path, io.StringIO(), step=2), range(3, 5))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]
    assert all(json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines())


def test_tensorboard_gets_the_same_numbers_also_after_going_on(tmp_path: Path) -> None:
    config = ObserveConfig(every=2)
    run(observer(tmp_path, io.StringIO(), config=config), range(1, 5))
    record = observer(tmp_path, io.StringIO(), config=config, step=2)
    record.notes({"wrong_audio_gap": 0.25}, 3)
    run(record, range(3, 4))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    losses = [(event.step, event.value) for event in board.Scalars("loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [(event.step, event.value) for event in board.Scalars("wrong_audio_gap")] == [(3, 0.25)]


def test_a_number_that_is_not_finite_leaves_the_record_readable(tmp_path: Path) -> None:
    record = observer(tmp_path, io.StringIO())
    record.note("loss@t=100", float("nan"), 7)
    assert metrics(tmp_path) == [{"step": 7, "loss@t=100": None}]


def test_a_sample_left_out_is_named_once_and_counted(tmp_path: Path) -> None:
    out = io.StringIO()
    run(observer(tmp_path, out), range(1, 5), skipped={"clip-000049": "latent: 3 bytes are missing"})
    assert out.getvalue().count("sample clip-000049 is left out: latent: 3 bytes are missing") == 1
    assert metrics(tmp_path)[-1]["skipped"] == 1 and "1 samples left out" in out.getvalue()


def test_a_full_disk_ends_the_record_and_not_the_training(small_disk: Path) -> None:
    out = io.StringIO()
    record = observer(small_disk, out)
    (small_disk / "filler").write_bytes(b"x" * 380_000)
    run(record, range(1, 400))
    said = [line for line in out.getvalue().splitlines() if "cannot be written" in line]
    assert said == [f"{small_disk / METRICS}: cannot be written (No space left on device); training goes on without it"]
    assert "step 398/4" in out.getvalue()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"every": 0}, "observe.every=0"), ({"assumed_mfu": 40}, "a share"), ({"device_gb": -1}, "observe.device_gb=-1")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ObserveConfig(**settings).check()  # type: ignore[arg-type]


def test_without_tensorboard_it_says_how_to_do_without(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from training.observe import _board\nfrom model.settings import SettingsError\nfrom pathlib import Path\n"
        "try:\n    _board(Path('x'), 0)\nexcept SettingsError as error:\n    print(error)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert "observe.tensorboard=false" in done.stdout
