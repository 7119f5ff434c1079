"""``planning``: what a command costs before its first video, in an OUT with very many receipts.

Makes such an OUT on a local disk, and measures in a process of its own each: planning from the
newest manifest, planning without any, taking in what a run commits, and publishing a manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.benchmark.measure import machine, table, write_json
from pipeline.command_line import CommandLine, count, new_file
from pipeline.ledger import Ledger
from pipeline.listing import Entry
from pipeline.planning import make_plan
from pipeline.reader import source_of
from pipeline.receipt_values import RowGroup
from pipeline.receipts import Receipt, new_attempt, part_name
from pipeline.shards import tar_shards
from pipeline.steering import peak_rss_bytes
from pipeline.storage import Storage

KEYS_PER_RECEIPT = 500
SOURCE_BYTES = 1 << 30
MODES: Mapping[str, str] = {
    "manifest": "plan from a manifest",
    "receipts": "plan without a manifest",
    "grow": "take in 1,000 receipts, publish",
}
LIMIT_SECONDS, LIMIT_BYTES = 20.0, 1 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """The benchmark; exit code 1 when planning from a manifest is beyond its bounds."""
    parser = CommandLine(prog="python -m jobs.benchmark planning", description=__doc__)
    parser.add_argument("--receipts", type=count, default=100_000)
    parser.add_argument("--segments", type=count, default=10, help="receipts of one shard")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    parser.add_argument("--measure", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="vidtok-planning-") as name:
        folder = Path(name)
        make_out(folder, options.receipts, options.segments)
        figures = {mode: _in_a_process(mode, folder) for mode in ("receipts", "manifest", "grow")}
        size = max(entry.stat().st_size for entry in (folder / "out/manifests").iterdir())
        print(f"{options.receipts:,} receipts of {options.segments} a shard; {machine()}")
        print(_as_table(figures))
        a_receipt = size / (options.receipts + 1000)
        print(f"manifest: {size / 1e6:,.1f} MB, {a_receipt:,.0f} bytes a receipt", flush=True)
        write_json(options.json, {**figures, "receipts": options.receipts, "manifest_bytes": size})
    plan = figures["manifest"]
    is_right = plan["seconds"] < LIMIT_SECONDS and plan["peak_rss_bytes"] < LIMIT_BYTES
    return 0 if is_right else 1


def make_out(folder: Path, num_receipts: int, segments: int) -> None:
    """An OUT of that many receipts; the last shard of ten is begun and not final.

    Sources are sparse files. No part is written: planning looks at none.
    """
    (folder / "out/receipts").mkdir(parents=True)
    num_shards = math.ceil(num_receipts / segments)
    urls = [str(folder / f"{number:06d}.tar") for number in range(num_shards)]
    for url in urls:
        os.close(os.open(url, os.O_CREAT | os.O_WRONLY))
        os.truncate(url, SOURCE_BYTES)
    for number, shard in enumerate(tar_shards(urls)):
        version = source_of(shard, {}).version
        last = min(segments, num_receipts - number * segments)
        for segment in range(last):
            receipt = receipt_of(
                shard.name,
                shard.url,
                version,
                segment,
                share=SOURCE_BYTES // segments,
                final=segment == last - 1 and number % 10 != 9,
            )
            (folder / "out/receipts" / receipt.name).write_bytes(receipt.to_bytes())


def receipt_of(
    shard: str, url: str, version: str, segment: int, *, share: int, final: bool
) -> Receipt:
    """One as a worker writes it: a few videos filtered, one in ten segments has a bad one."""
    attempt = new_attempt()
    digest = hashlib.sha256(attempt.encode()).hexdigest()
    is_bad = int(digest[0], 16) < 2
    bad = [{"key": f"{digest[:11]}", "reason": "decode_error", "message": "a frame is damaged"}]
    rows, size = 4000 + int(digest[:2], 16), 40_000_000 + int(digest[:5], 16)
    return Receipt(
        shard=shard,
        segment=segment,
        attempt=attempt,
        fingerprint="0" * 64,
        part=part_name(shard, segment, attempt),
        rows=rows,
        part_bytes=size,
        part_sha256=digest,
        footer_sha256=digest[::-1],
        row_groups=tuple(
            RowGroup(
                rows=min(256, rows - 256 * number),
                end_offset=2_350_000 * (number + 1),
                sha256=hashlib.sha256(f"{attempt} {number}".encode()).hexdigest(),
            )
            for number in range(math.ceil(rows / 256))
        ),
        shapes={"5,32,32": rows},
        latent_mean=(),
        latent_std=(),
        source_url=url,
        source_bytes=SOURCE_BYTES,
        source_version=version,
        start_offset=segment * share,
        end_offset=(segment + 1) * share,
        final=final,
        complete=True,
        cut_reason=None,
        videos=KEYS_PER_RECEIPT,
        filtered={"too_short": int(digest[1], 16)},
        quarantined=bad if is_bad else [],
        key_digests=(digest[:16]) * KEYS_PER_RECEIPT,
        numerics={"device": "NVIDIA H100", "torch": "2.13.0", "batch": [8, 17, 256, 256]},
        timings={"segment_seconds": 100.0, "decode_cpu_seconds": 900.0, "write_seconds": 0.5},
        host="node-17",
        created_seconds=round(time.time(), 3),
    )


class CountingStorage(Storage):
    """Counts what would be requests on S3: a listing gives 1,000 names an answer."""

    def __init__(self, root: str) -> None:
        """Open it; nothing is counted yet."""
        super().__init__(root)
        self.requests = 0

    def entries(self, folder: str) -> dict[str, Entry]:
        """Count pages."""
        found = super().entries(folder)
        self.requests += max(1, math.ceil(len(found) / 1000))
        return found

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """Count one, and another for the length where that is not bounded."""
        self.requests += 1 if max_bytes else 2
        return super().read(name, max_bytes=max_bytes)

    def read_many(self, names: Sequence[str], *, max_bytes: int | None = None) -> dict[str, bytes]:
        """Count each."""
        self.requests += len(names) * (1 if max_bytes else 2)
        return super().read_many(names, max_bytes=max_bytes)

    def entry(self, name: str) -> Entry:
        """Count one."""
        self.requests += 1
        return super().entry(name)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Count one."""
        self.requests += 1
        return super().put_if_absent(name, content)


