"""``python -m pipeline.verify OUT``: is everything committed there, and is it what was committed?

``--deep`` asks as well: is it what its source gives?

Exit codes: 0 all that is committed is sound, 1 something is not (and is named), 2 no such OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.command_line import CommandLine, carry_out, count, json_object
from pipeline.errors import PipelineError, RunError, StorageError
from pipeline.heartbeat import read_heartbeats, running
from pipeline.ledger import ShardState
from pipeline.manifest import line_of, lines_of, read_manifest
from pipeline.parts import check_group, check_part, group_range, open_part, read_row_group
from pipeline.receipts import (
    NEVER_RETRIED,
    Receipt,
    ReceiptName,
    list_receipts,
    new_attempt,
    quarantine_name,
    read_receipt,
    read_receipts,
)
from pipeline.run_record import read_run_record
from pipeline.storage import Storage

ORPHAN_HOURS = 24.0
"""Parts without a receipt that are younger may belong to an attempt that is still running."""
SAMPLE_CLIPS = 100
"""Clips that ``--deep`` draws."""
_THREADS = 4
_AT_ONCE = 64


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = CommandLine(
        prog="python -m pipeline.verify",
        description="Check receipts against parts: presence, rows, digests, schema, page "
        "checksums, row groups, index range, unique clips; manifests against their digests.",
        epilog="exit code: 0 sound, 1 problems (each is named), 2 no such OUT",
    )
    made.add_argument("out", metavar="OUT", help="output.root of a run: a local path or s3://...")
    made.add_argument(
        "--clean",
        action="store_true",
        help="remove parts, quarantine tars and unfinished files that no receipt names and that "
        f"are older than {ORPHAN_HOURS:.0f} h; never while a driver is running",
    )
    made.add_argument(
        "--deep",
        action="store_true",
        help="tokenise a sample of clips again from their source, as run.json says, and compare: "
        "bit for bit in the same numeric environment, else within the bounds of the canary",
    )
    made.add_argument(
        "--sample",
        type=count,
        default=SAMPLE_CLIPS,
        metavar="N",
        help="--deep: clips drawn by hash; each is made again with its whole video (default: "
        "%(default)s)",
    )
    made.add_argument(
        "--seed", type=int, default=0, metavar="S", help="--deep: another one draws other clips"
    )
    made.add_argument(
        "--storage-options", type=json_object, default={}, metavar="JSON", help="fsspec options"
    )
    made.add_argument(
        "--source-options",
        type=json_object,
        default={},
        metavar="JSON",
        help="--deep: fsspec options for the source, such as the secrets that run.json leaves out",
    )
    made.add_argument(
        "--limits",
        type=json_object,
        default={},
        metavar="JSON",
        help='--deep: limits of later runs where they were raised, like {"frames": 5000000}; '
        "run.json has those of the first one",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    try:
        storage = Storage(options.out, options.storage_options)
        record = read_run_record(storage)
        if record is None:
            print(f"error: {storage}: no run.json there, so this is no OUT", file=sys.stderr)
            return 2
        audit = Audit(storage, record["fingerprint"])
        for problem in audit.problems():
            print(f"problem: {problem}")
        report_orphans(storage, audit, clean=options.clean)
        print(audit.verdict())
        if audit.num_problems or not options.deep:
            return 1 if audit.num_problems else 0
        return verify_deeply(storage, record, options)
    except PipelineError as error:
        print(f"problem: {error}")
        return 1


def verify_deeply(storage: Storage, record: Mapping[str, Any], options: argparse.Namespace) -> int:
    """Tokenise a sample again and compare; the exit code.

    Raises:
        PipelineError: nothing can be encoded here.
    """
    # torch and Hydra take seconds to import: only for those who ask for it
    from pipeline.reencode import Reencoding
    from tokenizer import TokenizerError

    try:
        reencoding = Reencoding(
            storage, record, source_options=options.source_options, limits=options.limits
        )
        num_problems = 0
        for problem in reencoding.problems(
            num_clips=options.sample,
            seed=options.seed,
            show=lambda line: print(line, file=sys.stderr, flush=True),
        ):
            num_problems += 1
            print(f"problem: {problem}", flush=True)
    except TokenizerError as error:
        raise RunError(f"the tokenizer of {storage} cannot be loaded here: {error}") from error
    print(reencoding.agreement.verdict())
    return 1 if num_problems else 0


@dataclass(slots=True)
class _Checked:
    """One receipt and its part."""

    receipt: Receipt | None = None
    """None: it cannot be trusted."""
    problems: list[str] = field(default_factory=list)
    clip_ids: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    """Videos that have a row."""


class Audit:
    """Reads every receipt file and every part, a few at a time, and keeps sums."""

    def __init__(self, storage: Storage, fingerprint: str) -> None:
        self._storage, self._fingerprint = storage, fingerprint
        self._names: list[ReceiptName] = []
        self._chain, self._shard, self._is_broken = ShardState(), "", False
        self._clips: dict[bytes, str] = {}
        self._quarantined: dict[int, set[str]] = {}
        self.num_problems = self._receipts = self._parts = self._rows = self._bytes = 0
        self.committed: set[str] = set()
        """Files that receipts name, as paths in OUT."""

    def problems(self) -> Iterator[str]:
        """Everything that is wrong with what is committed, in plain words."""
        self._names = list_receipts(self._storage)
        with ThreadPoolExecutor(_THREADS) as threads:
            for at in range(0, len(self._names), _AT_ONCE):
                names = self._names[at : at + _AT_ONCE]
                for name, checked in zip(names, threads.map(self._check, names), strict=True):
                    for problem in (*checked.problems, *self._compare(name, checked)):
                        self.num_problems += 1
                        yield problem
        for problem in self._manifest_problems():
            self.num_problems += 1
            yield problem

    def _manifest_problems(self) -> Iterator[str]:
        """Loaders may have pinned any of them."""
        for name in sorted(self._storage.entries("manifests")):
            try:
                table, _ = read_manifest(self._storage, name.removesuffix(".parquet"))
                for _ in lines_of(table):
                    pass
            except PipelineError as error:
                yield f"{error}; it may be removed, receipts say it all"
            except ValueError as error:
                yield f"manifest {name} holds what no run writes: {error}"

    def _check(self, name: ReceiptName) -> _Checked:
        """Look at one receipt and its part alone; called by several threads."""
        checked = _Checked()
        try:
            checked.receipt = receipt = read_receipt(self._storage, str(name))
            found = self._part_problems(receipt, checked)
            checked.problems += [f"{name}: {text}" for text in found]
        except FileNotFoundError:
            checked.problems.append(f"receipt {name} is gone")
        except PipelineError as error:
            checked.problems.append(f"{name}: {error}" if checked.receipt else str(error))
        return checked

    def _part_problems(self, receipt: Receipt, checked: _Checked) -> Iterator[str]:
        if receipt.fingerprint != self._fingerprint:
            yield f"fingerprint {receipt.fingerprint[:12]}, OUT's is {self._fingerprint[:12]}"
            return
        if receipt.part is None:
            return
        part = open_part(self._storage, receipt)
        bad = {v["key"] for v in receipt.quarantined if v["reason"] not in NEVER_RETRIED}
        yield from check_part(part, fingerprint=self._fingerprint, quarantined=bad)
        # The whole file's digest last: the checks above say more precisely what is wrong.
        content = self._storage.read(f"parts/{receipt.part}")
        if hashlib.sha256(content).hexdigest() != receipt.part_sha256:
            yield f"parts/{receipt.part}: digest differs from the committed one"
        for group in range(len(receipt.row_groups)):
            start, end = group_range(receipt, group)
            check_group(receipt, group, content[start:end])
        for group in range(part.file.num_row_groups):
            table = read_row_group(part, group, ["clip_id", "key"])
            checked.clip_ids += table.column("clip_id").to_pylist()
            checked.keys.update(table.column("key").to_pylist())

    def _compare(self, name: ReceiptName, checked: _Checked) -> Iterator[str]:
        """Look at a receipt beside those of its shard that came before it."""
        if name.shard != self._shard:
            self._chain, self._shard, self._is_broken = ShardState(), name.shard, False
            self._clips.clear()
            self._quarantined.clear()
        receipt = checked.receipt
        if receipt is None:
            self._is_broken = True
            return
        self._receipts += 1
        self._parts += receipt.part is not None
        self._rows, self._bytes = self._rows + receipt.rows, self._bytes + receipt.part_bytes
        self.committed.update(files_of(receipt))
        if not self._is_broken:
            yield from self._chain_problems(receipt, checked.keys)
        for clip_id in checked.clip_ids:
            digest = hashlib.sha256(clip_id.encode()).digest()[:10]
            if digest in self._clips:
                yield f"{name}: clip {clip_id} is also in {self._clips[digest]}"
            self._clips[digest] = receipt.name

    def _chain_problems(self, receipt: Receipt, keys: set[str]) -> Iterator[str]:
        adds_rows_only = receipt.segment < self._chain.num_segments
        try:
            self._chain.extend(line_of(receipt), b"")
        except PipelineError as error:
            self._is_broken = True
            yield str(error)
            return
        bad = {video["key"] for video in receipt.quarantined}
        if adds_rows_only:
            before = self._quarantined[receipt.segment]
            if strangers := (keys | bad) - before:
                yield f"{receipt.name}: {min(strangers)} was not quarantined before"
        self._quarantined[receipt.segment] = bad

    def look_again(self) -> None:
        """Note what receipts name that came since they were listed."""
        known = set(self._names)
        new = [name for name in list_receipts(self._storage) if name not in known]
        for receipt in read_receipts(self._storage, new):
            self.committed.update(files_of(receipt))

    def verdict(self) -> str:
        """One line that says it all."""
        verdict = f"{self.num_problems} PROBLEMS" if self.num_problems else "sound"
        return (
            f"{self._storage}: {verdict}: {self._receipts} receipts, {self._parts} parts, "
            f"{self._rows:,} clips, {self._bytes / 1e6:,.2f} MB"
        )


def files_of(receipt: Receipt) -> list[str]:
    """What a receipt commits beside itself, as paths in OUT."""
    part = [] if receipt.part is None else [f"parts/{receipt.part}"]
    tar = quarantine_name(receipt.shard, receipt.segment, receipt.attempt)
    return [*part, f"quarantine/{tar}"]


def report_orphans(storage: Storage, audit: Audit, *, clean: bool) -> None:
    """Count what no receipt names; remove what is old when asked and nobody is at work."""
    orphans = {
        f"{folder}/{name}": entry
        for folder in ("parts", "quarantine")
        for name, entry in storage.entries(folder).items()
        if f"{folder}/{name}" not in audit.committed
    }
    leftovers = _unfinished(storage)
    if not orphans and not leftovers:
        return
    parts = sum(name.startswith("parts/") for name in orphans)
    print(
        f"{parts} parts, {len(orphans) - parts} quarantine tars and {len(leftovers)} unfinished "
        "files that no receipt names"
    )
    if not clean:
        return
    now = _storage_now(storage)
    if running(read_heartbeats(storage), now):
        print("a driver is running here: nothing removed")
        return
    audit.look_again()
    limit = now - ORPHAN_HOURS * 3600
    old = [
        name
        for name, entry in orphans.items()
        if name not in audit.committed and entry.modified_seconds < limit
    ]
    for name in old:
        storage.delete(name)
    stale = [path for path in leftovers if path.stat().st_mtime < limit]
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    print(
        f"removed {len(old)} files and {len(stale)} unfinished ones older than {ORPHAN_HOURS:.0f} h"
    )


def _unfinished(storage: Storage) -> list[Path]:
    """Where killed processes left unfinished files in a local OUT."""
    if not storage.is_local:
        return []
    root = Path(storage.path(""))
    return sorted([*root.glob(".tmp-*"), *root.glob("*/.tmp-*")])


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
    carry_out(main, interrupted="interrupted: not everything was looked at")
