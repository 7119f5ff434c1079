"""A bounded sample of the rows of an OUT: of some parts one row group each, chosen by hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.manifest import Line
from pipeline.parts import blobs, read_footer, read_group, table_of_group
from pipeline.reporting.ledger_facts import hash_of
from pipeline.schema import TokenFormat
from pipeline.storage import Storage

MAX_BYTES = 128 << 20
"""Of row groups read; the sample ends there."""
_COLUMNS = [
    *("clip_id", "key", "clip_index", "fps", "start_seconds", "end_seconds", "caption"),
    *("source_width", "source_height", "source_fps", "bucket", "token_shape", "tokens"),
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenClip:
    """One clip and its tokens."""

    line: Line
    """Of its part."""
    row: dict[str, Any]
    """Its columns, but for the tokens."""
    tokens: npt.NDArray[Any]
    """int32 ``[t, h, w]``, or float32 ``[2c, t, h, w]``, ``[c, t, h, w]`` of means alone."""


@dataclass(slots=True)
class RowSample:
    """What was found in the sample."""

    groups: int = 0
    rows: int = 0
    token_format: TokenFormat | None = None
    """None: there is no row."""
    clips_per_video: list[int] = field(default_factory=list)
    """Clips of one video at one rate."""
    covered_seconds: list[float] = field(default_factory=list)
    """From a video's start to the end of its last clip."""
    clip_seconds: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    """Columns x rows of the sources -> clips."""
    source_fps: Counter[str] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)
    """Target rates."""
    buckets: Counter[str] = field(default_factory=Counter)
    codebook: npt.NDArray[np.int64] | None = None
    """``[K]``: how often each index is used; None of latents."""
    shown: list[TokenClip] = field(default_factory=list)
    """A few clips, of every rate and bucket first."""


def draw_rows(storage: Storage, lines: Sequence[Line], *, num_shown: int) -> RowSample:
    """Read one row group of each of these parts.

    Raises:
        RunError: a part that cannot be trusted.
    """
    sample, left = RowSample(), MAX_BYTES
    found: list[TokenClip] = []
    for line in lines:
        group = hash_of(line.part or "") % len(line.row_groups)
        content = read_group(storage, line, group)
        footer = read_footer(storage, line)
        table = table_of_group(footer, line, group, content, _COLUMNS)
        sample.token_format = footer.token_format
        is_last = group == len(line.row_groups) - 1
        _count(sample, table, is_last=is_last)
        found += _clips(
            line, table, footer.token_format, most_of_kind=max(2, -(-num_shown // len(lines)))
        )
        left -= len(content)
        if left <= 0:
            break
    sample.shown = _mixed(found, num_shown)
    return sample


def _mixed(clips: Sequence[TokenClip], num: int) -> list[TokenClip]:
    """Some clips: each next one of the rate and bucket, then of the video, that came least yet."""
    videos, kinds = Counter[tuple[str, str]](), Counter[tuple[float, str]]()
    left, chosen = list(clips), list[TokenClip]()

    def names(clip: TokenClip) -> tuple[tuple[float, str], tuple[str, str]]:
        return (clip.row["fps"], clip.row["bucket"]), (clip.line.shard, clip.row["key"])

    while left and len(chosen) < num:
        best = min(left, key=lambda clip: (kinds[names(clip)[0]], videos[names(clip)[1]]))
        left.remove(best)
        chosen.append(best)
        kind, video = names(best)
        kinds[kind] += 1
        videos[video] += 1
    return chosen


def _count(sample: RowSample, table: pa.Table, *, is_last: bool) -> None:
    token_format = sample.token_format
    assert token_format is not None
    rows = table.drop_columns(["tokens"]).to_pylist()
    sample.groups, sample.rows = sample.groups + 1, sample.rows + len(rows)
    for row in rows:
        sample.clip_seconds[f"{row['end_seconds'] - row['start_seconds']:.3g} s"] += 1
        sample.sizes[f"{row['source_width']}x{row['source_height']}"] += 1
        sample.source_fps[f"{row['source_fps']:.4g}"] += 1
        sample.rates[f"{row['fps']:g} fps"] += 1
        sample.buckets[row["bucket"]] += 1
    _count_videos(sample, rows, is_last=is_last)
    if token_format.is_discrete:
        _count_indices(sample, rows, blobs(table.column("tokens")), token_format)


def _count_videos(sample: RowSample, rows: Sequence[dict[str, Any]], *, is_last: bool) -> None:
    """Videos whose last clip is here: that of the last row may be in the next row group."""
    videos: dict[str, dict[float, tuple[int, float]]] = {}
    for row in rows:
        rates = videos.setdefault(row["key"], {})
        clips, end = rates.get(row["fps"], (0, 0.0))
        rates[row["fps"]] = (max(clips, row["clip_index"] + 1), max(end, row["end_seconds"]))
    if not is_last and rows:
        videos.pop(rows[-1]["key"])
    for rates in videos.values():
        sample.clips_per_video += [clips for clips, _ in rates.values()]
        sample.covered_seconds.append(max(end for _, end in rates.values()))


def _count_indices(
    sample: RowSample,
    rows: Sequence[dict[str, Any]],
    tokens: Sequence[npt.NDArray[np.uint8]],
    token_format: TokenFormat,
) -> None:
    size = token_format.codebook_size or 0
    if sample.codebook is None:
        sample.codebook = np.zeros(size, dtype=np.int64)
    for row, blob in zip(rows, tokens, strict=True):
        indices = token_format.unpack_row(blob, row["token_shape"])
        sample.codebook += np.bincount(indices.ravel(), minlength=size)


def _clips(
    line: Line, table: pa.Table, token_format: TokenFormat, *, most_of_kind: int
) -> Iterator[TokenClip]:
    """Some clips of each rate and bucket of a row group, in hashed order."""
    rows = table.drop_columns(["tokens"]).to_pylist()
    tokens, kinds = blobs(table.column("tokens")), Counter[tuple[float, str]]()
    for at in sorted(range(len(rows)), key=lambda at: hash_of(rows[at]["clip_id"])):
        row = rows[at]
        kind = (row["fps"], row["bucket"])
        kinds[kind] += 1
        if kinds[kind] <= most_of_kind:
            unpacked = token_format.unpack_row(tokens[at], row["token_shape"])
            yield TokenClip(line=line, row=row, tokens=unpacked)


@dataclass(frozen=True, slots=True)
class CodebookUse:
    """How evenly indices are used."""

    used: int
    """Indices that occur."""
    size: int
    """Indices that there are."""
    total: int
    """Tokens counted."""
    perplexity: float
    """exp of the entropy: as many indices, used evenly, would carry as much."""
    bits: float
    """Entropy of a token, in bits."""


def codebook_use(counts: npt.NDArray[np.int64]) -> CodebookUse:
    """Of counts ``[K]``; the entropy is that of the observed frequencies.

    >>> codebook_use(np.array([5, 5, 0, 0]))
    CodebookUse(used=2, size=4, total=10, perplexity=2.0, bits=1.0)
    """
    total = int(counts.sum())
    shares = counts[counts > 0] / max(1, total)
    bits = float(-(shares * np.log2(shares)).sum()) if total else 0.0
    return CodebookUse(len(shares), len(counts), total, 2.0**bits, bits)
