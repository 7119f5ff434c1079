"""Frames in time to clips: what `pipeline.sampling` says of ticks, done as the frames come.

A *stretch* is what no clip may cross: a video, a span of it, a shot between two cuts. It begins at
the first tick that shows a frame which is itself in the stretch, and its clips follow one another
from there. Several spans may overlap; each is filled on its own, and their clips are numbered in
the order in which they are complete.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Generic, TypeVar

from pipeline.records import ClipPlan, TailPolicy, TimeSpan
from pipeline.sampling import (
    SOURCE_TOO_SLOW,
    SPAN_BEYOND_END,
    SPAN_TOO_SHORT,
    TICK_TOLERANCE_SECONDS,
    TOO_SHORT,
    clip_ticks,
    exact_rate,
    first_tick,
    span_ticks,
    tail_frames,
)

Raw = TypeVar("Raw")
Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedClip(Generic[Kept]):
    """The frames of one clip; a frame that several ticks show stands there several times."""

    fps: float
    """The target rate."""
    clip_index: int
    """Position among the video's clips at this rate, from 0."""
    num_real_frames: int
    """Frames that count; those behind are padding (whole mode's last piece)."""
    start_seconds: float
    """Time of the clip's first tick."""
    end_seconds: float
    """Time of the tick after its last, or the video's end where that is earlier (padded)."""
    frame_seconds: tuple[float, ...]
    """Timestamps of the frames, length T."""
    frames: tuple[Kept, ...]
    """The frames, length T."""
    span_index: int | None = None
    """Which of the spans it lies in; None: there are none."""


class ClipSampler(Generic[Raw, Kept]):
    """Makes clips at several target rates out of one pass over a video's frames.

    ``keep`` is called once for each frame that some clip shows, whatever the number of rates and
    ticks, before the next frame is asked for.

    Args:
        plan: rates, clip length, stride, bound and tail policy.
        keep: turns a decoded frame into what a clip holds (scaled RGB pixels).
        too_slow: rates of the plan that this video cannot serve.
        spans: clips lie within one of these; None: anywhere.
    """

    def __init__(
        self,
        plan: ClipPlan,
        keep: Callable[[Raw], Kept],
        *,
        too_slow: frozenset[float],
        spans: Sequence[TimeSpan] | None = None,
    ) -> None:
        self._keep = keep
        self._rates = [
            _RateSampler[Kept](fps, plan, spans) for fps in plan.fps if fps not in too_slow
        ]
        self._filtered_slow = len(set(plan.fps) & too_slow)
        self._all_fps = plan.fps
        self._spans = spans
        self._end_seconds: Fraction | None = None
        self._pending: tuple[Fraction, Raw] | None = None

    @property
    def is_done(self) -> bool:
        """No rate wants another frame."""
        return all(rate.is_done for rate in self._rates)

    @property
    def num_clips(self) -> dict[float, int]:
        """Clips made so far, for every rate of the plan."""
        made = {rate.fps: rate.num_clips for rate in self._rates}
        return {fps: made.get(fps, 0) for fps in self._all_fps}

    def add(
        self, seconds: Fraction, frame: Raw, *, is_cut: bool = False
    ) -> Iterator[PickedClip[Kept]]:
        """Take the next frame in presentation order; gives the clips completed by its arrival.

        Args:
            seconds: its timestamp.
            frame: as it was decoded.
            is_cut: it is the first of another shot.

        Raises:
            ValueError: the frame is earlier than the one before it.
        """
        previous, self._pending = self._pending, (seconds, frame)
        if previous is not None:
            if seconds < previous[0]:
                raise ValueError(f"frame at {seconds} s comes after one at {previous[0]} s")
            yield from self._show(*previous, until=seconds)
        if is_cut:
            for rate in self._rates:
                yield from rate.cut(seconds)

    def finish(self, end_seconds: Fraction) -> Iterator[PickedClip[Kept]]:
        """Show the last frame until ``end_seconds``, then apply the tail policy."""
        self._end_seconds = end_seconds
        if self._pending is not None:
            (seconds, frame), self._pending = self._pending, None
            yield from self._show(seconds, frame, until=end_seconds, at_least_one_tick=seconds == 0)
        for rate in self._rates:
            yield from rate.finish(end_seconds)

    def filtered(self) -> dict[str, int]:
        """Reason -> number of rates (of spans: at every rate) without a clip, when all is done."""
        if self._spans is not None:
            return self._filtered_spans(self._spans)
        short = sum(rate.num_clips == 0 for rate in self._rates)
        reasons = {SOURCE_TOO_SLOW: self._filtered_slow, TOO_SHORT: short}
        return {reason: number for reason, number in reasons.items() if number}

    def _filtered_spans(self, spans: Sequence[TimeSpan]) -> dict[str, int]:
        reasons = Counter({SOURCE_TOO_SLOW: self._filtered_slow * len(spans)})
        for rate in self._rates:
            for index in rate.empty_spans:
                is_beyond = (
                    self._end_seconds is not None
                    and Fraction(spans[index].start_seconds) >= self._end_seconds
                )
                reasons[SPAN_BEYOND_END if is_beyond else SPAN_TOO_SHORT] += 1
        return {reason: number for reason, number in reasons.items() if number}

    def _show(
        self, seconds: Fraction, frame: Raw, *, until: Fraction, at_least_one_tick: bool = False
    ) -> Iterator[PickedClip[Kept]]:
        kept: Kept | None = None
        for rate in self._rates:
            last = first_tick(until, rate.rate)
            if at_least_one_tick:
                last = max(last, 1)
            while rate.next_tick < last and not rate.is_done:
                rate.enter(seconds)
                if rate.wants_next_tick and kept is None:
                    kept = self._keep(frame)
                yield from rate.show(float(seconds), kept)


