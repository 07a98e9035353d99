"""A selection: the clips that a recipe keeps, with the recipe, the funnel and all that it takes to make it again.

It is one Parquet file, `<output>/selections/<name>.parquet`: the clips' columns and `split`, rows in the order of
`clip_id`; everything else is JSON in the file's metadata. The same manifests and settings give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from manifests import recipe
from manifests.candidates import Funnel, Lost, SelectionError
from manifests.choice import SPLIT, Options, chosen
from manifests.recipe import Recipe
from manifests.schema import VERSION, Clip, Video, columns, schema
from manifests.store import ManifestError, ManifestStore, locate, publish

__all__ = ["Funnel", "Lost", "Options", "Selection", "SelectionError", "again", "choose", "read", "write"]

_NOTES = b"selection"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_PLAIN = Options()


@dataclass(frozen=True)
class Selection:
    """clips: all columns of the table `clips`, and `split`. made: what it was made from, and with which versions.

    notes: what a person should know who reads the funnel; they are not written.
    """

    name: str
    recipe: Recipe
    funnel: Funnel
    clips: pa.Table
    made: dict[str, Any]
    notes: tuple[str, ...] = ()


def choose(store: ManifestStore, wanted: Recipe, options: Options = _PLAIN, name: str = "") -> Selection:
    """The clips of the manifests that keep every bound of a recipe. Nothing is written.

    Raises SelectionError where a column has no value at all, nothing is left, or what the options need is not there.
    """
    found = chosen(store, wanted, options)
    made = {
        "schema_version": VERSION,
        "manifests": _version_of(store),
        "options": dataclasses.asdict(options),
        "versions": {library: _version(library) for library in ("talkreel", "duckdb", "pyarrow", "numpy")},
    }
    return Selection(name or wanted.name, found.recipe, found.funnel, found.clips, made, found.notes)


def write(output: str, selection: Selection) -> str:
    """Write a selection whole or not at all, in place of one of the same name; returns where.

    Raises SelectionError when the name is none or it cannot be written.
    """
    filesystem, path = _place(output, selection.name)
    notes = {
        "recipe": {"name": selection.recipe.name, **recipe.document(selection.recipe), "hash": selection.recipe.hash},
        "funnel": dataclasses.asdict(selection.funnel),
        "made": selection.made,
    }
    metadata = {**(selection.clips.schema.metadata or {}), _NOTES: json.dumps(notes, sort_keys=True).encode()}
    sink = pa.BufferOutputStream()
    clips = selection.clips.replace_schema_metadata(metadata)
    pq.write_table(clips, sink, compression="zstd", write_page_checksum=True)
    try:
        publish(filesystem, path, sink.getvalue())
    except ManifestError as error:
        raise SelectionError(str(error)) from error
    return path


def read(output: str, name: str) -> Selection:
    """A selection that was written. Raises SelectionError when it is not there, not whole, or of another schema."""
    selection = _read(output, name)
    version, wanted = selection.made["schema_version"], pa.schema([*schema(Clip), SPLIT], schema(Clip).metadata)
    if version != VERSION or selection.clips.column_names != wanted.names:
        raise SelectionError(
            f"selection {name!r} in {output} was made with schema version {version}, this is {VERSION}: curate anew, "
            f"then python manifests/filter.py output={output} repeat={name} name={name}"
        )
    # Parquet calls the items of a list otherwise.
    return dataclasses.replace(selection, clips=pa.Table.from_arrays(selection.clips.columns, schema=wanted))


def again(store: ManifestStore, name: str) -> tuple[Selection, list[str]]:
    """A selection made anew from what it recorded, thresholds and all; and in what the two differ, line by line.

    Raises SelectionError.
    """
    before = _read(store.output, name)
    # The threshold that kept so many hours then is in the recipe.
    options = dataclasses.replace(Options(**before.made["options"]), keep_hours=None, along="")
    after = choose(store, before.recipe, options, name)
    lines = [
        f"made with {library} {version}, now {after.made['versions'].get(library)}"
        for library, version in before.made["versions"].items()
        if after.made["versions"].get(library) != version
    ]
    if before.made["manifests"] != after.made["manifests"]:
        lines.append("the manifests are not those it was made from: files, labels, settings or models have changed")
    different = _differences(before.clips, after.clips)
    if before.funnel != after.funnel:
        different.append(f"the funnel began with {before.funnel.clips} clips, now with {after.funnel.clips}")
    made = {**after.made, "options": before.made["options"]}
    return dataclasses.replace(after, made=made), [*different, *lines] if different else []


def _read(output: str, name: str) -> Selection:
    """A selection of whatever schema version."""
    filesystem, path = _place(output, name)
    try:
        with filesystem.open_input_file(path) as source:
            clips = pq.read_table(source, page_checksum_verification=True)
    except FileNotFoundError:
        raise SelectionError(f"no selection {name!r} in {output}: {_others(output)}") from None
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0]
        raise SelectionError(f"{path}: cut off or damaged ({why}): make the selection again") from error
    metadata = dict(clips.schema.metadata or {})
    try:
        notes = json.loads(metadata.pop(_NOTES))
        about = notes["recipe"]
        kept = recipe.parsed(about["name"], {key: about[key] for key in ("about", "limits")}, clips.schema)
        lost = tuple(Lost(**line) for line in notes["funnel"].pop("lost"))
        funnel = Funnel(**notes["funnel"], lost=lost)
        return Selection(name, kept, funnel, clips.replace_schema_metadata(metadata), notes["made"])
    except (KeyError, TypeError, ValueError) as error:
        raise SelectionError(
            f"{path}: not written by manifests/filter.py, or by another version ({error!r})"
        ) from error


def _differences(before: pa.Table, after: pa.Table) -> list[str]:
    """In what two selections' clips differ, line by line."""
    gone, new = (
        one.filter(pc.invert(pc.is_in(one["clip_id"], other["clip_id"].combine_chunks()))).num_rows
        for one, other in ((before, after), (after, before))
    )
    lines = [f"{gone} clips are gone"] if gone else []
    lines += [f"{new} clips are new"] if new else []
    one, other = (
        a.filter(pc.is_in(a["clip_id"], b["clip_id"].combine_chunks())) for a, b in ((before, after), (after, before))
    )
    changed = [name for name in one.column_names if name in other.column_names and not _alike(one[name], other[name])]
    changed += sorted(set(one.column_names) ^ set(other.column_names))
    return lines + ([f"other values in {', '.join(changed)}"] if changed else [])