def measure(mode: str, folder: Path) -> dict[str, float]:
    """One mode, in this process."""
    storage = CountingStorage(str(folder / "out"))
    shards = tar_shards(sorted(str(path) for path in folder.glob("*.tar")))
    imported = peak_rss_bytes()
    measured: Callable[[], Any]
    if mode == "grow":
        ledger = Ledger.open(storage)
        new = [
            receipt_of(f"new{n:04d}", "/new.tar", "1", 0, share=100, final=True)
            for n in range(1000)
        ]
        storage.requests = 0

        def measured() -> Any:
            ledger.add(new)
            return ledger.publish(storage)
    else:

        def measured() -> Any:
            return make_plan(shards, storage, options={}, redo_changed=False)

    if mode == "receipts":
        shutil.rmtree(folder / "out/manifests", ignore_errors=True)
    began, cpu = time.perf_counter(), time.process_time()
    result = measured()
    figures = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_before_bytes": imported,
        "requests": storage.requests,
    }
    if mode == "receipts":
        result.ledger.publish(storage)
    return figures


def _in_a_process(mode: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "jobs.benchmark", "planning"]
    done = subprocess.run(
        [*command, "--measure", mode, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _as_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    rows = [["", "seconds", "CPU s", "peak MB", "before, MB", "S3 requests for OUT"]]
    for mode, text in MODES.items():
        one = figures[mode]
        rows.append(
            [
                text,
                f"{one['seconds']:.1f}",
                f"{one['cpu_seconds']:.1f}",
                f"{one['peak_rss_bytes'] / 1e6:,.0f}",
                f"{one['rss_before_bytes'] / 1e6:,.0f}",
                f"{one['requests']:,}",
            ]
        )
    return table(rows)
