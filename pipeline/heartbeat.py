"""``OUT/progress/<driver>.json``: what a running driver says of itself now and then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import RunError
from pipeline.storage import Storage

HEARTBEAT_SECONDS = 10.0
"""Between two heartbeats of a driver."""
FRESH_SECONDS = 60.0
"""An older heartbeat is of a driver that was killed."""


def write_heartbeat(storage: Storage, driver: str, record: Mapping[str, Any]) -> None:
    """Replace what the driver said before."""
    storage.put(f"progress/{driver}.json", json.dumps(dict(record)).encode())


def read_heartbeats(storage: Storage) -> list[dict[str, Any]]:
    """What drivers last said, newest first, with ``modified_seconds`` by the storage's clock.

    Raises:
        RunError: a file there that no driver wrote.
    """
    entries = storage.entries("progress")
    contents = storage.read_many([f"progress/{n}" for n in entries if n.endswith(".json")])
    beats = []
    for place, content in contents.items():
        try:
            beat = dict(json.loads(content))
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{storage}/{place} is no heartbeat: {error}") from error
        beat["modified_seconds"] = entries[place.removeprefix("progress/")].modified_seconds
        beats.append(beat)
    return sorted(beats, key=lambda beat: float(beat["modified_seconds"]), reverse=True)


def running(beats: Sequence[Mapping[str, Any]], now: float) -> list[Mapping[str, Any]]:
    """Those of drivers that are at work.

    Args:
        beats: of ``read_heartbeats``.
        now: by the same clock.
    """
    return [
        beat
        for beat in beats
        if beat.get("running") and now - beat["modified_seconds"] < FRESH_SECONDS
    ]
