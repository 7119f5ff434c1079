"""``python -m pipeline.diff OUT1 OUT2``: in what do two generations of tokens differ?

Exit codes: 0 they are equal, 1 they differ, 2 one of them cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from pipeline.command_line import CommandLine, carry_out, json_object, new_file
from pipeline.errors import PipelineError, RunError
from pipeline.fingerprint import differences
from pipeline.receipts import ReceiptName, list_receipts
from pipeline.run_record import read_run_record
from pipeline.shard_diff import Differences, Named, ShardGeneration, compare_shard
from pipeline.storage import Storage

SHOW_SECONDS = 5.0
"""Between two lines of progress."""
SHOWN_NAMES = 3
"""Printed of each list; --json has more."""
_THREADS = 4
_AT_ONCE = 16
_SETTINGS = ("random_weights", "batch_clips", "device", "python", "versions", "config", "numerics")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = CommandLine(
        prog="python -m pipeline.diff",
        description="Compare two generations of tokens: fingerprints, shards, clips, tokens, other "
        "columns, quarantined videos. Shards are matched by name, which comes from their URL; "
        "indices by value, whatever their packing. Other settings of the runs are shown, and make "
        "no difference.",
        epilog="exit code: 0 equal, 1 different, 2 one of them cannot be read",
    )
    for number in (1, 2):
        made.add_argument(
            f"out{number}",
            metavar=f"OUT{number}",
            help="output.root of a run: a local path or s3://...",
        )
    made.add_argument("--json", type=new_file, metavar="FILE", help="write all figures there, too")
    made.add_argument(
        "--storage-options", type=json_object, default={}, metavar="JSON", help="fsspec options"
    )
    made.add_argument(
        "--storage-options2", type=json_object, metavar="JSON", help="of OUT2, where they differ"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    options1, options2 = options.storage_options, options.storage_options2
    try:
        report = compare(
            Storage(options.out1, options1),
            Storage(options.out2, options1 if options2 is None else options2),
        )
        if options.json:
            options.json.write_text(json.dumps(report.facts(), indent=1) + "\n")
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --json {options.json}: {error.strerror}", file=sys.stderr)
        return 2
    print("\n".join(describe(report)))
    return 0 if report.is_equal else 1


@dataclass(slots=True, kw_only=True)
class Report:
    """Everything in which two OUTs differ."""

    out1: str
    out2: str
    fingerprint: dict[str, tuple[Any, Any]]
    """Dotted key -> both values, of what decides every row."""
    settings: dict[str, tuple[Any, Any]]
    """The same of the rest of run.json and of the numeric environment; decides nothing."""
    shards_in_both: int = 0
    shards_only_in_1: Named = field(default_factory=Named)
    shards_only_in_2: Named = field(default_factory=Named)
    found: Differences = field(default_factory=Differences)

    @property
    def is_equal(self) -> bool:
        """Whether both hold the same rows of the same configuration, and the same quarantine."""
        num_alone = self.shards_only_in_1.count + self.shards_only_in_2.count
        return not self.fingerprint and not num_alone and self.found.is_empty

    @property
    def equal_share(self) -> float | None:
        """Equal values among those of the clips in both; None: there are none to compare."""
        return self.found.equal_values / self.found.values if self.found.values else None

    @property
    def equal_share_where_different(self) -> float | None:
        """The same among the clips that differ."""
        found = self.found
        num = found.values_where_different
        return 1 - (found.values - found.equal_values) / num if num else None

    @property
    def mean_absolute(self) -> float | None:
        """Mean difference of latent values; None: indices."""
        found = self.found
        return None if found.max_absolute is None else found.sum_absolute / max(1, found.values)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        found = asdict(self.found)
        del found["sum_absolute"]
        return {
            "equal": self.is_equal,
            "out1": self.out1,
            "out2": self.out2,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "shards_in_both": self.shards_in_both,
            "shards_only_in_1": asdict(self.shards_only_in_1),
            "shards_only_in_2": asdict(self.shards_only_in_2),
            **found,
            "equal_share": self.equal_share,
            "equal_share_where_different": self.equal_share_where_different,
            "mean_absolute": self.mean_absolute,
        }


def compare(one: Storage, two: Storage) -> Report:
    """Compare two OUTs, shard by shard.

    Raises:
        PipelineError: one of them cannot be read, or holds what cannot be trusted.
    """
    records = [_record(storage) for storage in (one, two)]
    report = Report(
        out1=str(one),
        out2=str(two),
        fingerprint=differences(*(record["fingerprint_of"] for record in records)),
        settings=differences(
            *({name: record.get(name) for name in _SETTINGS} for record in records)
        ),
    )
    chains = [_by_shard(list_receipts(storage)) for storage in (one, two)]
    names = sorted(chains[0].keys() | chains[1].keys())
    for name in names:
        if name not in chains[1]:
            report.shards_only_in_1.add(name)
        elif name not in chains[0]:
            report.shards_only_in_2.add(name)
        else:
            report.shards_in_both += 1

    def compare_one(name: str) -> Differences:
        both = zip((one, two), chains, strict=True)
        sides = [ShardGeneration(storage, chain.get(name, ())) for storage, chain in both]
        return compare_shard(name, *sides)

    shown = time.monotonic()
    for done, found in enumerate(_in_threads(compare_one, names), 1):
        report.found.extend(found)
        if time.monotonic() - shown > SHOW_SECONDS:
            shown = time.monotonic()
            clips = report.found.clips_1 + report.found.clips_2
            print(f"{done:,} of {len(names):,} shards, {clips:,} rows", file=sys.stderr)
    return report


def _record(storage: Storage) -> dict[str, Any]:
    """``run.json``, and the first worker's numeric environment."""
    record = read_run_record(storage)
    if record is None:
        raise RunError(f"{storage}: no run.json there, so this is no OUT")
    try:
        record["numerics"] = json.loads(storage.read("numerics.json"))
    except FileNotFoundError:
        record["numerics"] = None
    except ValueError as error:
        raise RunError(f"{storage}/numerics.json cannot be read: {error}") from error
    return record


