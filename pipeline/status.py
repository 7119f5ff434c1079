"""``python -m pipeline.status OUT``: how far a data set is, in plain words.

Reads receipts and heartbeats only, so that it works on any machine, while a run goes on or after.
Exit codes: 0 every shard is final and complete, 1 not (yet), 2 no such OUT.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipeline.balance import bottleneck
from pipeline.command_line import CommandLine, carry_out, json_object, new_file, positive
from pipeline.errors import PipelineError, RunError
from pipeline.heartbeat import read_heartbeats, running
from pipeline.ledger import Ledger
from pipeline.live import by_reason, duration, pace, panel, picture, stages, together
from pipeline.receipts import list_receipts, read_receipts
from pipeline.run_record import has_images, read_run_record
from pipeline.storage import Storage

WATCH_SECONDS = 5.0
"""Between two looks of ``--watch``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = CommandLine(
        prog="python -m pipeline.status",
        description="Say how far the output of pipeline.run is.",
        epilog="exit code: 0 every shard is final and complete, 1 not (yet), 2 no such OUT",
    )
    parser.add_argument("out", metavar="OUT", help="output.root of a run: a local path or s3://...")
    parser.add_argument(
        "--watch",
        type=positive,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help="show it again every so many seconds (%(const)g) until nobody works on it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--picture",
        type=new_file,
        metavar="FILE.svg",
        help="write there what a terminal shows of it now",
    )
    parser.add_argument(
        "--storage-options", type=json_object, default={}, metavar="JSON", help="fsspec options"
    )
    options = parser.parse_args(arguments)
    if options.picture is not None and options.watch is not None:
        parser.error("--picture is of one moment: not with --watch")
    try:
        storage = Storage(options.out, options.storage_options)
        if options.watch is not None:
            return watch(storage, options.watch, as_json=options.json)
        facts, drivers = Looks(storage).now()
        if options.picture is not None:
            options.picture.write_text(_picture(storage, facts, drivers), encoding="utf-8")
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --picture {options.picture}: {error.strerror}", file=sys.stderr)
        return 2
    print(json.dumps(facts, indent=1) if options.json else describe(str(storage), facts))
    return 0 if facts["finished"] else 1