@dataclass(slots=True, kw_only=True)
class _Stretch(Generic[Kept]):
    """Ticks of one rate that no clip may cross the ends of."""

    plan: ClipPlan
    span: int | None
    """Its span; None: there are none."""
    first: int
    """Its first tick."""
    stop: int | None
    """The tick behind its last; None: the video's end says it."""
    end_seconds: Fraction | None
    """When its span ends."""
    num_clips: int = 0
    shown: deque[tuple[float, Kept]] = field(default_factory=deque)
    """Ticks from the start of the clip being filled; at most T."""

    @property
    def clip(self) -> range:
        """Ticks of the clip being filled."""
        ticks = clip_ticks(self.num_clips, self.plan)
        return range(self.first + ticks.start, self.first + ticks.stop)

    def wants(self, tick: int) -> bool:
        """False between two clips, and where no other clip fits."""
        clip = self.clip
        fits = self.stop is None or clip.stop <= self.stop or self.plan.tail is TailPolicy.pad
        return fits and tick >= clip.start

    def next_clip(self) -> None:
        """Keep what the next clip shows, too."""
        start = self.clip.start
        self.num_clips += 1
        for _ in range(min(self.clip.start - start, len(self.shown))):
            self.shown.popleft()


class _RateSampler(Generic[Kept]):
    """The grid of one target rate."""

    def __init__(self, fps: float, plan: ClipPlan, spans: Sequence[TimeSpan] | None) -> None:
        self.fps, self.rate = fps, exact_rate(fps)
        self.num_clips = 0
        self.next_tick = 0
        self._plan = plan
        numbered = [(None, TimeSpan(0.0))] if spans is None else list(enumerate(spans))
        self._coming = deque(sorted(numbered, key=lambda one: one[1].start_seconds))
        self._open: list[_Stretch[Kept]] = []
        self._empty = set() if spans is None else set(range(len(spans)))

    @property
    def is_done(self) -> bool:
        return self._is_full or not (self._coming or self._open)

    @property
    def _is_full(self) -> bool:
        bound = self._plan.max_clips_per_video
        return bound is not None and self.num_clips >= bound

    @property
    def empty_spans(self) -> list[int]:
        """Spans that gave no clip; none where the bound of clips cut them off."""
        return [] if self._is_full else sorted(self._empty)

    @property
    def wants_next_tick(self) -> bool:
        return any(stretch.wants(self.next_tick) for stretch in self._open)

    def enter(self, seconds: Fraction) -> None:
        """Open the spans that the frame of this time, shown at the next tick, is the first of."""
        while self._coming:
            index, span = self._coming[0]
            first, stop = span_ticks(span, self.rate)
            is_before = seconds < Fraction(span.start_seconds) - TICK_TOLERANCE_SECONDS
            if is_before or self.next_tick < first:
                return
            self._coming.popleft()
            end = None if span.end_seconds is None else Fraction(span.end_seconds)
            if stop is None or self.next_tick < stop:
                self._open.append(self._stretch(index, stop, end))

    def _stretch(self, span: int | None, stop: int | None, end: Fraction | None) -> _Stretch[Kept]:
        return _Stretch(
            plan=self._plan,
            span=span,
            first=self.next_tick,
            stop=stop,
            end_seconds=end,
            shown=deque(maxlen=self._plan.clip_frames),
        )

    def show(self, seconds: float, kept: Kept | None) -> Iterator[PickedClip[Kept]]:
        tick, self.next_tick = self.next_tick, self.next_tick + 1
        for stretch in tuple(self._open):
            if stretch.wants(tick):
                assert kept is not None
                stretch.shown.append((seconds, kept))
                if self.next_tick == stretch.clip.stop:
                    yield self._clip(stretch, len(stretch.clip), end=None)
            if self._is_full:
                return
            if self.next_tick == stretch.stop:
                self._open.remove(stretch)
                yield from self._pad(stretch, stretch.end_seconds)

    def cut(self, seconds: Fraction) -> Iterator[PickedClip[Kept]]:
        """The next tick shows another shot, which begins at this time."""
        for place, stretch in enumerate(tuple(self._open)):
            yield from self._pad(stretch, seconds)
            self._open[place] = self._stretch(stretch.span, stretch.stop, stretch.end_seconds)

    def finish(self, end_seconds: Fraction) -> Iterator[PickedClip[Kept]]:
        for stretch in self._open:
            end = stretch.end_seconds
            yield from self._pad(stretch, end_seconds if end is None else min(end, end_seconds))

    def _pad(self, stretch: _Stretch[Kept], end: Fraction | None) -> Iterator[PickedClip[Kept]]:
        """The tail policy, at a stretch's end."""
        num_real = tail_frames(self.next_tick - stretch.first, stretch.num_clips, self._plan)
        if num_real is None or self._is_full:
            return
        clip = stretch.clip
        stretch.shown.extend([stretch.shown[-1]] * (clip.stop - self.next_tick))
        yield self._clip(stretch, num_real, end=end)

    def _clip(
        self, stretch: _Stretch[Kept], num_real: int, *, end: Fraction | None
    ) -> PickedClip[Kept]:
        ticks = stretch.clip
        grid_end = Fraction(ticks.start + num_real) / self.rate
        clip = PickedClip(
            fps=self.fps,
            clip_index=self.num_clips,
            num_real_frames=num_real,
            start_seconds=float(Fraction(ticks.start) / self.rate),
            end_seconds=float(grid_end if end is None else min(grid_end, end)),
            frame_seconds=tuple(seconds for seconds, _ in stretch.shown)[:num_real],
            frames=tuple(kept for _, kept in stretch.shown),
            span_index=stretch.span,
        )
        self.num_clips += 1
        if stretch.span is not None:
            self._empty.discard(stretch.span)
        stretch.next_clip()
        return clip