def _alike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same; NaN is NaN."""
    if pa.types.is_floating(one.type) and one.null_count == other.null_count:
        return np.array_equal(one.to_numpy(), other.to_numpy(), equal_nan=True)
    return bool(one.equals(other))


def _version_of(store: ManifestStore) -> str:
    """The version of the manifests: a hash of every video, its labels, and the versions of the steps behind it."""
    names = ["source_id", "video_id", "status", "source_set", "licence"]
    names += [name for name in columns(Video) if name.endswith("_version")]
    videos = store.arrow(Video, names).sort_by("source_id")
    lines = pc.binary_join_element_wise(*(videos[name] for name in names), "\t")
    return hashlib.sha256("\n".join(lines.to_pylist()).encode()).hexdigest()


def _version(library: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(library)
    return "unknown"


def _place(output: str, name: str) -> tuple[fs.FileSystem, str]:
    if not _NAME.fullmatch(name):
        raise SelectionError(f"{name!r} is no name for a selection: letters, digits, dots, dashes")
    filesystem, root = locate(output)
    return filesystem, f"{root}/selections/{name}.parquet"


def _others(output: str) -> str:
    """The selections that are there."""
    filesystem, root = locate(output)
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/selections", allow_not_found=True))
    names = sorted(
        file.base_name[:-8] for file in found if file.base_name.endswith(".parquet") and file.base_name[0] != "."
    )
    there = f"there is {', '.join(names)}" if names else "there is none"
    return f"{there}; python manifests/filter.py output={output} makes one"
