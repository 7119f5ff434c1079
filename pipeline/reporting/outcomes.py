"""Sections about what went wrong, and where everything comes from. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from pipeline.ledger import Counts
from pipeline.reporting.charts import bars
from pipeline.reporting.page import note, table
from pipeline.reporting.pictures import (
    address,
    jpeg,
)
from pipeline.reporting.quarantine import BadVideo

# ---- what went wrong ----


def quarantine_section(videos: Sequence[BadVideo], counts: Counts, *, kept_originals: bool) -> str:
    """Reasons, and some of the videos."""
    if not counts.quarantined:
        return note("No video is quarantined.")
    figures = "".join(_bad_figure(video) for video in videos)
    where = " Their originals are in quarantine/, each beside its reason." if kept_originals else ""
    return (
        bars(dict(counts.quarantined.most_common()))
        + note(
            f"{len(videos):,} of {counts.quarantined.total():,} quarantined videos."
            f"{where} retry=quarantined tries them again."
        )
        + f'<div class="gallery">{figures}</div>'
    )


def _bad_figure(video: BadVideo) -> str:
    still = "no frame can be decoded"
    if video.picture is not None:
        still = f'<img alt="a frame of {escape(video.key)}" src="{address(jpeg(video.picture))}">'
    return (
        f'<figure><div class="still">{still}</div><figcaption><b>{escape(video.reason)}</b><br>'
        f'{escape(video.key)}<br><span class="soft">{escape(video.message[:240])}</span>'
        "</figcaption></figure>"
    )


def failures_section(
    failures: Sequence[Mapping[str, Any]],
    *,
    num_failures: int,
    beats: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
    expelled: Mapping[str, str],
    cut: Mapping[str, str],
) -> str:
    """Attempts that failed, shards that were given up or cut, workers that were sent away.

    Args:
        failures: the newest failed attempts.
        num_failures: of all of them.
        beats: what drivers last said; their retries add up.
        failed: shards that were given up, and why.
        expelled: workers that were sent away, and why.
        cut: shards whose tar is cut, and where.
    """
    retries, handed_back, copies = (
        sum(int(beat.get(name, 0)) for beat in beats)
        for name in ("retries", "handed_back", "copies")
    )
    parts = [
        table(
            (),
            [
                ("failed attempts", f"{num_failures:,}"),
                ("shards tried again after a failure", f"{retries:,}"),
                ("handed to another worker", f"{handed_back:,}"),
                ("copied because they took long", f"{copies:,}"),
            ],
        )
    ]
    for title, lost in (
        ("Shards given up", failed),
        ("Shards whose tar is cut", cut),
        ("Workers sent away", expelled),
    ):
        if lost:
            parts.append(f"<h3>{title}</h3>" + table((), sorted(lost.items())[:20]))
            if len(lost) > 20:
                parts.append(note(f"The first 20 of {len(lost):,}."))
    for failure in failures:
        parts.append(_failure(failure))
    return "".join(parts)


def _failure(failure: Mapping[str, Any]) -> str:
    when = moment(float(failure.get("at_seconds") or 0.0))
    head = f"{failure.get('shard', '?')}, {when}: {failure.get('class', '?')}"
    message = str(failure.get("message", ""))[:400]
    trace = escape(str(failure.get("traceback", ""))[-4000:])
    return (
        f"<details><summary>{escape(head)}</summary><p>{escape(message)}</p>"
        f"<pre>{trace}</pre></details>"
    )


# ---- where it comes from ----


def provenance_section(record: Mapping[str, Any], environments: Mapping[str, int]) -> str:
    """Fingerprint, checkpoint, numeric environments, versions, configuration."""
    made_of = record["fingerprint_of"]
    rows = [
        ("fingerprint", record["fingerprint"]),
        ("checkpoint digest", made_of.get("checkpoint_digest", "-")),
        ("weights", "random: tokens carry no meaning" if record["random_weights"] else "trained"),
        ("precision", str(made_of.get("precision", "-"))),
        (
            "packing",
            f"{made_of.get('packing', '-')}, compression {made_of.get('compression', '-')}",
        ),
        ("device, batch", f"{record['device']}, {record['batch_clips']:,} clips"),
        ("begun", moment(record["created_seconds"])),
        ("Python", record["python"]),
        *((name, version) for name, version in record["versions"].items()),
    ]
    parts = [table((), rows), f"<h3>Numeric environments: {len(environments):,}</h3>"]
    ranked = sorted(environments.items(), key=lambda item: -item[1])
    parts += [_environment(json.loads(text), clips) for text, clips in ranked[:8]]
    config = escape(json.dumps(record["config"], indent=1))
    parts.append(
        f"<details><summary>Configuration of the first run</summary><pre>{config}</pre></details>"
    )
    return "".join(parts)


def _environment(environment: Mapping[str, Any], clips: int) -> str:
    text = ", ".join(f"{name} {value}" for name, value in environment.items())
    return f'<p class="note"><b>{clips:,} clips</b>: {escape(text)}</p>'


def moment(seconds: float) -> str:
    """A time of day, UTC.

    >>> moment(0.0)
    '1970-01-01 00:00 UTC'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
