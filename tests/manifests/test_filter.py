"""manifests/filter.py as its users run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from manifests.explanation import explain
from manifests.recipe import asked
from manifests.schema import Failure
from manifests.selection import SelectionError, read
from manifests.store import ManifestStore
from tests.manifests.synthetic import clips, lay

ROOT = Path(__file__).resolve().parents[2]
NO_WEIGHTS = ["sync_c, sync_d, sync_offset: score.syncnet names no weights"]


def run(*arguments: str, status: int = 0) -> str:
    """What the script prints: on the error stream, where it fails."""
    done = subprocess.run(
        [sys.executable, "manifests/filter.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stderr if status and not done.stdout else done.stdout


@pytest.fixture
def output(tmp_path) -> str:
    table = clips(
        video_id=[f"v{n // 2}" for n in range(8)],
        status=["scored"] * 6 + ["stopped", "failed"],
        level=[-10.0, -20.0, -30.0, -40.0, -50.0, None, None, None],
        unmeasured=[NO_WEIGHTS] * 5
        + [[*NO_WEIGHTS, "level, clipped: no sound"], ["the picture: not looked at, as …"], []],
        path=["/raw/film.mp4"] * 8,
        binding=["speaks"] * 4 + ["dubbed"] * 2 + [None] * 2,
    )
    return lay(tmp_path, table).output


def test_a_selection_is_printed_written_and_repeated(output):
    said = run(f"output={output}", "where=[level>=-40,binding=speaks]", "name=loud", "validation=0.25")
    lines = [line.split() for line in said.splitlines()]
    assert ["candidates", "8", "4.8"] in lines
    assert ["level>=-40", "-2", "-1.2", "-2", "-1.2", "1"] in lines
    assert ["chosen", "4", "2.4"] in lines
    assert f"selection: {output}/selections/loud.parquet" in said
    assert read(output, "loud").funnel.chosen_clips == 4
    assert "the same as 'loud' was" in run(f"output={output}", "repeat=loud")


def test_a_repeated_selection_that_differs_says_so_and_is_written_only_under_a_name(output):
    run(f"output={output}", "where=[level>=-40]", "name=loud")
    lay(output, clips(video_id=["v9"], clip_id=["new"], level=[0.0]))
    said = run(f"output={output}", "repeat=loud", status=1)
    assert "not the same as 'loud' was" in said and "1 clips are new" in said
    assert read(output, "loud").clips.num_rows == 4
    run(f"output={output}", "repeat=loud", "name=louder", status=1)
    assert read(output, "louder").clips.num_rows == 5


def test_bounds_of_one_s_own_never_take_the_recipe_s_name(output, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("about: mine\nlimits:\n  - {bound: level>=-45, source: ours}\n")
    run(f"output={output}", f"recipe={own}")
    run(f"output={output}", f"recipe={own}", "where=[binding=speaks]")
    names = sorted(path.stem for path in (Path(output) / "selections").iterdir())
    assert names[0] == "own" and names[1].startswith("own-") and len(names) == 2


def test_a_dry_run_writes_nothing(output):
    assert "chosen" in run(f"output={output}", "where=[level>=-40]", "dry_run=true")
    assert not (Path(output) / "selections").exists()


def test_the_threshold_for_so_many_hours_is_found_and_said(output):
    said = run(f"output={output}", "keep_hours=0.02", "along=level>=", "dry_run=true")
    assert "note: level>=-20 keeps 0.02 hours" in said


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["where=[levle>=3]"], 2, "did you mean 'level'?"),
        (["recipe=latentsnyc"], 2, "did you mean 'latentsync'?"),
        ([], 2, "nothing is asked for: give where="),
        (["wher=[level>=3]"], 2, "did you mean 'where'?"),
        (["recipe=latentsync"], 1, "sync_c is null in all 6 scored clips: score.syncnet names no weights (6)"),
        (["where=[level>=3]"], 1, "nothing is left of 8 clips: level>=3 alone removes 6"),
        (["repeat=loud"], 1, "there is none"),
        (["explain=00", "where=[level>=-40]"], 1, "no clip '00' among the 8"),
    ],
)
def test_what_cannot_be_done_ends_with_one_line_that_helps(output, arguments, status, said):
    error = run(f"output={output}", *arguments, status=status)
    assert said in error and len(error.splitlines()) == 1


def test_help_has_every_setting():
    assert "keep_hours" in run("--help")


def test_a_clip_is_explained_bound_by_bound(output):
    said = run(f"output={output}", "where=[binding=speaks,level>=-40]", f"explain={4:016x}")
    assert [line.split() for line in said.splitlines()] == [
        ["clip", f"{4:016x}:", "/raw/film.mp4", "from", "0.000", "to", "0.000", "s"],
        ["binding=speaks", "REMOVES", "dubbed"],
        ["level>=-40", "REMOVES", "-50"],
        ["removed", "by", "binding=speaks"],
    ]


def told(output: str, clip: int, *texts: str):
    return explain(ManifestStore(output), asked(texts), f"{clip:016x}")


def test_a_clip_that_every_bound_keeps_is_chosen(output):
    assert told(output, 3, "level>=-40").lines()[-1] == "chosen: every bound keeps it"


def test_a_value_that_is_not_there_is_explained_by_why_it_could_not_be_measured(output):
    assert told(output, 5, "level>=-40").verdicts[0].why == "no sound"


def test_a_clip_that_was_never_measured_is_explained_by_its_status(output):
    assert "the cascade: the picture: not looked at" in told(output, 6, "level>=-40").removed_by
    failure = Failure("f", "score", f"{7:016x}", "/raw/film.mp4", 0, 0, "MediaError", "cannot be decoded", 1, "")
    ManifestStore(output).write(Failure, "f", [failure])
    assert told(output, 7, "level>=-40").removed_by == "a failure of its scoring: cannot be decoded"


def test_what_never_was_a_candidate_is_not_found_with_a_hint(output):
    with pytest.raises(SelectionError, match=r"did you mean 0000000000000000 or .*the table `losses`"):
        explain(ManifestStore(output), asked([]), "00000000")
