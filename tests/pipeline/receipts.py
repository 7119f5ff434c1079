"""Receipts of segments that nobody made."""

from __future__ import annotations

import time
from typing import Any

from pipeline.ledger import Ledger
from pipeline.reader import key_digest
from pipeline.receipt_values import RowGroup
from pipeline.receipts import Receipt, list_receipts, new_attempt, read_receipts
from pipeline.storage import Storage


def receipt(segment: int = 0, start: int = 0, end: int = 10, **changes: Any) -> Receipt:
    """Segment ``segment`` of shard ``s``, covering bytes ``[start, end)``.

    A part has one row group, unless it is said otherwise.
    """
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
        "row_groups": (),
        "shapes": {},
        "latent_mean": (),
        "latent_std": (),
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
    if changes.get("part") is not None and changes.get("rows"):
        rows = changes["rows"]
        fields["part_bytes"] = 1000
        fields["row_groups"] = (RowGroup(rows=rows, end_offset=900, sha256="c" * 64),)
        fields["shapes"] = {"1,2,3": rows}
    return Receipt(**fields | changes)


def all_receipts(storage: Storage) -> list[Receipt]:
    """Every receipt file of an OUT, read."""
    return list(read_receipts(storage, list_receipts(storage)))


def ledger_of(*receipts: Receipt) -> Ledger:
    """A ledger of these."""
    ledger = Ledger()
    ledger.add(receipts)
    return ledger
