"""From a command line to a frozen dataclass: `[file.yaml] key=value …`, checked, with errors that help."""

from __future__ import annotations

import dataclasses
import difflib
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Config = TypeVar("Config")


class SettingsError(Exception):
    """A setting that does not exist, does not fit, or is not there: what, where, what to do."""


def option(default: Any, about: str, choices: Sequence[Any] = ()) -> Any:
    """A field of a config with its line of help; choices: the only values it may have."""
    notes = {"about": about, "choices": tuple(choices)}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=notes)
    return dataclasses.field(default=default, metadata=notes)


def required(about: str) -> Any:
    """A field of a config that the user must give."""
    return dataclasses.field(default=MISSING, metadata={"about": about})


def read(
    config: type[Config], arguments: Sequence[str], defaults: Callable[[Any], Path | None] | None = None
) -> Config:
    """The config that a command line asks for.

    Later wins: the dataclass's own values, the YAML file that `defaults` picks (a profile, say), YAML files among
    the arguments, `key=value` arguments. Raises SettingsError.
    """
    known = dict(describe(config))
    layers = [_layer(argument, known) for argument in arguments]
    asked = OmegaConf.merge(*layers) if layers else OmegaConf.create()
    if defaults is not None and (path := defaults(asked)) is not None:
        layers.insert(0, _load(path))
    for layer in layers:
        for key in _leaves(typing.cast(dict, OmegaConf.to_container(layer))):
            if key not in known:
                raise SettingsError(f"unknown setting {key!r}{_nearest(key, known)}")
    schema = OmegaConf.structured(config)
    OmegaConf.set_readonly(schema, False)
    try:
        merged = OmegaConf.merge(schema, *layers)
        missing = sorted(key for key in OmegaConf.missing_keys(merged))
        if missing:
            raise SettingsError("not given: " + ", ".join(f"{key}=… ({known[key].about})" for key in missing))
        for key, setting in known.items():
            if setting.choices and (value := OmegaConf.select(merged, key)) not in setting.choices:
                raise SettingsError(f"{key}={value!r}: there is {', '.join(map(str, setting.choices))}")
        return typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise SettingsError(f"{where}{str(error.msg or error).splitlines()[0]}") from error


def _nearest(key: str, known: Iterable[str]) -> str:
    """A hint at the setting that was meant."""
    last = {name.rsplit(".", 1)[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, 1, 0.6)
    near = near or [last[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], last, 1, 0.6)]
    return f"; did you mean {near[0]!r}?" if near else "; --help lists all settings"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of a config: its type, default, line of help, and the only values it may have, where they are few."""

    type: str
    default: Any
    about: str
    choices: tuple[Any, ...] = ()


def describe(config: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every key of a config, depth first, in the order of its fields."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from describe(typing.cast(type, kind), f"{name}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        kind_name = kind.__name__ if isinstance(kind, type) else str(kind)
        yield name, Setting(kind_name, default, field.metadata.get("about", ""), field.metadata.get("choices", ()))


def usage(config: type, about: str) -> str:
    """The --help text of a script: what it does, then every key with its default and meaning."""
    lines = [about.strip(), "", "Settings (key=value, or in a .yaml file given as an argument):"]
    for name, setting in describe(config):
        default = "required" if setting.default == MISSING else repr(setting.default)
        lines.append(f"  {name}={default}" + (f"\n      {setting.about}" if setting.about else ""))
    return "\n".join(lines)


def main(config: type[Config], about: str, work: Callable[[Config], int], **reading: Any) -> None:
    """Run a script's work on the config of its command line; exits 2 with one line when the settings are wrong."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` is no error
        print(usage(config, about))
        raise SystemExit(0)
    try:
        settings = read(config, sys.argv[1:], **reading)
    except SettingsError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(work(settings))


def _layer(argument: str, known: Mapping[str, Setting]) -> Any:
    """One argument of the command line as a config."""
    key, equals, value = argument.partition("=")
    if not (equals and all(part.isidentifier() for part in key.split("."))):
        if argument.endswith((".yaml", ".yml")):
            return _load(Path(argument))
        raise SettingsError(f"{argument!r}: neither key=value nor a .yaml file; --help lists all settings")
    layer = OmegaConf.create()
    # Text is taken as it stands: a path may hold anything that YAML would read as something else.
    if key in known and known[key].type.startswith("str"):
        OmegaConf.update(layer, key, None if value == "null" else value.replace("${", "\\${"))
        return layer
    try:
        OmegaConf.update(layer, key, yaml.safe_load(value))
    except yaml.YAMLError:
        raise SettingsError(f"{key}: {value!r} is not readable as YAML") from None
    return layer


def _load(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise SettingsError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error


def _leaves(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, node in layer.items():
        if isinstance(node, Mapping):
            yield from _leaves(node, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
