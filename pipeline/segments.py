"""The records between reading and committing: what an attempt is to do, and a video on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from pipeline.columns import SPAN_INDEX
from pipeline.errors import VideoError
from pipeline.pixel_stats import index_entropy
from pipeline.reader import Sample, Source
from pipeline.receipts import new_attempt
from pipeline.records import DecodeSummary, Retry, TimeSpan
from pipeline.schema import TokenFormat, TokenRow, clip_id
from pipeline.shards import Shard

if TYPE_CHECKING:
    from pipeline.samples import Sampled
    from pipeline.span_table import SpanRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One attempt at a shard, from where its last receipt ends.

    A run with several outputs makes one attempt for all of them: one task each, the first of which
    carries the others.
    """

    shard: Shard
    """What to read."""
    source: Source | None
    """What earlier receipts say the source was; None for a new shard, and behind a cut."""
    start_offset: int = 0
    """Where to begin."""
    next_segment: int = 0
    """Number of the first segment to write."""
    generation: int = 0
    """Of the receipts to write: how often the source was found cut before (``ledger``)."""
    seen: bytes = b""
    """Digests of the keys that are committed already, eight bytes each."""
    retry: Retry | None = None
    """What of the committed part is tried again."""
    goes_on: bool = True
    """Whether something is left behind the last receipt."""
    remaining: int = 0
    """Bytes (members of a bucket) that are to be read, as planned; 0: not known."""
    attempt: str = field(default_factory=new_attempt)
    """Random id of this attempt; names its parts."""
    output: int = 0
    """Which of the run's outputs it is for."""
    beside: tuple[ShardTask, ...] = ()
    """What is left of the shard for further outputs."""

    def each(self) -> list[ShardTask]:
        """The task of every output that something is left for, all of this attempt."""
        others = [replace(one, attempt=self.attempt) for one in self.beside]
        return [replace(self, beside=()), *others]

    @property
    def is_retry(self) -> bool:
        """Whether something committed is tried again, for any output."""
        return any(task.retry is not None for task in self.each())

    @property
    def amends(self) -> bool:
        """Whether quarantined videos of committed segments are tried again, before it goes on."""
        return self.retry is Retry.quarantined

    @property
    def continues_cut(self) -> bool:
        """Whether it begins at a cut: nothing is written when the source still ends there."""
        return self.retry is Retry.incomplete and self.generation > 0 and self.source is None


def joined(tasks: Sequence[ShardTask | None]) -> ShardTask | None:
    """One task for what is left of a shard in several outputs; None: nothing is.

    Args:
        tasks: by output; None where nothing is left.
    """
    each = [replace(task, output=output) for output, task in enumerate(tasks) if task is not None]
    if not each:
        return None
    # what is read is what is left for the output that is least far
    first = max(each, key=lambda task: task.remaining)
    return replace(first, beside=tuple(task for task in each if task is not first))


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRules:
    """When a segment is cut, and what is written beside its part."""

    max_clips: int
    """Clips after which a segment is committed."""
    max_seconds: float
    """Seconds since the shard's last commit after which one is due."""
    row_group_rows: int
    """Most rows of a Parquet row group."""
    row_group_bytes: int = 8 << 20
    """Most bytes of tokens and text in one, unless a single row has more."""
    max_quarantine_bytes: int
    """Originals kept per segment; 0: none, and no quarantine tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedClip:
    """One clip when its pixels are gone."""

    fps: float
    """Target rate."""
    clip_index: int
    """Position at that rate."""
    start_seconds: float
    """From the video's first frame."""
    end_seconds: float
    """From the video's first frame."""
    frame_seconds: tuple[float, ...]
    """Source time of each kept frame."""
    bucket: str
    """Height and width of the clip, ``256x256``."""
    tokens: npt.NDArray[Any]
    """int32 ``[t, h, w]``; latents: float32 ``[2c, t, h, w]``, mean, then log-variance."""
    span_index: int | None = None
    """Which of the video's spans it lies in."""
    quality: Mapping[str, float | None] = field(default_factory=dict)
    """Columns about its pixels and its reconstruction."""
    sample: Sampled | None = None
    """What ``samples/`` shows of it."""


