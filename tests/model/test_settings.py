"""Settings: from a command line to a frozen dataclass, with errors that help."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from model.settings import SettingsError, option, read, required, usage


@dataclass(frozen=True)
class Inner:
    count: int = option(3, "how many")
    name: str | None = option(None, "a name")
    sizes: list[float] = option([], "some sizes")


@dataclass(frozen=True)
class Config:
    input: str = required("where from")
    flag: bool = option(False, "whether")
    mode: str = option("fast", "how", ("fast", "slow"))
    inner: Inner = field(default_factory=Inner)


def test_later_arguments_win_over_files_and_files_over_defaults(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("flag: true\ninner: {count: 5, sizes: [1, 2]}\n")
    config = read(Config, [str(file), "input=/a", "inner.count=7"])
    assert config == Config("/a", True, "fast", Inner(7, None, [1.0, 2.0]))


@pytest.mark.parametrize("path", ["/a b.mp4", "/${x}: [y].mp4", "a=b", "{", "'", "null.mp4", "1e5", "/a\nb"])
def test_text_is_taken_as_it_stands(path):
    assert read(Config, [f"input={path}"]).input == path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inptu=3"], "unknown setting 'inptu'; did you mean 'input'"),
        (["input=a", "inner.cuont=3"], "did you mean 'inner.count'"),
        (["input=a", "count=3"], "did you mean 'inner.count'"),
        ([], "not given: input=… \\(where from\\)"),
        (["input=a", "inner.count=many"], "inner.count: .*'many'.*Integer"),
        (["input=a", "inner=3"], "inner"),
        (["input=a", "loose"], "'loose': neither key=value nor a .yaml file"),
        (["input=a", "mode=fats"], "mode='fats': there is fast, slow"),
        (["input=a", "missing.yaml"], "missing.yaml: no such file"),
    ],
)
def test_a_wrong_setting_is_named(arguments, said):
    with pytest.raises(SettingsError, match=said):
        read(Config, arguments)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match=r"x\.yaml: not readable as YAML"):
        read(Config, [str(tmp_path / "x.yaml")])


def test_help_lists_every_key_with_its_default_and_meaning():
    text = usage(Config, "A script.")
    assert "input=required\n      where from" in text and "inner.count=3\n      how many" in text
