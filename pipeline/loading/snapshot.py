"""One pinned manifest as row groups and the rows selected of them, by token shape."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import CorruptPart, RunError, StorageRefused
from pipeline.ledger import Ledger
from pipeline.loading.fetch import Fetch, Group
from pipeline.loading.order import Numbers
from pipeline.loading.ranks import agree_on, same_on_all
from pipeline.loading.requests import requests
from pipeline.manifest import Line
from pipeline.moments import LatentMoments, moments_of_parts
from pipeline.schema import TokenFormat
from pipeline.storage import Storage

_LOG = logging.getLogger(__name__)

SCAN_THREADS = 16
"""Parts looked into at once where the manifest does not say it all."""

UNPUBLISHED = "unpublished-"
"""Begins the digest of receipts that no manifest holds."""

_ROW = "row number"

Filters: TypeAlias = Sequence[Any] | pc.Expression
Selected: TypeAlias = dict[tuple[int, ...], Numbers | None]
"""Rows of one row group by token shape; None: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeClass:
    """The selected rows of one token shape."""

    shape: tuple[int, ...]
    """``[t, h, w]``, or ``[c, t, h, w]``."""
    groups: tuple[Group, ...]
    """Row groups that hold such rows, in the order of shards and segments."""
    rows: tuple[Numbers | None, ...]
    """Of each group, which of its rows, ascending; None: all."""

    @property
    def counts(self) -> Numbers:
        """Rows of each group; int64 ``[groups]``."""
        pairs = zip(self.groups, self.rows, strict=True)
        return np.array([g.rows if r is None else len(r) for g, r in pairs], dtype=np.int64)

    @property
    def group_bytes(self) -> int:
        """Mean size of its row groups."""
        return sum(group.num_bytes for group in self.groups) // max(1, len(self.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a pass reads from; never changes."""

    manifest: str
    """Digest of the manifest."""
    selection: str
    """Digest of which rows are selected of which row groups."""
    moments: LatentMoments | None
    """Of the latents of all parts; None of indices."""
    classes: tuple[ShapeClass, ...]
    """By the place of their first row."""
    left_out: tuple[Group, ...] = ()
    """Corrupt row groups of which nobody can say what they hold: none of their rows is selected."""

    @property
    def num_rows(self) -> int:
        """Clips selected."""
        return sum(int(one.counts.sum()) for one in self.classes)

    @property
    def num_left_out(self) -> int:
        """Clips in the row groups that are left out, whatever the filters would say of them."""
        return sum(group.rows for group in self.left_out)


def open_snapshot(
    fetch: Fetch, manifest: str | None, filters: Filters | None, *, in_group: bool, leave_out: bool
) -> Snapshot:
    """Pin a manifest and take its snapshot; all ranks of a group the same one, or all fail.

    Args:
        fetch: of OUT.
        manifest: see `pin`; not asked in a group, where rank 0 pins.
        filters: see `take_snapshot`.
        in_group: whether all ranks of torch.distributed do this together.
        leave_out: see `take_snapshot`.

    Raises:
        RunError: see `pin` and `take_snapshot`; or ranks read other bytes.
        StorageError: storage did not answer.
    """
    if in_group:
        manifest = agree_on(lambda: pin(fetch.storage, None)[0])

    def take() -> Snapshot:
        return take_snapshot(*pin(fetch.storage, manifest), fetch, filters, leave_out=leave_out)

    return same_on_all(take, lambda one: one.selection) if in_group else take()


def take_snapshot(
    manifest: str,
    lines: Iterable[Line],
    fetch: Fetch,
    filters: Filters | None,
    *,
    leave_out: bool = False,
) -> Snapshot:
    """Find the rows of a manifest that a loader hands out.

    Args:
        manifest: its digest.
        lines: its receipts.
        fetch: for what the manifest does not say.
        filters: on scalar columns: an Arrow expression, or tuples ``(column, operator, value)``
            (or lists) as pyarrow takes them; None: every row.
        leave_out: row groups that had to be looked into and are not what was committed are not
            selected, and that is part of the selection's digest; else they are an error.

    Raises:
        CorruptPart: a part that had to be looked into is not what was committed.
        RunError: no row is selected, of some.
        ValueError: filters that no row can be held against.
    """
    expression = None if filters is None else _expression(filters)
    with_rows = [line for line in lines if line.part is not None]
    with_rows.sort(key=lambda line: (line.shard, line.segment, line.generation))

    def look(line: Line) -> list[tuple[Group, Selected | CorruptPart]]:
        groups = [Group(line=line, index=index) for index in range(len(line.row_groups))]
        if filters is None and len(line.shapes) == 1:
            (text,) = line.shapes
            return [(one, {tuple(map(int, text.split(","))): None}) for one in groups]
        try:
            columns = ["token_shape", *_columns(filters, fetch.footer(line).schema.names)]
        except CorruptPart as error:
            return [(one, error) for one in groups]
        return [(one, look_into(near, one, columns)) for near, one in _by_request(fetch, groups)]

    def look_into(near: Fetch, group: Group, columns: Sequence[str]) -> Selected | CorruptPart:
        try:
            table = near.rows(group, columns).table
        except CorruptPart as error:
            return error
        return _selected(table, expression)

    found: dict[tuple[int, ...], list[tuple[Group, Numbers | None]]] = {}
    left_out: list[Group] = []
    with ThreadPoolExecutor(SCAN_THREADS, "look") as pool:
        for group, selected in itertools.chain.from_iterable(pool.map(look, with_rows)):
            if isinstance(selected, CorruptPart):
                if not leave_out:
                    raise selected
                _LOG.warning("%s, %d clips, is left out: %s", group, group.rows, selected)
                left_out.append(group)
            else:
                for shape, rows in selected.items():
                    found.setdefault(shape, []).append((group, rows))
    if not found and (filters is not None or left_out):
        corrupt = f"; {len(left_out)} row groups are corrupt" if left_out else ""
        raise RunError(f"{fetch.storage}: the filters select no clip: {filters}{corrupt}")
    classes = tuple(_class_of(shape, pairs) for shape, pairs in found.items())
    return Snapshot(
        manifest=manifest,
        selection=_digest(classes, filters, left_out),
        moments=moments_of_parts(with_rows),
        classes=classes,
        left_out=tuple(left_out),
    )


