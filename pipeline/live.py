"""How a run stands, as a small table: rates of each stage, queues, what waits.

Made from what a driver says of itself (its heartbeat), so that the run's own terminal and
``pipeline.status --watch`` on another machine show the same.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.attempts import combined
from pipeline.balance import Shares, bottleneck, shares, waiting
from pipeline.history import COLUMNS, Step, lately, moments_of, steps
from pipeline.tally import LAST_QUARANTINED

WINDOW_SECONDS = 60.0
"""Of the rates shown."""
SUMS = ("in_flight", "retries", "handed_back", "copies", "num_workers")
"""Of several drivers these add up."""

PICTURE_COLUMNS = 110
"""Characters in a row of a picture."""
_FONT = re.compile(r"@font-face\s*\{[^}]*\}\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rates of the last minute, and what they promise."""

    step: Step
    """What happened in that time."""
    shares: Shares
    """What waited in that time."""
    eta_seconds: float | None
    """Until all is covered; None: not known."""

    def per_second(self, counter: str) -> float:
        """Rate of a counter of `history.COLUMNS`."""
        return self.step.grown[counter] / self.step.seconds


def pace(beat: Mapping[str, Any]) -> Pace | None:
    """Of a driver's record; None: nothing has been measured yet."""
    step = lately(steps(moments_of(beat)), seconds=WINDOW_SECONDS)
    if step is None:
        return None
    rate = step.grown["covered"] / step.seconds
    return Pace(
        step=step,
        shares=shares(waiting({}), waiting(step.grown)),
        eta_seconds=max(0.0, uncovered(beat)) / rate if rate > 0 else None,
    )


