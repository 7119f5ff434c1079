"""What the values of receipts and manifests may be; nothing is trusted when read. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,250}")
"""Names of shards and parts: no separator, nothing that leads out of a folder."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY_DIGESTS = re.compile(r"(?:[0-9a-f]{16})*")
_SHAPE = re.compile(r"[1-9]\d{0,8}(,[1-9]\d{0,8}){2,3}")


class RowGroup(NamedTuple):
    """A row group of a part: the bytes from the end of the one before (the first: from 0) on."""

    rows: int
    """Clips in it."""
    end_offset: int
    """First byte of the part that is not its."""
    sha256: str
    """Of its bytes."""


def check_values(record: Any, *, with_groups: bool = True) -> None:
    """What names files, is counted or sought must be what runs write.

    Args:
        record: a ``Receipt``, or a ``manifest.Line``.
        with_groups: False: its row groups are left out, and checked by somebody else.

    Raises:
        ValueError: a name that leads out of its folder, or a value that cannot be.
    """
    for name, (is_right, wanted) in _CHECKS.items():
        value = getattr(record, name)
        if not is_right(value):
            raise ValueError(f"{name} must be {wanted}, got {value!r:.80}")
    if record.end_offset < record.start_offset:
        raise ValueError(f"start_offset {record.start_offset} is behind {record.end_offset}")
    if with_groups:
        _check_groups(record)
    _check_shapes(record)


def _check_groups(record: Any) -> None:
    """Row groups must make up the whole part."""
    groups = record.row_groups
    if not _are_groups(groups):
        raise ValueError(
            f"row_groups must be rows, end_offset and SHA-256 of each, got {groups!r:.80}"
        )
    if (record.part is None) != (not groups):
        raise ValueError(f"{len(groups)} row_groups, and the part is {record.part}")
    end, rows = 0, 0
    for at, group in enumerate(groups):
        if group.end_offset <= end or group.end_offset >= record.part_bytes:
            raise ValueError(
                f"row_groups: number {at} ends at {group.end_offset:,}, must be behind {end:,} and "
                f"before the footer's end at {record.part_bytes:,}"
            )
        end, rows = group.end_offset, rows + group.rows
    if rows != record.rows:
        raise ValueError(f"row_groups hold {rows:,} rows, the part {record.rows:,}")


def _check_shapes(record: Any) -> None:
    """Shapes must be those of all rows, and of as many channels as there are moments."""
    if (rows := sum(record.shapes.values())) != record.rows:
        raise ValueError(f"shapes hold {rows:,} rows, the part {record.rows:,}")
    channels = {_channels(shape) for shape in record.shapes} or {0}
    for name in ("latent_mean", "latent_std"):
        if channels != {len(getattr(record, name))}:
            raise ValueError(
                f"{name} has {len(getattr(record, name))} values for shapes {record.shapes}"
            )


def _channels(shape: str) -> int:
    """Of latents; 0 of indices, whose shape has no channel."""
    numbers = shape.split(",")
    return int(numbers[0]) if len(numbers) == 4 else 0


def row_groups_of(values: Any) -> tuple[RowGroup, ...]:
    """Row groups as JSON holds them.

    Raises:
        ValueError: not a list of such records.
    """
    if not isinstance(values, list) or not all(
        isinstance(value, dict) and value.keys() == set(RowGroup._fields) for value in values
    ):
        raise ValueError("row_groups must be a list of rows, end_offset and sha256")
    return tuple(RowGroup(**value) for value in values)


def check_receipt(receipt: Any) -> None:
    """The same for a whole ``Receipt``.

    Raises:
        ValueError: as above.
    """
    check_values(receipt)
    for name in ("fingerprint", "attempt", "host"):
        if not isinstance(getattr(receipt, name), str):
            raise ValueError(f"{name} must be text")
    if not isinstance(receipt.numerics, dict):
        raise ValueError("numerics must be an object")
    videos = receipt.quarantined
    if not isinstance(videos, list) or not all(_is_video(video) for video in videos):
        raise ValueError("quarantined must be a list of key, reason and message")
    digests = receipt.key_digests
    if not isinstance(digests, str) or not _KEY_DIGESTS.fullmatch(digests):
        raise ValueError("key_digests must be 16 hex digits for each key")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and SAFE_NAME.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_digest(value: Any) -> bool:
    return value is None or (isinstance(value, str) and _SHA256.fullmatch(value) is not None)


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(reason, str) and _is_number(number) for reason, number in value.items()
    )


def _are_groups(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        type(rows) is int
        and 0 < rows < 1 << 63
        and type(end) is int
        and 0 <= end < 1 << 63
        and isinstance(digest, str)
        and _SHA256.fullmatch(digest)
        for rows, end, digest in value
    )


def _are_shapes(value: Any) -> bool:
    return _are_counts(value) and all(
        _SHAPE.fullmatch(shape) and number for shape, number in value.items()
    )


def _are_floats(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        type(number) is float and math.isfinite(number) for number in value
    )


def _is_video(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"key", "reason", "message"}
        and all(isinstance(text, str) for text in value.values())
    )


_Check = tuple[Callable[[Any], bool], str]
_NAME: _Check = (_is_name, "a name that a run gives")
_NUMBER: _Check = (_is_number, "a whole number from 0 on")
_TRUTH: _Check = (lambda value: type(value) is bool, "true or false")
_DIGEST: _Check = (_is_digest, "a SHA-256 in hex, or null")
_TEXT: _Check = (lambda value: isinstance(value, str), "text")
_CHECKS: Mapping[str, _Check] = {
    "shard": _NAME,
    "part": (lambda value: value is None or _is_name(value), "a name that a run gives, or null"),
    **dict.fromkeys(("segment", "generation", "rows", "part_bytes", "videos"), _NUMBER),
    **dict.fromkeys(("source_bytes", "start_offset", "end_offset"), _NUMBER),
    **dict.fromkeys(("final", "complete"), _TRUTH),
    **dict.fromkeys(("part_sha256", "footer_sha256"), _DIGEST),
    "shapes": (_are_shapes, 'numbers of clips by shape, as in {"5,32,32": 4096}'),
    "latent_mean": (_are_floats, "finite numbers"),
    "latent_std": (
        lambda value: _are_floats(value) and all(number >= 0 for number in value),
        "finite numbers from 0 on",
    ),
    **dict.fromkeys(("source_url", "source_version"), _TEXT),
    "cut_reason": (lambda value: value is None or isinstance(value, str), "text, or null"),
    "filtered": (_are_counts, "numbers by reason"),
    "created_seconds": (lambda value: type(value) in (int, float), "seconds"),
}
