"""One shard in two OUTs, clip by clip: which clips are in one alone, and in what the others differ.

Of the first OUT only digests of the shard's rows are held, of the second one row group; the values
of a row are read again where its digests differ. So memory does not depend on the size of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.fingerprint import ABSENT, digest_of
from pipeline.parts import Part, blobs, open_part, read_row_group
from pipeline.receipts import Receipt, ReceiptName, read_receipts
from pipeline.storage import Storage

MAX_NAMES = 20
"""Of what is counted so many are named."""


@dataclass(slots=True)
class Named:
    """How many there are, and the names of the first ones."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """One more."""
        self.extend(Named(1, [name]))

    def extend(self, other: Named) -> None:
        """All of another one more."""
        self.count += other.count
        self.names += other.names[: MAX_NAMES - len(self.names)]


@dataclass(slots=True, kw_only=True)
class Differences:
    """What was found in one shard, or in several."""

    clips_1: int = 0
    """Clips of the first OUT."""
    clips_2: int = 0
    """Clips of the second."""
    clips_in_both: int = 0
    clips_only_in_1: Named = field(default_factory=Named)
    clips_only_in_2: Named = field(default_factory=Named)
    tokens_differ: Named = field(default_factory=Named)
    """Clips of one shape whose values are not all equal."""
    shapes_differ: Named = field(default_factory=Named)
    """Clips whose values cannot be compared: another shape, or latents against indices."""
    columns_differ: dict[str, Named] = field(default_factory=dict)
    """Column -> clips; tokens and their shape left out."""
    quarantined_only_in_1: Named = field(default_factory=Named)
    quarantined_only_in_2: Named = field(default_factory=Named)
    quarantined_otherwise: Named = field(default_factory=Named)
    """Videos that are quarantined in both, for another reason."""
    values: int = 0
    """Indices or latent values of the clips that could be compared."""
    equal_values: int = 0
    values_where_different: int = 0
    """Of ``values`` those of clips in ``tokens_differ``."""
    max_absolute: float | None = None
    """Largest difference of two latent values; None: indices."""
    sum_absolute: float = 0.0
    """Of the differences of all latent values."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        counted = [getattr(self, item.name) for item in fields(self)]
        named = [value for value in counted if isinstance(value, Named)]
        return not any(one.count for one in (*named, *self.columns_differ.values()))

    def extend(self, other: Differences) -> None:
        """Add those of further shards."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, Named):
                mine.extend(theirs)
            elif item.name == "columns_differ":
                for column, clips in theirs.items():
                    mine.setdefault(column, Named()).extend(clips)
            elif item.name == "max_absolute":
                self.max_absolute = theirs if mine is None else max(mine, theirs or 0.0)
            else:
                setattr(self, item.name, mine + theirs)


class _Row(NamedTuple):
    """One row as it is compared."""

    clip_id: str
    columns: dict[str, Any]
    """All but tokens and their shape."""
    tokens: npt.NDArray[Any]
    """int32 ``[t, h, w]`` or float32 ``[2c, t, h, w]``, whatever their packing."""

    def digests(self) -> tuple[bytes, str]:
        """Of the tokens with their shape, and of the other columns."""
        kind = f"{self.tokens.dtype.str} {self.tokens.shape}".encode()
        tokens = hashlib.sha256(kind + self.tokens.tobytes()).digest()[:16]
        return tokens, digest_of(self.columns)[:32]


class _Known(NamedTuple):
    """A row of the first OUT: what is held of it, and where the rest is."""

    digests: tuple[bytes, str]
    receipt: int
    group: int
    row: int


class ShardGeneration:
    """What one OUT holds of one shard."""

    def __init__(self, storage: Storage, names: Sequence[ReceiptName]) -> None:
        """Read its receipts.

        Raises:
            RunError: one that cannot be trusted.
        """
        self._storage = storage
        self._receipts: list[Receipt] = list(read_receipts(storage, names))
        self._group: tuple[int, int, list[_Row]] = (-1, -1, [])

    def quarantined(self) -> dict[str, str]:
        """Key -> reason, of the videos that are still quarantined."""
        latest = {receipt.segment: receipt for receipt in self._receipts}
        return {
            video["key"]: video["reason"]
            for receipt in latest.values()
            for video in receipt.quarantined
        }

    def rows(self) -> Iterator[tuple[int, int, int, _Row]]:
        """Every row, behind its receipt's number, row group and place there."""
        for number, receipt in enumerate(self._receipts):
            if receipt.part is None:
                continue
            part = open_part(self._storage, receipt)
            for group in range(part.file.num_row_groups):
                for place, row in enumerate(_read(part, group)):
                    yield number, group, place, row

    def row(self, known: _Known) -> _Row:
        """One row again; its group is kept, because the next one is likely there too."""
        if self._group[:2] != (known.receipt, known.group):
            part = open_part(self._storage, self._receipts[known.receipt])
            self._group = (known.receipt, known.group, _read(part, known.group))
        return self._group[2][known.row]


