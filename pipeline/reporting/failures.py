"""``OUT/failures/``: the newest failed attempts."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import RunError
from pipeline.storage import Storage

MAX_BYTES = 1 << 20
"""A larger file is no record of a failure."""


def read_failures(storage: Storage, *, most: int) -> tuple[list[dict[str, Any]], int]:
    """The newest records, and how many there are in all.

    Raises:
        RunError: a file there that no run wrote.
    """
    entries = {n: e for n, e in storage.entries("failures").items() if n.endswith(".json")}
    newest = sorted(entries, key=lambda name: entries[name].modified_seconds, reverse=True)[:most]
    contents = storage.read_many([f"failures/{name}" for name in newest], max_bytes=MAX_BYTES)
    records = []
    for place, content in contents.items():
        try:
            records.append(dict(json.loads(content)))
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{storage}/{place} is no record of a failure: {error}") from error
    return records, len(entries)