def together(beats: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Records of drivers that share a run, as the ranks of an array do, as that of one.

    Numbers add up; each driver's rates are over its own last minute. What was committed before
    and since (``before``, ``done_shards``) is of the whole OUT and each saw another part of it:
    it is left out, only receipts know it.

    Args:
        beats: the newest first; one stands for itself, none gives an empty record.
    """
    if len(beats) < 2:
        return beats[0] if beats else {}
    counters = combined(beat.get("counters", {}) for beat in beats)
    left = sum(max(0.0, uncovered(beat)) for beat in beats)
    return {
        **{name: sum(int(beat.get(name, 0)) for beat in beats) for name in SUMS},
        "num_shards": max(int(beat.get("num_shards", 0)) for beat in beats),
        "elapsed_seconds": max(float(beat.get("elapsed_seconds") or 0.0) for beat in beats),
        "failed_shards": _merged(beats, "failed_shards"),
        "expelled": _merged(beats, "expelled"),
        "last_quarantined": [text for beat in beats for text in beat.get("last_quarantined", ())][
            :LAST_QUARANTINED
        ],
        "counters": counters,
        "to_cover": counters.get("covered", 0.0) + left,
        "history": _minute_of_all(beats),
    }


def uncovered(beat: Mapping[str, Any]) -> float:
    """Bytes, or members of buckets, that a driver has still to cover."""
    return float(beat.get("to_cover", 0)) - float(beat.get("counters", {}).get("covered", 0.0))


def _merged(beats: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """Names and reasons of all; the newest driver has the last word."""
    return {name: why for beat in reversed(beats) for name, why in beat.get(key, {}).items()}


def _minute_of_all(beats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A history of two moments, between which grows what all drivers together do in a minute."""
    found = [lately(steps(moments_of(beat)), seconds=WINDOW_SECONDS) for beat in beats]
    measured = [step for step in found if step is not None]
    if not measured:
        return {}
    grown = [
        WINDOW_SECONDS * sum(step.grown[name] / step.seconds for step in measured)
        for name in COLUMNS
    ]
    return {
        "columns": list(COLUMNS),
        "moments": [[0.0] * (1 + len(COLUMNS)), [WINDOW_SECONDS, *grown]],
    }


def duration(seconds: float) -> str:
    """Hours, minutes, seconds.

    >>> duration(3725.4), duration(42)
    ('1:02:05', '0:42')
    """
    whole = round(max(0.0, seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def by_reason(reasons: Mapping[str, int]) -> str:
    """Numbers behind a sum.

    >>> by_reason({"too_short": 2, "decode": 1}), by_reason({})
    (' (decode 1, too_short 2)', '')
    """
    text = ", ".join(f"{reason} {number:,}" for reason, number in sorted(reasons.items()))
    return f" ({text})" if text else ""


def stages(beat: Mapping[str, Any]) -> list[tuple[str, str, float | None, str]]:
    """Name of each stage, its rate, its busy share (None: not known), and what it waits for.

    Args:
        beat: a driver's record.
    """
    found = pace(beat)
    if found is None:
        return []
    counters, share = beat.get("counters", {}), found.shares
    has_clips = found.step.grown["encode_seconds"] + found.step.grown["starved_seconds"] > 0
    has_children = found.step.grown["decoder_seconds"] > 0
    decoders, workers = counters.get("decoders", 0), beat.get("num_workers", 0)
    return [
        ("read", f"{found.per_second('videos'):.2f} videos/s", None, ""),
        (
            "decode",
            f"{found.per_second('source_seconds'):.1f} s of video/s",
            1 - share.full - share.idle if has_children else None,
            f"processes: {decoders:.0f}, {share.full:.0%} wait for the encoder",
        ),
        (
            "encode",
            f"{found.per_second('encoded_clips'):.2f} clips/s",
            1 - share.starved if has_clips else None,
            f"workers: {workers}, {share.starved:.0%} wait for clips",
        ),
        ("write", f"{found.per_second('token_bytes') / 1e6:.3f} MB/s", None, "tokens"),
    ]


def panel(beat: Mapping[str, Any]) -> RenderableType:
    """The table of a driver's record."""
    before, counters = beat.get("before", {}), beat.get("counters", {})

    def total(name: str) -> str:
        return f"{before.get(name, 0) + counters.get(name, 0):,.0f}"

    done, num = beat.get("done_shards", 0), beat.get("num_shards", 0)
    found = pace(beat)
    eta = "-" if found is None or found.eta_seconds is None else duration(found.eta_seconds)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=max(1, num), completed=done, width=28),
        Text(f"{done:,} of {num:,} shards"),
        Text(f"running {duration(float(beat.get('elapsed_seconds') or 0.0))}"),
        Text(f"ETA {eta}", style="bold"),
    )
    table = Table.grid(padding=(0, 2))
    for name, rate, busy, rest in stages(beat):
        bar = "" if busy is None else ProgressBar(total=1.0, completed=busy, width=12)
        percent = "" if busy is None else f"{busy:.0%} busy"
        table.add_row(Text(name, style="cyan"), rate, bar, percent, Text(rest, style="dim"))
    left = num - done - beat.get("in_flight", 0) - len(beat.get("failed_shards", {}))
    queues = (
        f"shards: {beat.get('in_flight', 0):,} in hand, {max(0, left):,} waiting, "
        f"{len(beat.get('failed_shards', {})):,} failed; {beat.get('retries', 0):,} retries"
    )
    sums = (
        f"{total('videos')} videos, {total('clips')} clips, {total('filtered')} filtered, "
        f"{total('quarantined')} quarantined; {bottleneck(counters)}"
    )
    lines: list[RenderableType] = [head, table, Text(queues), Text(sums)]
    for text in beat.get("last_quarantined", ()):
        lines.append(Text(f"quarantined {text}", style="yellow", no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def picture(view: RenderableType, *, title: str) -> str:
    """What a terminal would show, as an SVG that loads nothing from elsewhere.

    Args:
        view: such as `panel`.
        title: of the window.
    """
    console = Console(
        record=True,
        width=PICTURE_COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(view)
    return _FONT.sub("", console.export_svg(title=title))
