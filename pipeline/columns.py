"""Columns that a data set brings along: their types, and a sample's JSON held against them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, VideoError

Columns = tuple[tuple[str, str], ...]
"""Names and types, in the order of the part's schema."""

ARROW_TYPES = {
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
"""Type of a column -> how a part stores it; every such column may be null."""

SPAN_INDEX = "span_index"
"""Column of type int that is there with spans: which of its video's a clip lies in, from 0."""

QUALITY: Columns = tuple(
    (name, "float")
    for name in "luma_mean frame_difference black_fraction token_entropy recon_psnr".split()
)
"""Columns that say how a clip looks and how well its tokens keep it; any may be null."""

BATCH_NAMES = frozenset(
    "tokens log_variance epoch samples source is_padding replaced joined caption_name "
    "positions valid cu_seqlens padding_sequences max_seqlen".split()
)
"""What a batch of ``TokenDataset`` may hold besides columns; no column is called like that."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PYTHON_TYPES = {"float": (int, float), "int": (int,), "bool": (bool,), "string": (str,)}


def check_columns(columns: Mapping[str, Any], taken: frozenset[str], *, place: str) -> None:
    """Whether columns can be called and typed like that.

    Args:
        columns: name -> type.
        taken: names that rows or batches have already.
        place: the option that says so.

    Raises:
        ConfigError: one cannot.
    """
    for name, kind in columns.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{place}: {name!r} is no name of letters, digits and underscores")
        if name in taken:
            raise ConfigError(f"{place}: {name} is a column already; choose another name")
        if kind not in ARROW_TYPES:
            raise ConfigError(
                f"{place}.{name} must be one of {', '.join(ARROW_TYPES)}, got {kind!r}"
            )


def typed_values(record: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """What a JSON object says of the columns; what it does not say is None.

    >>> typed_values({"motion": 3, "other": []}, (("motion", "float"), ("license", "string")))
    {'motion': 3.0, 'license': None}

    Raises:
        VideoError: ``bad_column``, a value of another type.
    """
    return {name: _typed(record.get(name), name, kind) for name, kind in columns}


def _typed(value: Any, name: str, kind: str) -> Any:
    if value is None:
        return None
    is_bool = isinstance(value, bool)
    fits = isinstance(value, _PYTHON_TYPES[kind]) and is_bool == (kind == "bool")
    if kind == "int" and fits:
        fits = -(1 << 63) <= value < 1 << 63
    if not fits:
        raise VideoError("bad_column", f"{name} must be {kind} or null, got {value!r:.100}")
    if kind == "float":
        return _float(value, name)
    # JSON can spell lone surrogates, which no UTF-8 column holds
    return value.encode("utf-8", "replace").decode() if kind == "string" else value


def _float(value: float, name: str) -> float | None:
    """NaN, which Python's JSON lets through, says nothing: null."""
    try:
        number = float(value)
    except OverflowError as error:
        raise VideoError("bad_column", f"{name} has too many digits for a float") from error
    return None if math.isnan(number) else number