def _read(part: Part, group: int) -> list[_Row]:
    table = read_row_group(part, group)
    packed = blobs(table.column("tokens"))
    rows = []
    for columns, blob in zip(table.drop_columns(["tokens"]).to_pylist(), packed, strict=True):
        tokens = part.token_format.unpack_row(blob, columns.pop("token_shape"))
        rows.append(_Row(columns["clip_id"], columns, tokens))
    return rows


def compare_shard(shard: str, one: ShardGeneration, two: ShardGeneration) -> Differences:
    """Compare what two OUTs hold of a shard.

    Raises:
        RunError: a receipt or part that cannot be trusted.
    """
    found = Differences()
    known = {
        row.clip_id: _Known(row.digests(), number, group, place)
        for number, group, place, row in one.rows()
    }
    found.clips_1 = len(known)
    for _, _, _, row in two.rows():
        found.clips_2 += 1
        other = known.pop(row.clip_id, None)
        if other is None:
            found.clips_only_in_2.add(row.clip_id)
        else:
            _compare_row(found, one, other, row)
    for clip_id in known:
        found.clips_only_in_1.add(clip_id)
    _compare_quarantined(found, shard, one.quarantined(), two.quarantined())
    return found


def _compare_row(found: Differences, one: ShardGeneration, known: _Known, row: _Row) -> None:
    tokens, columns = row.digests()
    found.clips_in_both += 1
    if known.digests[1] != columns:
        before = one.row(known).columns
        for name in sorted(before.keys() | row.columns.keys()):
            if before.get(name, ABSENT) != row.columns.get(name, ABSENT):
                found.columns_differ.setdefault(name, Named()).add(row.clip_id)
    is_latent = row.tokens.dtype.kind == "f"
    if known.digests[0] == tokens:
        found.values += row.tokens.size
        found.equal_values += row.tokens.size
        if is_latent and found.max_absolute is None:
            found.max_absolute = 0.0
        return
    earlier = one.row(known).tokens
    if (earlier.shape, earlier.dtype) != (row.tokens.shape, row.tokens.dtype):
        found.shapes_differ.add(row.clip_id)
        return
    found.tokens_differ.add(row.clip_id)
    found.values += row.tokens.size
    found.values_where_different += row.tokens.size
    found.equal_values += int((earlier == row.tokens).sum())
    if is_latent:
        gaps = np.abs(earlier.astype(np.float64) - row.tokens)
        found.max_absolute = max(found.max_absolute or 0.0, float(gaps.max()))
        found.sum_absolute += float(gaps.sum())


def _compare_quarantined(
    found: Differences, shard: str, one: dict[str, str], two: dict[str, str]
) -> None:
    for key in sorted(one.keys() | two.keys()):
        place = f"{shard}::{key}"
        if key not in two:
            found.quarantined_only_in_1.add(f"{place} ({one[key]})")
        elif key not in one:
            found.quarantined_only_in_2.add(f"{place} ({two[key]})")
        elif one[key] != two[key]:
            found.quarantined_otherwise.add(f"{place} ({one[key]} | {two[key]})")
