"""Recipes: lists of bounds on the clips' columns, each with where its number comes from.

A recipe is a YAML file of manifests/recipes, or one of your own:

  about: what it is for
  limits:
    - {bound: sync_c>=3, source: LatentSync (arXiv 2412.09262)}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from manifests.bounds import Bound, BoundError, bound
from manifests.schema import Clip, schema, short_hash

FOLDER = Path(__file__).parent / "recipes"
ASKED = "the command line"
"""The source of a bound that was typed, not published."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class RecipeError(ValueError):
    """A recipe that is not there or cannot be read: which, what to do."""


@dataclass(frozen=True)
class Limit:
    """A bound, and where its number comes from: a publication, `ours`, or the command line."""

    bound: Bound
    source: str


@dataclass(frozen=True)
class Recipe:
    """What a clip has to be like, bound by bound, in the order in which the funnel counts them."""

    name: str
    about: str
    limits: tuple[Limit, ...]

    @property
    def hash(self) -> str:
        """16 hex digits that name the bounds, in their order; name, sources and description do not count."""
        return short_hash(*(str(limit.bound) for limit in self.limits))

    @property
    def columns(self) -> list[str]:
        """The columns that are bounded, each once."""
        return list(dict.fromkeys(limit.bound.column for limit in self.limits))


def load(name_or_path: str, columns: pa.Schema | Iterable[str] | None = None) -> Recipe:
    """A recipe of this repository by its name, or one in a file (`.yaml`).

    columns: what may be bounded: a schema, or names out of the clips' table (all of it, when None). Raises
    RecipeError.
    """
    own = name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path).expanduser() if own else FOLDER / f"{name_or_path}.yaml"
    if not own and path not in _shipped():
        raise RecipeError(f"no recipe {name_or_path!r}: {_nearest(name_or_path)}; or name a .yaml file")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error
    if not _NAME.fullmatch(path.stem):
        raise RecipeError(f"{path}: a recipe's file name is its name: letters, digits, dots, dashes")
    try:
        return parsed(path.stem, content, columns)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def parsed(name: str, content: Any, columns: pa.Schema | Iterable[str] | None = None) -> Recipe:
    """The recipe that a YAML or JSON document says. Raises RecipeError."""
    if not (isinstance(content, dict) and isinstance(content.get("limits"), list)):
        raise RecipeError("a recipe has `about`, a text, and `limits`, a list of {bound: …, source: …}")
    if unknown := sorted(map(str, content.keys() - {"about", "limits"})):
        raise RecipeError(f"unknown entry {unknown[0]!r}: a recipe has `about` and `limits`")
    limits, kinds = [], _kinds(columns)
    for entry in content["limits"]:
        if not (isinstance(entry, dict) and entry.keys() == {"bound", "source"} and entry["source"]):
            raise RecipeError(f"{entry!r}: each limit has a `bound` and the `source` of its number, and nothing else")
        limits.append(_limit(str(entry["bound"]), str(entry["source"]), kinds))
    return Recipe(name, str(content.get("about", "")).strip(), tuple(limits))


def asked(texts: Iterable[str], columns: pa.Schema | Iterable[str] | None = None) -> Recipe:
    """The bounds of a command line as a recipe without a name. Raises RecipeError."""
    kinds = _kinds(columns)
    return Recipe("", "", tuple(_limit(text, ASKED, kinds) for text in texts))


def joined(recipes: Sequence[Recipe]) -> Recipe:
    """All that several recipes ask for; a bound that two of them ask for counts once, as the first has it."""
    limits: dict[Bound, Limit] = {}
    for recipe in recipes:
        for limit in recipe.limits:
            limits.setdefault(limit.bound, limit)
    name = "+".join(recipe.name for recipe in recipes if recipe.name)
    return Recipe(name, "; ".join(recipe.about for recipe in recipes if recipe.about), tuple(limits.values()))


def document(recipe: Recipe) -> dict[str, Any]:
    """The recipe as its file has it: what `parsed` reads."""
    limits = [{"bound": str(limit.bound), "source": limit.source} for limit in recipe.limits]
    return {"about": recipe.about, "limits": limits}


def _kinds(columns: pa.Schema | Iterable[str] | None) -> pa.Schema:
    clips = schema(Clip)
    if columns is None:
        return clips
    return columns if isinstance(columns, pa.Schema) else pa.schema([clips.field(name) for name in columns])


def _limit(text: str, source: str, kinds: pa.Schema) -> Limit:
    try:
        return Limit(bound(text, kinds), source)
    except BoundError as error:
        raise RecipeError(str(error)) from error


def _shipped() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def names() -> list[str]:
    """The recipes of this repository."""
    return [path.stem for path in _shipped()]


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, names(), 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}there is {', '.join(names())}"
