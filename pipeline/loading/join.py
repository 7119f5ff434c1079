"""Columns that came later, attached to clips by their ``clip_id``: captions, embeddings, scores."""

from __future__ import annotations

import bisect
import io
import os
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import torch

from pipeline.columns import Columns
from pipeline.errors import RunError
from pipeline.storage import Storage

KEY = "clip_id"
JOINED = "joined"
SUFFIXES = (".parquet", ".csv", ".jsonl")


class SideTable:
    """A table held in memory, looked up by binary search over its sorted ``clip_id``."""

    def __init__(
        self,
        table: str | os.PathLike[str] | pa.Table,
        *,
        columns: Sequence[str] | None = None,
        taken: Collection[str] = (),
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        """Read and check the table.

        Args:
            table: path or URL of a ``.parquet``, ``.csv`` or ``.jsonl`` file, or the table itself.
            columns: what to attach; None: all columns.
            taken: names that batches already have.
            storage_options: fsspec options of the URL; never logged.

        Raises:
            RunError: no such file, or not readable.
            StorageError: storage did not answer.
            ValueError: no ``clip_id``, an empty or repeated one, no such column, a name taken.
        """
        if isinstance(table, (str, os.PathLike)):
            self._name = os.fspath(table)
            table = _read(self._name, storage_options)
        else:
            self._name = "join"
        wanted = self._checked_columns(table.column_names, columns, {*taken, JOINED})
        ids = table.column(KEY)
        if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
            raise ValueError(f"{self._name}: {KEY} must be text, it is {ids.type}")
        if ids.null_count:
            raise ValueError(f"{self._name}: {ids.null_count} rows have no {KEY}")
        # large_string: offsets of 64 bits, for the text of millions of clips in one array
        ids = pa.chunked_array(ids.cast(pa.large_string())).combine_chunks()
        self._order = pc.sort_indices(ids).to_numpy()
        self._ids = ids.take(self._order)
        self._check_unique()
        self._table = pa.table({name: _with_fixed_size(table.column(name)) for name in wanted})
        self.num_missing = 0
        """Clips looked up so far that the table does not know."""

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def columns(self) -> list[str]:
        """Names of what is attached, without ``joined``."""
        return list(self._table.column_names)

    def rows(self, clip_ids: Sequence[str]) -> pa.Table:
        """One row for each clip, in their order; null where the table has none (and counted)."""
        return self._table.take(self._places(clip_ids))

    def values(self, clip_ids: Sequence[str]) -> dict[str, Any]:
        """The columns as a batch has them, of one type whether or not clips are missing.

        Floats become float64 tensors ``[B]`` and lists of one length float32 tensors ``[B, n]``,
        NaN where missing; all else lists of length B, None where missing. ``joined`` (bool
        ``[B]``) tells which clips the table knows.
        """
        places = self._places(clip_ids)
        rows = self._table.take(places)
        batch: dict[str, Any] = {name: _values(rows.column(name)) for name in self.columns}
        batch[JOINED] = torch.from_numpy(places.is_valid().to_numpy(zero_copy_only=False))
        return batch

    def _places(self, clip_ids: Sequence[str]) -> pa.Array:
        places = [self._place(clip_id) for clip_id in clip_ids]
        self.num_missing += places.count(None)
        return pa.array(places, type=pa.int64())

    def _place(self, clip_id: str) -> int | None:
        """Row of a clip."""
        # code points and UTF-8 bytes sort alike, so Python's order is Arrow's
        at = bisect.bisect_left(range(len(self)), clip_id, key=lambda i: self._ids[i].as_py())
        found = at < len(self) and self._ids[at].as_py() == clip_id
        return int(self._order[at]) if found else None

    def _checked_columns(
        self, found: list[str], wanted: Sequence[str] | None, taken: Collection[str]
    ) -> list[str]:
        if KEY not in found:
            raise ValueError(f"{self._name}: no column {KEY}; it has {', '.join(found)}")
        names = [name for name in (found if wanted is None else wanted) if name != KEY]
        if absent := [name for name in names if name not in found]:
            raise ValueError(f"{self._name}: no column {absent[0]!r}; it has {', '.join(found)}")
        if repeated := [name for name in names if found.count(name) > 1]:
            raise ValueError(f"{self._name}: two columns are called {repeated[0]!r}")
        self._check_free(names, taken)
        return names

    def check(self, own: Columns) -> None:
        """Refuse to take the place of a column that the data set itself has.

        Raises:
            ValueError: one is called like that.
        """
        self._check_free(self.columns, {name for name, _ in own})

    def _check_free(self, names: Sequence[str], taken: Collection[str]) -> None:
        if clashing := [name for name in names if name in taken]:
            raise ValueError(
                f"{self._name}: batches have a {clashing[0]!r} already; rename the column"
            )

    def _check_unique(self) -> None:
        same = pc.equal(self._ids[1:], self._ids[:-1])
        if num_repeated := pc.sum(same).as_py():
            first = self._ids[pc.index(same, True).as_py()].as_py()
            raise ValueError(
                f"{self._name}: {num_repeated:,} rows repeat a {KEY}, {first!r} for one; "
                "a clip may have one row"
            )


def _read(url: str, options: dict[str, Any] | None) -> pa.Table:
    """The table at a path or URL."""
    suffix = PurePosixPath(url).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{url}: the name must end in {', '.join(SUFFIXES)}")
    folder, _, name = url.rpartition("/")
    if not folder:
        folder = "/" if url.startswith("/") else "."
    try:
        content = io.BytesIO(Storage(folder, options).read(name))
        if suffix == ".parquet":
            return pq.read_table(content)
        if suffix == ".jsonl":
            return pyarrow.json.read_json(content)
        # an id of digits is text, with its zeros in front
        convert = pyarrow.csv.ConvertOptions(column_types={KEY: pa.string()})
        return pyarrow.csv.read_csv(content, convert_options=convert)
    except FileNotFoundError as error:
        raise RunError(f"{url} is missing") from error
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{url} cannot be read: {error}") from error


def _with_fixed_size(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of lists of numbers that all have one length, as float32 of that size."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return column
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return column
    sizes = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
    return column.cast(pa.list_(pa.float32(), sizes[0])) if len(sizes) == 1 else column


def _values(column: pa.ChunkedArray) -> torch.Tensor | list[Any]:
    """One column of a batch."""
    if pa.types.is_floating(column.type):
        values = pc.fill_null(column.cast(pa.float64()), float("nan"))
        return torch.from_numpy(np.array(values.to_numpy()))
    if pa.types.is_fixed_size_list(column.type) and pa.types.is_floating(column.type.value_type):
        laid = np.full((len(column), column.type.list_size), np.nan, dtype=np.float32)
        for index, row in enumerate(column):
            if row.is_valid:
                laid[index] = row.values.to_numpy(zero_copy_only=False)
        return torch.from_numpy(laid)
    return list(column.to_pylist())