def _by_request(fetch: Fetch, groups: Sequence[Group]) -> Iterator[tuple[Fetch, Group]]:
    """Row groups of one part, and what has the bytes of their neighbours, too."""
    together = requests([one.range for one in groups]) if fetch.joins_requests else ()
    for positions in together or [[at] for at in range(len(groups))]:
        near = fetch.together([groups[at] for at in positions])
        yield from ((near, groups[at]) for at in positions)


def _class_of(shape: tuple[int, ...], pairs: Sequence[tuple[Group, Numbers | None]]) -> ShapeClass:
    return ShapeClass(
        shape=shape,
        groups=tuple(group for group, _ in pairs),
        rows=tuple(rows for _, rows in pairs),
    )


def _expression(filters: Filters) -> pc.Expression:
    try:
        return filters if isinstance(filters, pc.Expression) else pq.filters_to_expression(filters)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"filters must be tuples such as ('fps', '==', 8.0), or an Arrow expression: {error}"
        ) from error


def _columns(filters: Filters | None, names: Sequence[str]) -> list[str]:
    if filters is None:
        return []
    if isinstance(filters, pc.Expression):
        text = str(filters)
        named = [name for name in names if name in text]
        return [name for name in named or names if name not in {"token_shape", "tokens"}]
    is_flat = isinstance(filters[0][0], str)  # else alternatives, each of several terms
    terms = list(filters) if is_flat else [term for one in filters for term in one]
    unknown = sorted({term[0] for term in terms} - set(names))
    if unknown:
        raise ValueError(f"filters name {', '.join(unknown)}; the columns are {', '.join(names)}")
    return sorted({term[0] for term in terms} - {"token_shape"})


def _selected(table: pa.Table, expression: pc.Expression | None) -> Selected:
    """Selected rows by shape; None: all of the row group."""
    num_rows = table.num_rows
    table = table.append_column(_ROW, pa.array(np.arange(num_rows)))
    if expression is not None:
        try:
            table = table.filter(expression)
        except pa.ArrowException as error:
            raise ValueError(f"filters do not fit the columns: {error}") from error
    by_shape: dict[tuple[int, ...], list[int]] = {}
    rows, shapes = (table.column(name).to_pylist() for name in (_ROW, "token_shape"))
    for row, shape in zip(rows, shapes, strict=True):
        by_shape.setdefault(tuple(shape), []).append(row)
    return {
        shape: None if len(found) == num_rows else np.array(found, dtype=np.int64)
        for shape, found in by_shape.items()
    }


def _digest(
    classes: Sequence[ShapeClass], filters: Filters | None, left_out: Sequence[Group]
) -> str:
    """Of parts, row groups and rows; the same rows by other filters are the same selection."""
    if filters is None and not left_out:
        return "all"
    digest = hashlib.sha256()
    for one in classes:
        digest.update(f"shape {one.shape}\n".encode())
        for group, rows in zip(one.groups, one.rows, strict=True):
            digest.update(f"{group.line.part} {group.index} {rows is None}\n".encode())
            if rows is not None:
                digest.update(rows.astype("<i8").tobytes())
    for group in left_out:
        digest.update(f"left out {group.line.part} {group.index}\n".encode())
    return digest.hexdigest()


def pin(storage: Storage, manifest: str | None) -> tuple[str, list[Line]]:
    """The digest and the receipts of one manifest.

    Without one everything that is committed now is taken, and a manifest of it published, so that
    a state can name it. Where OUT cannot be written, the digest begins with ``UNPUBLISHED``: it is
    found again as long as nothing is committed.

    Raises:
        RunError: nothing is committed there, or what is cannot be trusted.
        StorageError: storage did not answer.
    """
    if manifest is not None and not manifest.startswith(UNPUBLISHED):
        return manifest, list(Ledger.of_manifest(storage, manifest).lines())
    ledger = Ledger.open(storage)
    if not len(ledger):
        raise RunError(f"{storage}: no receipts there, so nothing is committed")
    lines = list(ledger.lines())
    try:
        digest = str(ledger.publish(storage))
    except StorageRefused:
        digest = UNPUBLISHED + _digest_of_receipts(lines)
    if manifest is not None and digest != manifest:
        raise RunError(f"{storage}: more is committed by now than when {manifest} was opened")
    return digest, lines


def _digest_of_receipts(lines: Iterable[Line]) -> str:
    names = sorted(f"{one.shard} {one.segment} {one.generation} {one.part}" for one in lines)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def token_format_of(fetch: Fetch, snapshot: Snapshot) -> TokenFormat:
    """How tokens are packed: the same in every part, so the first footer that is sound says it.

    Raises:
        CorruptPart: no part has one.
        StorageError: storage did not answer.
    """
    groups = [group for one in snapshot.classes for group in one.groups]
    for group in groups[:-1]:
        with contextlib.suppress(CorruptPart):
            return fetch.footer(group.line).token_format
    return fetch.footer(groups[-1].line).token_format
