"""Is the end result what a run without faults gives? Read from receipts and parts alone.

Nothing here uses the code that wrote them, but for ``pipeline.verify``, which is asked as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.drill.cluster import BUCKET, Store

Receipts = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an OUT holds."""

    rows: dict[str, dict[str, Any]]
    """By ``clip_id``, tokens included."""
    quarantined: dict[str, str]
    """``shard/key`` -> reason."""
    problems: list[str]
    """What no OUT may show, whatever it holds."""
    num_segments: int
    num_orphans: int
    """Parts that no receipt names: left by attempts that died, counted by nobody."""


def read_outcome(store: Store, out: str) -> Outcome:
    """All that is committed in an OUT."""
    receipts = [
        json.loads(store.read(f"{out}/receipts/{name}")) for name in store.names(f"{out}/receipts/")
    ]
    rows: dict[str, dict[str, Any]] = {}
    problems = list(_broken_chains(receipts))
    named = [receipt["part"] for receipt in receipts if receipt["part"] is not None]
    for receipt in receipts:
        found = _part(store, out, receipt["part"]) if receipt["part"] is not None else []
        if len(found) != receipt["rows"]:
            problems.append(f"{receipt['part']}: {len(found)} rows, receipt says {receipt['rows']}")
        for row in found:
            if row["clip_id"] in rows:
                problems.append(f"{row['clip_id']} is committed twice")
            rows[row["clip_id"]] = row
    quarantined = {
        f"{receipt['shard']}/{video['key']}": video["reason"]
        for receipt in receipts
        for video in receipt["quarantined"]
    }
    orphans = set(store.names(f"{out}/parts/")) - set(named)
    return Outcome(rows, quarantined, problems, len(receipts), len(orphans))


def _part(store: Store, out: str, name: str) -> list[dict[str, Any]]:
    content = pa.BufferReader(store.read(f"{out}/parts/{name}"))
    rows: list[dict[str, Any]] = pq.ParquetFile(content).read(use_threads=False).to_pylist()
    return rows


def _broken_chains(receipts: Receipts) -> Iterator[str]:
    """Of a shard: segments 0, 1, 2…, a receipt each, byte ranges end to end, the last is final."""
    shards: dict[str, Receipts] = {}
    for receipt in receipts:
        shards.setdefault(receipt["shard"], []).append(receipt)
    for shard, chain in shards.items():
        chain.sort(key=lambda receipt: receipt["segment"])
        if [receipt["segment"] for receipt in chain] != list(range(len(chain))):
            yield f"{shard}: segments {[receipt['segment'] for receipt in chain]}"
        end = 0
        for receipt in chain:
            if receipt["start_offset"] != end:
                yield f"{shard}: segment {receipt['segment']} does not begin at byte {end}"
            end = receipt["end_offset"]
        if [receipt["final"] for receipt in chain] != [False] * (len(chain) - 1) + [True]:
            yield f"{shard}: its last segment alone must be final"


def differences(found: Outcome, clean: Outcome) -> list[str]:
    """In what an OUT differs from the clean one, in sentences."""
    texts = list(found.problems)
    missing, extra = clean.rows.keys() - found.rows.keys(), found.rows.keys() - clean.rows.keys()
    texts += [f"{clip_id} is missing" for clip_id in sorted(missing)]
    texts += [f"{clip_id} should not be there" for clip_id in sorted(extra)]
    for clip_id in sorted(clean.rows.keys() & found.rows.keys()):
        one, other = found.rows[clip_id], clean.rows[clip_id]
        columns = [name for name in other if one.get(name) != other[name]]
        if columns:
            texts.append(f"{clip_id} differs in {', '.join(columns)}")
    keys = sorted(clean.quarantined.keys() | found.quarantined.keys())
    for key in keys:
        reasons = found.quarantined.get(key), clean.quarantined.get(key)
        if reasons[0] != reasons[1]:
            texts.append(f"{key} is quarantined as {reasons[0]}, in the clean run as {reasons[1]}")
    return texts


def verify(store: Store, out: str) -> list[str]:
    """Problems that ``python -m pipeline.verify`` finds."""
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.verify", f"s3://{BUCKET}/{out}"],
        env=os.environ | store.env(through_proxy=False),
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in ended.stdout.splitlines() if line.startswith("problem")]
    if ended.returncode and not said:
        said = [f"pipeline.verify ended with {ended.returncode}: {ended.stderr[-500:]}"]
    return said
