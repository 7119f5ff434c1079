"""Facts to the report's sections: what each shows, in markup. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from pipeline.balance import bottleneck, shares, waiting
from pipeline.film import in_a_row
from pipeline.history import moments_of, steps
from pipeline.ledger import Counts
from pipeline.live import duration
from pipeline.moments import LatentMoments
from pipeline.png import png
from pipeline.reporting.charts import area, bars, histogram, short, stacked
from pipeline.reporting.costs import Cost
from pipeline.reporting.ledger_facts import Throughput
from pipeline.reporting.outcomes import moment
from pipeline.reporting.page import note, table
from pipeline.reporting.pictures import (
    address,
    index_colours,
    latent_colours,
)
from pipeline.reporting.row_sample import CodebookUse, RowSample, TokenClip
from pipeline.reporting.strips import Strip, psnr_by_kind

MAX_TOKEN_FRAMES = 5
"""Latent frames of a token map."""


# ---- pictures ----


def strips_section(
    strips: Sequence[Strip], measured: Sequence[Strip], *, origin: str, missing: str | None
) -> str:
    """Source above reconstruction, and PSNR for each rate and bucket.

    Args:
        strips: clips with pictures.
        measured: clips that PSNR is of.
        origin: who decoded them, as a sentence.
        missing: why there are not more of them.
    """
    if not measured:
        return note(f"No clip was reconstructed: {missing or 'none was asked for'}.")
    kinds = [
        (kind, f"{num:,}", f"{median:.2f}")
        for kind, (num, median) in psnr_by_kind(measured).items()
    ]
    figures = "".join(_strip_figure(one) for one in strips)
    why_not_more = note(f"Not all could be shown: {missing}.") if missing else ""
    return (
        f'<p class="soft">Above the source, below it what the decoder makes of the tokens. '
        f"{escape(origin)}</p>"
        f"{table(('rate and bucket', 'clips', 'median PSNR, dB'), kinds)}{figures}{why_not_more}"
    )


def _strip_figure(one: Strip) -> str:
    pictures = "".join(
        f'<img alt="{escape(what)} of {escape(one.clip_id)}" src="{address(picture)}">'
        for what, picture in one.pictures.items()
    )
    caption = f" · {escape(one.caption[:160])}" if one.caption else ""
    return (
        f'<figure class="strip">{pictures}<figcaption><b>{one.psnr:.2f} dB</b> · '
        f"{escape(one.clip_id)} · {escape(one.bucket)}{caption}</figcaption></figure>"
    )


def tokens_section(
    sample: RowSample,
    use: CodebookUse | None,
    *,
    use_origin: str,
    latents: LatentMoments | None,
    num_groups: int,
) -> str:
    """How the codebook is used, or how latents are spread; and some token maps."""
    parts = []
    if use is not None:
        parts.append(_codebook(use, use_origin))
    if latents is not None:
        parts.append(_latents(latents))
    if sample.shown:
        what = "indices, one colour for each" if use is not None else "latents, channels as RGB"
        parts.append(f"<h3>Token maps ({what})</h3><div class='maps'>")
        parts += [_token_map(clip, sample) for clip in sample.shown]
        parts.append("</div>")
    parts.append(
        note(f"Maps and counts are of {sample.rows:,} clips in {num_groups:,} row groups.")
    )
    return "".join(parts)


def _codebook(use: CodebookUse, origin: str) -> str:
    possible = min(use.size, use.total)
    rows = {
        "codes seen": f"{use.used:,} of {use.size:,} ({use.used / use.size:.1%})",
        "perplexity": f"{use.perplexity:,.0f} of at most {possible:,} ({origin})",
        "entropy of a token": f"{use.bits:.2f} bits of {np.log2(use.size):.2f}",
    }
    few = ""
    if use.total < 10 * use.size:
        few = note(
            f"{use.total:,} tokens are few for {use.size:,} codes: use and perplexity are too "
            "small, they grow with the number of tokens."
        )
    return table((), list(rows.items())) + few


def _latents(latents: LatentMoments) -> str:
    channels = range(len(latents.mean))
    rows = [(str(c), f"{latents.mean[c]:+.4f}", f"{latents.std[c]:.4f}") for c in channels]
    scale = 1.0 / float(np.mean(np.square(latents.std)) + np.mean(np.square(latents.mean))) ** 0.5
    head = f"<p>Means of {latents.num_values:,} values a channel, of all parts.</p>"
    return (
        head
        + table(("channel", "mean", "standard deviation"), rows)
        + note(f"One over their root mean square is {scale:.4f}.")
    )


def _token_map(clip: TokenClip, sample: RowSample) -> str:
    assert sample.token_format is not None
    frames = min(MAX_TOKEN_FRAMES, clip.tokens.shape[-3])
    if sample.token_format.is_discrete:
        pictures = index_colours(clip.tokens[:frames])
    else:
        means = clip.tokens[: sample.token_format.channels]
        pictures = latent_colours(means[:, :frames])
    image = address(png(in_a_row(pictures, gap=1, colour=128)))
    shape = " x ".join(map(str, clip.row["token_shape"]))
    name = escape(clip.row["clip_id"])
    return (
        f'<figure class="map"><img alt="tokens of {name}" src="{image}">'
        f"<figcaption>{name} · {shape}</figcaption></figure>"
    )


# ---- the data ----


def data_section(sample: RowSample, counts: Counts, *, num_groups: int) -> str:
    """Clips per video, durations, sizes, rates, and what gave no clip."""
    if not sample.rows:
        return note("There is no clip yet.")
    charts = (
        ("Clips per video and rate", bars(_spread(sample.clips_per_video))),
        ("Source size", bars(dict(sample.sizes.most_common()))),
        ("Source frame rate", bars(dict(sample.source_fps.most_common()), most=6)),
        ("Clip length", bars(dict(sample.clip_seconds.most_common()), most=5)),
        ("Target rate", bars(dict(sample.rates.most_common()))),
        ("Bucket", bars(dict(sample.buckets.most_common()))),
    )
    cells = "".join(f"<div><h3>{title}</h3>{chart}</div>" for title, chart in charts)
    seconds = np.array(sample.covered_seconds)
    lengths = ""
    if len(seconds):
        top = max(float(np.percentile(seconds, 99)), 1.0)
        columns, _ = np.histogram(np.minimum(seconds, top), bins=24, range=(0.0, top))
        chart = histogram(
            columns.tolist(), low=0.0, high=top, label="seconds tokenised of a video", unit=" s"
        )
        lengths = f"<h3>Seconds of a video, up to the end of its last clip</h3>{chart}"
    filtered = ""
    if counts.filtered:
        chosen = bars(dict(counts.filtered.most_common()))
        filtered = f"<h3>Healthy videos without a clip, by reason</h3>{chosen}"
    return (
        note(
            f"Of {sample.rows:,} clips in {num_groups:,} row groups, drawn by hash; "
            "videos without a clip are counted in all receipts."
        )
        + f'<div class="columns">{cells}</div>{lengths}{filtered}'
    )


def _spread(values: Sequence[int]) -> dict[str, float]:
    """Counts of 1, 2, 3, 4, then 5 to 8, 9 to 16, and so on.

    >>> _spread([1, 1, 3, 6, 12])
    {'1': 2, '3': 1, '5 to 8': 1, '9 to 16': 1}
    """
    found: Counter[int] = Counter()
    for value in values:
        found[value if value <= 4 else 1 << (value - 1).bit_length()] += 1
    return {
        str(top) if top <= 4 else f"{top // 2 + 1} to {top}": found[top] for top in sorted(found)
    }


# ---- time and cost ----


def time_section(flow: Throughput, beats: Sequence[Mapping[str, Any]]) -> str:
    """Clips per second over the time that somebody worked, and what held the work up."""
    parts = []
    if len(flow.rates):
        ticks = [(k / 4, duration(flow.worked_seconds * k / 4)) for k in range(5)]
        parts.append(
            "<h3>Clips per second</h3>"
            + area(flow.rates.tolist(), label="clips per second", ticks=ticks, breaks=flow.breaks)
        )
        if flow.breaks:
            parts.append(note("Dashed: time without work is left out."))
    measured = [beat for beat in beats if waiting(beat.get("counters", {})).encode_seconds > 0]
    for beat in measured[:3]:
        parts.append(_bottleneck(beat))
    if len(measured) > 3:
        parts.append(note(f"The newest three of {len(measured):,} runs."))
    return "".join(parts) or note("Nothing was measured yet.")


def _bottleneck(beat: Mapping[str, Any]) -> str:
    """Where one run's time went."""
    counters = beat["counters"]
    now = waiting(counters)
    share = shares(waiting({}), now)
    encoder = stacked([("encodes", 1 - share.starved), ("waits for clips", share.starved)])
    busy = max(0.0, 1 - share.full - share.idle)
    decoders = stacked(
        [("decode", busy), ("wait for the encoder", share.full), ("without a video", share.idle)]
    )
    when = moment(float(beat.get("began_at_seconds") or beat.get("at_seconds") or 0.0))
    begun = (
        f"<h3>Run of {when}: {escape(bottleneck(counters))}</h3>"
        f'<div class="columns"><div><p class="note">The encoder</p>{encoder}</div>'
        f'<div><p class="note">Decoder processes</p>{decoders}</div></div>'
    )
    return begun + _busy_over_time(beat)


