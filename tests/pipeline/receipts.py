"""Receipts of segments that nobody made."""

from __future__ import annotations

import time
from typing import Any

from pipeline.manifest import Receipt, new_attempt
from pipeline.reader import key_digest


def receipt(segment: int = 0, start: int = 0, end: int = 10, **changes: Any) -> Receipt:
    """Segment ``segment`` of shard ``s``, covering bytes ``[start, end)``."""
    fields: dict[str, Any] = {
        "shard": "s",
        "segment": segment,
        "attempt": new_attempt(),
        "fingerprint": "f" * 64,
        "part": None,
        "rows": 0,
        "part_bytes": 0,
        "part_sha256": None,
        "footer_sha256": None,
        "source_url": "/data/s.tar",
        "source_bytes": 1000,
        "source_version": "v1",
        "start_offset": start,
        "end_offset": end,
        "final": False,
        "complete": True,
        "cut_reason": None,
        "videos": 1,
        "filtered": {},
        "quarantined": [],
        "key_digests": key_digest(f"video_{segment}").hex(),
        "numerics": {"device": "fake"},
        "timings": {"source_seconds": 1.0, "decode_cpu_seconds": 0.5},
        "host": "here",
        "created_seconds": round(time.time(), 3),
    }
    return Receipt(**fields | changes)
