"""``python -m pipeline.verify OUT``: is everything committed there, and is it what was committed?

Exit codes: 0 all that is committed is sound, 1 something is not (and is named), 2 no such OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import PipelineError, StorageError
from pipeline.heartbeat import read_heartbeats, running
from pipeline.manifest import Receipt, by_shard, load_receipts, new_attempt
from pipeline.parts import check_part, open_part, read_row_group
from pipeline.run_record import read_run_record
from pipeline.storage import Storage

ORPHAN_HOURS = 24.0
"""Parts without a receipt that are younger may belong to an attempt that is still running."""
_THREADS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.verify",
        description="Check receipts against parts: presence, rows, digests, schema, page "
        "checksums, index range, unique clips.",
        epilog="exit code: 0 sound, 1 problems (each is named), 2 no such OUT",
    )
    parser.add_argument("out", metavar="OUT", help="output.root of a run: a local path or s3://...")
    parser.add_argument(
        "--clean",
        action="store_true",
        help=f"remove parts that no receipt names and that are older than {ORPHAN_HOURS:.0f} h; "
        "never while a driver is running",
    )
    parser.add_argument(
        "--storage-options", type=json.loads, default={}, metavar="JSON", help="fsspec options"
    )
    options = parser.parse_args(arguments)
    try:
        storage = Storage(options.out, options.storage_options)
        record = read_run_record(storage)
        if record is None:
            print(f"error: {storage}: no run.json there, so this is no OUT", file=sys.stderr)
            return 2
        receipts = load_receipts(storage, use_manifest=False)
        by_shard(receipts)
        problems = list(find_problems(storage, receipts, record["fingerprint"]))
        for problem in problems:
            print(f"problem: {problem}")
        report_orphans(storage, receipts, clean=options.clean)
    except PipelineError as error:
        print(f"problem: {error}")
        return 1
    print_verdict(storage, receipts, problems)
    return 1 if problems else 0


def print_verdict(storage: Storage, receipts: Sequence[Receipt], problems: Sequence[str]) -> None:
    """One line that says it all."""
    parts = sum(receipt.part is not None for receipt in receipts)
    clips = sum(receipt.rows for receipt in receipts)
    size = sum(receipt.part_bytes for receipt in receipts)
    verdict = f"{len(problems)} PROBLEMS" if problems else "sound"
    print(
        f"{storage}: {verdict}: {len(receipts)} receipts, {parts} parts, {clips:,} clips, "
        f"{size / 1e6:,.2f} MB"
    )


def find_problems(storage: Storage, receipts: Sequence[Receipt], fingerprint: str) -> Iterator[str]:
    """Everything that is wrong with what is committed, in plain words."""
    seen: dict[bytes, str] = {}

    def check(receipt: Receipt) -> tuple[list[str], list[str]]:
        try:
            return _check_receipt(storage, receipt, fingerprint)
        except (PipelineError, FileNotFoundError) as error:
            return [str(error)], []

    with ThreadPoolExecutor(_THREADS) as threads:
        for receipt, (found, clip_ids) in zip(receipts, threads.map(check, receipts), strict=True):
            yield from (f"{receipt.name}: {text}" for text in found)
            for clip_id in clip_ids:
                digest = hashlib.sha256(clip_id.encode()).digest()[:10]
                if digest in seen:
                    yield f"{receipt.name}: clip {clip_id} is also in {seen[digest]}"
                seen[digest] = receipt.name


def _check_receipt(
    storage: Storage, receipt: Receipt, fingerprint: str
) -> tuple[list[str], list[str]]:
    """What is wrong with one segment, and its clip ids."""
    if receipt.fingerprint != fingerprint:
        return [f"fingerprint {receipt.fingerprint[:12]}, OUT's is {fingerprint[:12]}"], []
    if receipt.part is None:
        return ([f"{receipt.rows} rows without a part"] if receipt.rows else []), []
    part = open_part(storage, receipt)
    problems = list(check_part(part, fingerprint=fingerprint))
    # The whole file's digest last: the checks above say more precisely what is wrong.
    content = storage.read(f"parts/{receipt.part}")
    if hashlib.sha256(content).hexdigest() != receipt.part_sha256:
        problems.append(f"parts/{receipt.part}: digest differs from the committed one")
    clip_ids = [
        clip_id
        for group in range(part.file.num_row_groups)
        for clip_id in read_row_group(part, group, ["clip_id"]).column(0).to_pylist()
    ]
    return problems, clip_ids


def report_orphans(storage: Storage, receipts: Sequence[Receipt], *, clean: bool) -> None:
    """Count parts without a receipt; remove the old ones when asked and nobody is at work."""
    committed = {receipt.part for receipt in receipts}
    orphans = {n: e for n, e in storage.entries("parts").items() if n not in committed}
    leftovers = _scratch_folders(storage)
    if not orphans and not leftovers:
        return
    print(f"{len(orphans)} parts and {len(leftovers)} scratch folders that no receipt names")
    if not clean:
        return
    now = _storage_now(storage)
    if running(read_heartbeats(storage), now):
        print("a driver is running here: nothing removed")
        return
    # A receipt may have come since the listing: look again before anything is removed.
    committed = {receipt.part for receipt in load_receipts(storage)}
    limit = now - ORPHAN_HOURS * 3600
    old = [n for n, e in orphans.items() if n not in committed and e.modified_seconds < limit]
    for name in old:
        storage.delete(f"parts/{name}")
    stale = [folder for folder in leftovers if folder.stat().st_mtime < limit]
    for folder in stale:
        shutil.rmtree(folder)
    print(f"removed {len(old)} parts and {len(stale)} folders older than {ORPHAN_HOURS:.0f} h")


def _scratch_folders(storage: Storage) -> list[Path]:
    """Where killed workers of a local OUT left unfinished files."""
    if not storage.is_local:
        return []
    return sorted(Path(storage.path("parts")).glob(".tmp-*"))


def _storage_now(storage: Storage) -> float:
    """The storage's own clock; this machine's may be wrong."""
    name = f"progress/clock-{new_attempt()}"
    storage.put(name, b"")
    try:
        return storage.entry(name).modified_seconds
    except FileNotFoundError as error:
        raise StorageError(str(storage), "a file just written is not there") from error
    finally:
        storage.delete(name)


if __name__ == "__main__":
    sys.exit(main())