def _busy_over_time(beat: Mapping[str, Any]) -> str:
    """Share of the encoder's time in which it encodes, step by step; only where it is known."""
    found = steps(moments_of(beat))
    if len(found) < 8:
        return ""
    busy = []
    for step in found:
        spent = step.grown["encode_seconds"] + step.grown["starved_seconds"]
        busy.append(100 * step.grown["encode_seconds"] / spent if spent > 0 else 0.0)
    end = found[-1].at_seconds + found[-1].seconds
    ticks = [(k / 4, duration(end * k / 4)) for k in range(5)]
    chart = area(busy, label="percent of its time that the encoder encodes", ticks=ticks)
    return f'<p class="note">Percent of its time that the encoder encodes</p>{chart}'


def cost_section(cost: Cost) -> str:
    """Seconds of GPUs and cores for clips and hours of video."""
    if not cost.clips:
        return note("No run has left what it took.")

    def row(name: str, seconds: float) -> tuple[str, str, str, str]:
        return (
            name,
            short(seconds),
            short(cost.per_1000_clips(seconds)),
            short(cost.per_video_hour(seconds)),
        )

    rows = []
    if cost.has_gpus:
        rows.append(row("GPU-seconds, encoding", cost.encode_seconds))
        rows.append(row("GPU-seconds, waiting for clips", cost.starved_seconds))
    else:
        rows.append(row("core-seconds, encoding", cost.encode_core_seconds))
    rows.append(row("core-seconds, decoding", cost.decode_core_seconds))
    if not cost.has_gpus:
        rows.append(row("core-seconds, together", cost.core_seconds))
    rows.append(row("worker-seconds, from start to end", cost.worker_seconds))
    head = ("", "all", "per 1,000 clips", "per hour of video")
    how = (
        f"From the counters of {cost.drivers:,} run{'s' * (cost.drivers != 1)}: "
        f"{cost.clips:,.0f} clips of {cost.video_seconds / 3600:,.2f} hours of video. "
        + ("" if cost.has_gpus else "Encoding: its time, times its threads. ")
        + "A worker that was killed takes its counters along."
    )
    return table(head, rows) + note(how)
