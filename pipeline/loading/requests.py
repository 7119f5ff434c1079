"""Pure: which row groups one request brings: neighbours in a part, and what little lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

REQUEST_BYTES = 8 << 20
"""Of one request at most, unless a single row group is larger."""
GAP_BYTES = 256 << 10
"""Between two row groups of a request at most: read and thrown away, as a request costs more."""


class Range(NamedTuple):
    """Bytes of a file."""

    part: str
    """The file."""
    start: int
    """First byte."""
    end: int
    """Behind the last one."""


def alike(wanted: Sequence[Range]) -> list[list[int]]:
    """Positions of equal ranges together, in the order in which the first one of each is due.

    >>> near, far = Range("a", 10, 20), Range("a", 900, 950)
    >>> alike([far, near, far])
    [[0, 2], [1]]
    """
    found: dict[Range, list[int]] = {}
    for at, one in enumerate(wanted):
        found.setdefault(one, []).append(at)
    return list(found.values())


def requests(
    wanted: Sequence[Range], *, request_bytes: int = REQUEST_BYTES, gap_bytes: int = GAP_BYTES
) -> list[list[int]]:
    """Positions of ranges by request, in the order in which the first one of each is due.

    Args:
        wanted: in the order in which they are due; equal ones share a request.
        request_bytes: from the first to the last byte of a request.
        gap_bytes: between two neighbours of a request.

    >>> near, far = Range("a", 10, 20), Range("a", 900, 950)
    >>> requests([far, near, Range("a", 0, 10)], gap_bytes=100)
    [[0], [2, 1]]
    """
    joined: list[list[int]] = []
    first, end = 0, 0
    for at in sorted(range(len(wanted)), key=wanted.__getitem__):
        part, start, stop = wanted[at]
        if (
            joined
            and wanted[joined[-1][-1]].part == part
            and start - end <= gap_bytes
            and max(stop, end) - first <= request_bytes
        ):
            joined[-1].append(at)
            end = max(stop, end)
        else:
            joined.append([at])
            first, end = start, stop
    return sorted(joined, key=min)