def _by_shard(names: Sequence[ReceiptName]) -> dict[str, list[ReceiptName]]:
    return {shard: list(chain) for shard, chain in groupby(names, lambda name: name.shard)}


def _in_threads(work: Callable[[str], Differences], names: Sequence[str]) -> Iterator[Differences]:
    """A few shards at a time, in order."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for at in range(0, len(names), _AT_ONCE):
            yield from threads.map(work, names[at : at + _AT_ONCE])


def describe(report: Report) -> Iterator[str]:
    """The report in lines."""
    found = report.found
    yield f"1: {report.out1}"
    yield f"2: {report.out2}"
    yield from _changes("fingerprint", report.fingerprint)
    yield from _changes("setting", report.settings)
    yield f"shards: {report.shards_in_both:,} in both"
    yield from _named("shards only in 1", report.shards_only_in_1)
    yield from _named("shards only in 2", report.shards_only_in_2)
    yield f"clips: {found.clips_in_both:,} in both"
    yield from _named("clips only in 1", found.clips_only_in_1)
    yield from _named("clips only in 2", found.clips_only_in_2)
    yield from _named("clips of another shape", found.shapes_differ)
    yield from _named("clips with other tokens", found.tokens_differ)
    if report.equal_share is not None and found.tokens_differ.count:
        yield (
            f"equal values: {report.equal_share:.4%} of all, "
            f"{report.equal_share_where_different:.4%} in the clips that differ"
        )
        if found.max_absolute is not None:
            yield (
                f"latents differ by {found.max_absolute:.4g} at most, "
                f"by {report.mean_absolute:.4g} on average"
            )
    for column, clips in sorted(found.columns_differ.items()):
        yield from _named(f"clips with another {column}", clips)
    yield from _named("quarantined only in 1", found.quarantined_only_in_1)
    yield from _named("quarantined only in 2", found.quarantined_only_in_2)
    yield from _named("quarantined for another reason", found.quarantined_otherwise)
    yield "equal" if report.is_equal else "DIFFERENT"


def _changes(what: str, changes: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    for key, (old, new) in changes.items():
        yield f"{what} {key}: {old!r} | {new!r}"


def _named(what: str, named: Named) -> Iterator[str]:
    if named.count:
        more = ", …" if named.count > SHOWN_NAMES else ""
        yield f"{what}: {named.count:,}: {', '.join(named.names[:SHOWN_NAMES])}{more}"


if __name__ == "__main__":
    carry_out(main, interrupted="interrupted: not everything was compared")
