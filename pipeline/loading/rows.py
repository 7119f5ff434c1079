"""Rows of the groups that are loaded: which ones, and what stands in for corrupt ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import CorruptPart
from pipeline.loading.fetch import Fetch, Rows
from pipeline.loading.hashing import derived_key
from pipeline.loading.order import Numbers, Order
from pipeline.loading.snapshot import ShapeClass

MAX_SUBSTITUTES = 100
"""Row groups tried in the place of a corrupt one; where all are corrupt too, nothing helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The selected rows of a row group, in memory."""

    values: dict[str, Any]
    """Columns besides tokens: arrays ``[rows]`` of numbers, lists of all else."""
    blobs: Any
    """Packed tokens by row: uint8 ``[rows, bytes]``, or a list of uint8 ``[bytes]``."""
    flat: memoryview
    """The same side by side, uint8 ``[rows * row_bytes]``; empty where they differ in size."""
    row_bytes: int
    """Size of each; 0 where they differ."""
    order: list[int]
    """Rows in the order of the epoch; those of a substitute that has fewer repeat."""
    is_replaced: bool
    """Whether it stands in for a corrupt one."""


def load_group(
    fetch: Fetch,
    kind: ShapeClass,
    order: Order,
    group: int,
    columns: Sequence[str],
    *,
    replace: bool,
) -> Loaded:
    """Read a row group, or what deterministically stands in for it.

    Raises:
        CorruptPart: it is corrupt and ``replace`` is not wanted, or no other is healthy.
        StorageError: storage did not answer; never a reason to replace.
    """
    try:
        return _load(fetch, kind, order, group, columns)
    except CorruptPart as error:
        if not replace:
            raise
        corrupt = error
    for attempt in range(MAX_SUBSTITUTES):
        other = derived_key(str(kind.groups[group]), attempt) % len(kind.groups)
        if other == group:
            continue
        try:
            found = _load(fetch, kind, order, other, columns)
        except CorruptPart:
            continue
        along = np.resize(found.order, _num_rows(kind, group)).tolist()
        return replace_fields(found, order=along, is_replaced=True)
    raise CorruptPart(f"{corrupt}; no healthy row group of its shape was found to replace it")


def _load(
    fetch: Fetch,
    kind: ShapeClass,
    order: Order,
    group: int,
    columns: Sequence[str],
) -> Loaded:
    rows = fetch.rows(kind.groups[group], columns)
    selected = kind.rows[group]
    if selected is not None:
        rows = _only(rows, selected)
    along = order.rows(group, _num_rows(kind, group))
    flat, row_bytes = memoryview(b""), 0
    if isinstance(rows.blobs, np.ndarray):
        flat, row_bytes = rows.blobs.reshape(-1).data, rows.blobs.shape[1]
    return Loaded(
        values=_values(rows.table),
        blobs=rows.blobs,
        flat=flat,
        row_bytes=row_bytes,
        order=along.tolist(),
        is_replaced=False,
    )


def _only(rows: Rows, selected: Numbers) -> Rows:
    """A copy of some rows: a view of one would keep its whole row group in memory."""
    blobs = rows.blobs
    if isinstance(blobs, np.ndarray):
        blobs = blobs[selected]
    elif blobs is not None:
        blobs = [blobs[at].copy() for at in selected.tolist()]
    table = rows.table.take(pa.array(selected)) if rows.table.num_columns else rows.table
    return replace_fields(rows, table=table, blobs=blobs)


def _num_rows(kind: ShapeClass, group: int) -> int:
    """Of a row group, that are selected."""
    selected = kind.rows[group]
    return kind.groups[group].rows if selected is None else len(selected)


def _values(table: pa.Table) -> dict[str, Any]:
    """Integers as int64, floats as float64 (null: NaN), all else as lists.

    Integers that may be null are lists, too: of a batch no column changes its type.
    """
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_integer(column.type) and not table.schema.field(name).nullable:
            found[name] = column.to_numpy().astype(np.int64)
        elif pa.types.is_floating(column.type):
            found[name] = column.to_numpy().astype(np.float64)
        else:
            found[name] = column.to_pylist()
    return found