class Looks:
    """An OUT as it is now, again and again; each look but the first reads only new receipts."""

    def __init__(self, storage: Storage) -> None:
        """Nothing is read yet."""
        self._storage = storage
        self._ledger: Ledger | None = None
        self._num_drivers = 0

    def now(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The facts, and what drivers last said.

        Raises:
            RunError: no OUT, or one that cannot be trusted.
        """
        record = read_run_record(self._storage)
        if record is None:
            raise RunError(f"{self._storage}: no run.json there, so this is no OUT")
        drivers = read_heartbeats(self._storage)
        # only at its start a driver may take receipts away (changed_inputs=redo)
        if self._ledger is None or len(drivers) != self._num_drivers:
            self._ledger, self._num_drivers = Ledger.open(self._storage), len(drivers)
        else:
            self._ledger = _caught_up(self._ledger, self._storage)
        return collect(record, self._ledger, drivers), drivers


def _caught_up(ledger: Ledger, storage: Storage) -> Ledger:
    """With the receipts that came since; opened anew where some are gone."""
    names = list_receipts(storage)
    fresh = [name for name in names if not ledger.holds(name)]
    if len(names) - len(fresh) < len(ledger):
        return Ledger.open(storage)
    ledger.add(read_receipts(storage, fresh))
    return ledger


def watch(storage: Storage, seconds: float, *, as_json: bool) -> int:
    """Show the facts again and again while a driver is at work; Ctrl-C ends it.

    Reads OUT only: heartbeats, which are written every ten seconds, and receipts as they come.

    Returns:
        0 when every shard is final and complete, else 1.
    """
    console = Console()
    live = (
        Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    )
    looks = Looks(storage)
    facts, drivers = looks.now()
    with live or contextlib.nullcontext(), contextlib.suppress(KeyboardInterrupt):
        while True:
            if live is not None:
                live.update(watched(str(storage), facts, drivers), refresh=True)
            else:
                print(json.dumps(facts) if as_json else one_line(facts, drivers), flush=True)
            if facts["finished"] or not facts["running_drivers"]:
                break
            time.sleep(seconds)
            facts, drivers = looks.now()
    if not as_json:
        print(describe(str(storage), facts))
    return 0 if facts["finished"] else 1


def watched(
    root: str, facts: Mapping[str, Any], drivers: Sequence[Mapping[str, Any]]
) -> RenderableType:
    """What is committed, and the table of the run; of several drivers one for all."""
    beat = at_work(facts, drivers)
    place = Text(root, style="bold", no_wrap=True, overflow="ellipsis")
    committed = (
        f"{facts['clips']:,} clips committed, {facts['final_shards']:,} of "
        f"{facts['num_shards']:,} shards final"
    )
    return Group(place, Text(committed), *([panel(beat)] if beat else []))


def at_work(
    facts: Mapping[str, Any], drivers: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """What the drivers at work say, as of one; None: nobody is.

    Of several each knows only a part of what is done: there the committed part counts.
    """
    beats = running(drivers, time.time())
    if len(beats) < 2:
        return beats[0] if beats else None
    said = together(beats)
    committed = {
        "videos": facts["videos"],
        "clips": facts["clips"],
        "filtered": sum(facts["filtered"].values()),
        "quarantined": sum(facts["quarantined"].values()),
    }
    since = said["counters"]
    return {
        **said,
        "failed_shards": facts["failed_shards"],
        "done_shards": facts["final_shards"],
        "before": {name: number - since.get(name, 0) for name, number in committed.items()},
    }


def _picture(
    storage: Storage, facts: Mapping[str, Any], drivers: Sequence[Mapping[str, Any]]
) -> str:
    """The table while somebody works, else the facts in words; as SVG."""
    if facts["running_drivers"]:
        view = watched(str(storage), facts, drivers)
    else:
        view = Text(describe(str(storage), facts))
    return picture(view, title=f"python -m pipeline.status {storage}")


def one_line(facts: Mapping[str, Any], drivers: Sequence[Mapping[str, Any]]) -> str:
    """The same without a terminal: what is committed, and the rates and ETA of the run."""
    parts = [
        f"shards {facts['final_shards']:,}/{facts['num_shards']:,}",
        f"clips {facts['clips']:,}",
        f"quarantined {sum(facts['quarantined'].values()):,}",
    ]
    beat = at_work(facts, drivers) or {}
    found = pace(beat)
    if found is not None:
        for name, rate, busy, _ in stages(beat):
            parts.append(f"{name} {rate}" + ("" if busy is None else f" {busy:.0%} busy"))
        eta = "-" if found.eta_seconds is None else duration(found.eta_seconds)
        parts.append(f"ETA {eta}")
    return "  ".join(parts)


def collect(
    record: Mapping[str, Any],
    ledger: Ledger,
    drivers: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The facts, as JSON: what is committed, and what the drivers at work, else the last, said."""
    beats = running(drivers, time.time())
    said = together(beats or drivers[:1])
    counts = ledger.counts()
    # How many shards there are is known only to the driver that listed them.
    num_shards = max(int(said.get("num_shards", 0)), len(ledger.states))
    failed = {
        shard: why
        for shard, why in said.get("failed_shards", {}).items()
        if not ledger.state(shard).is_final  # what one driver gave up another may have finished
    }
    return {
        "tokenizer": record["fingerprint_of"]["tokenizer"]["name"],
        "random_weights": record["random_weights"],
        "num_shards": num_shards,
        "final_shards": counts.final_shards,
        "begun_shards": counts.begun_shards,
        "cut_shards": counts.cut,
        "failed_shards": failed,
        "segments": counts.segments,
        "videos": counts.videos,
        "clips": counts.clips,
        "images": counts.single_frames if has_images(record) else None,
        "token_bytes": counts.part_bytes,
        "filtered": dict(counts.filtered),
        "quarantined": dict(counts.quarantined),
        "numeric_environments": counts.numeric_environments,
        "running_drivers": len(beats),
        "elapsed_seconds": said.get("elapsed_seconds"),
        "num_workers": said.get("num_workers", 0),
        "counters": said.get("counters", {}),
        "expelled_workers": dict(said.get("expelled", {})),
        "finished": bool(ledger.states)
        and counts.final_shards == num_shards
        and not counts.cut
        and not failed,
    }


def describe(root: str, facts: Mapping[str, Any]) -> str:
    """The facts in plain words."""
    images = "" if facts["images"] is None else f" ({facts['images']:,} images)"
    lines = [
        f"{root}: {'finished' if facts['finished'] else 'not finished'}",
        f"tokenizer {facts['tokenizer']}"
        + (" with RANDOM weights: its tokens carry no meaning" if facts["random_weights"] else ""),
        f"shards {facts['final_shards']:,} of {facts['num_shards']:,} final, "
        f"{facts['begun_shards']:,} begun",
        f"{facts['videos']:,} videos gave {facts['clips']:,} clips{images} in "
        f"{facts['segments']:,} segments, {facts['token_bytes'] / 1e6:,.2f} MB",
        f"filtered {sum(facts['filtered'].values()):,}{by_reason(facts['filtered'])}, "
        f"quarantined {sum(facts['quarantined'].values()):,}{by_reason(facts['quarantined'])}",
    ]
    if facts["numeric_environments"] > 1:
        lines.append(f"{facts['numeric_environments']} numeric environments are mixed")
    lines += [f"cut: {shard}: {reason}" for shard, reason in facts["cut_shards"].items()]
    lines += [f"failed: {shard}: {reason}" for shard, reason in facts["failed_shards"].items()]
    lines += [f"expelled: {owner}: {why}" for owner, why in facts["expelled_workers"].items()]
    if facts["running_drivers"]:
        lines.append(
            f"{facts['running_drivers']} running now, for "
            f"{duration(facts['elapsed_seconds'] or 0)}, {facts['num_workers']} workers; "
            f"{bottleneck(facts['counters'])}"
        )
    else:
        lines.append("nobody is working on it now")
    return "\n".join(lines)


if __name__ == "__main__":
    carry_out(main)
