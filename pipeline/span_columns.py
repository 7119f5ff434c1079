"""Whether a table of spans says where spans start and end in columns that are read.

A column that is misspelt would be one that is not there, and a span without a start and an end is
the whole video.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import ConfigError

_NEAR = {
    "start_seconds": re.compile(
        r"(?:clip|span|segment|scene|shot|time|t)?(?:start|begin)"
        r"(?:time|timestamp|pts|frame|at|in)?(?:s|secs?|seconds?|ms|msecs?|milliseconds?)?"
    ),
    "end_seconds": re.compile(
        r"(?:clip|span|segment|scene|shot|time|t)?(?:end|stop)"
        r"(?:time|timestamp|pts|frame|at|in)?(?:s|secs?|seconds?|ms|msecs?|milliseconds?)?"
    ),
}
"""What else a column may be called, in small letters alone."""

_SUSPECT = re.compile(rb"start|begin|end|stop", re.IGNORECASE)
_KNOWN = re.compile(rb'"(?:start|end)_seconds"')


def check_names(names: Sequence[str], wanted: Collection[str], place: str) -> None:
    """Whether the columns are there once, and those of start and end under the names that are read.

    Args:
        names: of the file.
        wanted: which are read.
        place: the file, for the message.

    Raises:
        ConfigError: one is there twice, or only under a near name.
    """
    for name in names:
        if name in wanted and names.count(name) > 1:
            raise ConfigError(f"{place}: column {name} is there twice")
    for missed in _NEAR:
        for name in names if missed not in names else ():
            if name not in wanted and is_near(name, missed):
                raise ConfigError(f"{place}: column {name!r} is not read; did you mean {missed}?")


def is_near(name: str, meant: str) -> bool:
    """Whether a column may be meant as ``start_seconds`` or ``end_seconds``.

    >>> is_near(" Start_sec", "start_seconds"), is_near("end_credits", "end_seconds")
    (True, False)
    """
    letters = re.sub(r"[^a-z]", "", name.lower())
    return bool(_NEAR[meant].fullmatch(letters))


def check_json_lines(path: Path, wanted: Collection[str], place: str) -> None:
    """``check_names`` of every row: each has keys of its own.

    Raises:
        ConfigError: as ``check_names``, or a line that is no JSON.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if _SUSPECT.search(_KNOWN.sub(b"", line)):  # most lines need no parsing
                check_names(_keys(line, f"{place}: line {number:,}"), wanted, place)


def _keys(line: bytes, place: str) -> list[str]:
    try:
        return list(json.loads(line.decode("utf-8", "replace")))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} cannot be read as spans: {error}") from error
