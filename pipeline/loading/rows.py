"""Rows of the groups that are loaded: which ones, what stands in for corrupt ones, one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.errors import CorruptPart
from pipeline.loading.fetch import Fetch, Rows
from pipeline.loading.order import Numbers, Order, key_of
from pipeline.loading.snapshot import ShapeClass

MAX_SUBSTITUTES = 100
"""Row groups tried in the place of a corrupt one; where all are corrupt too, nothing helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A row group in memory."""

    rows: Rows
    """Its columns."""
    blobs: Any
    """Packed tokens by row: uint8 ``[rows, bytes]``, or a list of uint8 ``[bytes]``."""
    order: Numbers
    """Rows in the order of the epoch."""
    is_replaced: bool
    """Whether it stands in for a corrupt one."""

    def row(self, offset: int) -> int:
        """The row at a place of the order; a substitute may have fewer, then they repeat."""
        return int(self.order[offset % len(self.order)])


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
        return _load(fetch, kind, order, group, columns, is_replaced=False)
    except CorruptPart as error:
        if not replace:
            raise
        corrupt = error
    for attempt in range(MAX_SUBSTITUTES):
        other = key_of(str(kind.groups[group]), attempt) % len(kind.groups)
        if other == group:
            continue
        try:
            return _load(fetch, kind, order, other, columns, is_replaced=True)
        except CorruptPart:
            continue
    raise CorruptPart(f"{corrupt}; no healthy row group of its shape was found to replace it")


def _load(
    fetch: Fetch,
    kind: ShapeClass,
    order: Order,
    group: int,
    columns: Sequence[str],
    *,
    is_replaced: bool,
) -> Loaded:
    rows = fetch.rows(kind.groups[group], columns)
    selected = kind.rows[group]
    count = kind.groups[group].rows if selected is None else len(selected)
    along = order.rows(group, count)
    return Loaded(
        rows=rows,
        blobs=_blobs(rows.table.column("tokens")),
        order=along if selected is None else selected[along],
        is_replaced=is_replaced,
    )


def _blobs(column: pa.ChunkedArray) -> Any:
    """Without copying."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        flat = np.frombuffer(array.buffers()[1], dtype=np.uint8)
        return flat[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
    return [np.frombuffer(value.as_buffer(), dtype=np.uint8) for value in array]


def collate(
    picks: Sequence[tuple[Loaded, int]], shape: Sequence[int], columns: Sequence[str]
) -> dict[str, Any]:
    """One batch of one token shape.

    Args:
        picks: where each sample is: a row group and a row of it.
        shape: ``token_shape`` of all.
        columns: besides tokens.

    Returns:
        As `TokenDataset` says.
    """
    token_format = picks[0][0].rows.token_format
    packed = np.stack([token_format.expand(one.blobs[row], shape) for one, row in picks])
    tokens = token_format.unpack(packed, shape)
    batch: dict[str, Any] = {}
    if token_format.is_discrete:
        batch["tokens"] = torch.from_numpy(tokens)
    else:
        mean, log_variance = np.split(tokens, 2, axis=1)
        batch["tokens"] = torch.from_numpy(mean.copy())
        batch["log_variance"] = torch.from_numpy(log_variance.copy())
    for name in columns:
        kind = picks[0][0].rows.table.schema.field(name).type
        values = [loaded.rows.table.column(name)[row].as_py() for loaded, row in picks]
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            dtype = torch.float64 if pa.types.is_floating(kind) else torch.int64
            batch[name] = torch.tensor(values, dtype=dtype)
        else:
            batch[name] = values
    return batch