@dataclass(slots=True)
class OpenVideo:
    """A video between the reader and its segment."""

    sample: Sample
    """As read, without its bytes."""
    original: bytes
    """The encoded video; dropped when it has been decoded, kept when it is quarantined."""
    clips: dict[tuple[float, int], EncodedClip] = field(default_factory=dict)
    """Encoded clips by rate and index."""
    tries: int = 0
    """Times that its decoding was begun anew; clips of an earlier try are stale."""
    summary: DecodeSummary | None = None
    """Set when its last clip has been decoded."""
    failure: VideoError | None = None
    """Set when it is quarantined."""
    shard: str = ""
    """Name of its shard, for the names of its clips."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        if self.failure is not None or self.sample.skipped is not None:
            return True
        return self.summary is not None and len(self.clips) == sum(self.summary.num_clips.values())

    @property
    def samples(self) -> list[Sampled]:
        """Pictures of its clips."""
        clips = [] if self.failure is not None else self.clips.values()
        return [clip.sample for clip in clips if clip.sample is not None]

    @property
    def num_clips(self) -> int:
        """Clips that count."""
        return 0 if self.failure is not None else len(self.clips)

    def rows(self, shard: str, token_format: TokenFormat) -> list[TokenRow]:
        """Rows of the part, by rate, then time."""
        if self.failure is not None or self.summary is None:
            return []
        source, sample = self.summary.source, self.sample
        return [
            TokenRow(
                clip_id=clip_id(shard, sample.key, clip.fps, clip.clip_index),
                shard=shard,
                key=sample.key,
                clip_index=clip.clip_index,
                fps=clip.fps,
                start_seconds=clip.start_seconds,
                end_seconds=clip.end_seconds,
                frame_seconds=clip.frame_seconds,
                source_width=source.width,
                source_height=source.height,
                source_fps=source.fps,
                bucket=clip.bucket,
                caption=self._caption(clip),
                metadata=sample.metadata,
                token_shape=token_format.token_shape(clip.tokens.shape),
                tokens=token_format.pack(clip.tokens),
                columns=self._columns(clip),
            )
            for _, clip in sorted(self.clips.items())
        ]

    @property
    def filtered(self) -> Mapping[str, int]:
        """Reason -> rates or spans without a clip; 1 for a video that was skipped."""
        if self.sample.skipped is not None:
            return {self.sample.skipped: 1}
        return {} if self.summary is None else self.summary.filtered

    @property
    def time_spans(self) -> tuple[TimeSpan, ...] | None:
        """What a decoder needs to know of the spans."""
        spans = self.sample.spans
        if spans is None:
            return None
        return tuple(TimeSpan(span.start_seconds, span.end_seconds) for span in spans)

    def _span(self, clip: EncodedClip) -> SpanRow | None:
        spans = self.sample.spans
        return None if spans is None or clip.span_index is None else spans[clip.span_index]

    def _caption(self, clip: EncodedClip) -> str | None:
        """The span's, or the video's where it has none."""
        span = self._span(clip)
        return self.sample.caption if span is None or span.caption is None else span.caption

    def _columns(self, clip: EncodedClip) -> dict[str, Any]:
        """The clip's own; the span's, or the video's where it has none."""
        span = self._span(clip)
        values: dict[str, Any] = {**self.sample.columns, **clip.quality}
        if clip.tokens.dtype.kind != "f":
            values["token_entropy"] = index_entropy(clip.tokens)
        if span is not None:
            values |= {name: value for name, value in span.columns.items() if value is not None}
            values[SPAN_INDEX] = clip.span_index
        return values
