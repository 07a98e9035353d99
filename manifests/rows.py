"""Some rows of a large table, all columns of them, without ever holding the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.schema import Row, columns, schema
from manifests.store import ManifestStore

_COLUMNS = 8
"""Columns that one thread reads at a time."""


def rows(store: ManifestStore, table: type[Row], at: np.ndarray) -> pa.Table:
    """The rows at some places, counted from 0 in the order of `store.arrow(table)`.

    at: ascending. Each file is read a few columns at a time, of which only the wanted rows are kept: a fifth of the
    time and memory of the whole table, when few are wanted. Raises FileNotFoundError where a file has gone meanwhile.
    """
    pieces, first = [], 0
    for path, live in _files(store, table):
        count = len(live)
        here = live[at[np.searchsorted(at, first) : np.searchsorted(at, first + count)] - first]
        first += count
        if len(here):
            pieces.append(_taken(store, table, path, pa.array(here)))
    if len(at) and at[-1] >= first:
        raise FileNotFoundError(f"{store.folder(table)}: rows have gone")
    return pa.concat_tables(pieces) if pieces else schema(table).empty_table()


def _files(store: ManifestStore, table: type[Row]) -> Iterator[tuple[str, np.ndarray]]:
    """Every file of a table with the numbers of its rows that count: a part's all, a pack's of keys without a part."""
    parts, key = store.files(table)[0], columns(table)[0]
    for part in parts:
        with store.filesystem.open_input_file(part) as source:
            yield part, np.arange(pq.read_metadata(source).num_rows)
    newer = pa.array([part.rsplit("/", 1)[-1].removesuffix(".parquet") for part in parts], pa.string())
    for pack in store.packs(table):
        with store.filesystem.open_input_file(pack) as source:
            if not parts:
                yield pack, np.arange(pq.read_metadata(source).num_rows)
            else:
                keys = pq.read_table(source, columns=[key])[key]
                yield pack, np.flatnonzero(~pc.is_in(keys, newer).to_numpy())


def _taken(store: ManifestStore, table: type[Row], path: str, at: pa.Array) -> pa.Table:
    names = columns(table)

    def taken(group: list[str]) -> pa.Table:
        with store.filesystem.open_input_file(path) as source:
            return pq.ParquetFile(source).read(columns=group, use_threads=False).take(at)

    groups = [names[first : first + _COLUMNS] for first in range(0, len(names), _COLUMNS)]
    with ThreadPoolExecutor(min(len(groups), os.cpu_count() or 1)) as pool:
        found = list(pool.map(taken, groups))
    return pa.Table.from_arrays([column for piece in found for column in piece.columns], schema=schema(table))
