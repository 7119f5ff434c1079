"""Which frames of a video make which clips: pure arithmetic over timestamps, no decoder.

Times are exact fractions of a second after the video's first frame. A target rate f lays a grid
over the video: tick i is at ``i / f``. A frame is on screen from its own timestamp to the next
frame's, so tick i shows the last frame whose timestamp is not later than ``i / f``. Clip n covers
ticks ``[n * stride, n * stride + T)``.

Two tolerances, and why they are what they are:

* ``TICK_TOLERANCE_SECONDS`` (1 ms): a frame counts as on screen up to this much before its
  timestamp. WebM rounds timestamps to whole milliseconds, the first one too, so the distance of two
  timestamps can be off by 1 ms; a 30 fps source sampled at 30, 15 or 10 fps must still give exactly
  every first, second or third frame. The picture shown 1 ms early is never one that a viewer
  could have told from the right one.
* ``RATE_TOLERANCE`` (2 %): a source slower than the target has no frames for it, but 29.97 serves
  30 and 23.976 serves 24. 24 does not serve 25 (4 % off).
"""

from __future__ import annotations

import heapq
import math
import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

from pipeline.records import ClipPlan, SamplingMode, TailPolicy, TimeSpan

Raw = TypeVar("Raw")

TICK_TOLERANCE_SECONDS = Fraction(1, 1000)
"""How much before its timestamp a frame may serve a tick."""
RATE_TOLERANCE = Fraction(2, 100)
"""How much slower than a target rate a source may be and still serve it."""
SOURCE_TOO_SLOW = "source_too_slow"
"""Filter reason: the source's mean rate is below the target rate."""
TOO_SHORT = "too_short"
"""Filter reason: the video ends before its first clip does."""
SPAN_TOO_SHORT = "span_too_short"
"""Filter reason: a span, or each shot in it, ends before its first clip does."""
SPAN_BEYOND_END = "span_beyond_end"
"""Filter reason: a span starts where the video has ended."""


def exact_rate(fps: float) -> Fraction:
    """The decimal number that was written, not its binary neighbour.

    >>> exact_rate(29.97), exact_rate(8)
    (Fraction(2997, 100), Fraction(8, 1))
    """
    rate = Fraction(repr(fps))
    if rate <= 0:
        raise ValueError(f"a target rate must be above 0 frames per second, got {fps!r}")
    return rate


def first_tick(seconds: Fraction, rate: Fraction) -> int:
    """First tick that shows a frame with this timestamp (or a later frame), never below 0.

    >>> [first_tick(Fraction(ms, 1000), Fraction(30)) for ms in (0, 33, 34, 35, 67)]
    [0, 1, 1, 2, 2]
    """
    return max(0, math.ceil((seconds - TICK_TOLERANCE_SECONDS) * rate))


def mean_rate(times: Sequence[int], time_base: Fraction) -> Fraction | None:
    """Frames per second between the first and the last timestamp; None where that says nothing.

    It is a property of the whole video: it does not depend on how far a pass decoded it.

    >>> mean_rate([0, 100, 500], Fraction(1, 1000))
    Fraction(4, 1)
    """
    span = (times[-1] - times[0]) * time_base if times else Fraction(0)
    return (len(times) - 1) / span if span > 0 else None


def last_frame_duration(gaps: Sequence[int], *, stated: int) -> int:
    """How long the last frame stays: as stated, but no longer than any frame before it did.

    The bound keeps a header that states an hour from becoming an hour of one picture. Without a
    statement (0) it is the median gap; a video of one frame lasts as stated.

    >>> last_frame_duration([40, 40, 80], stated=40), last_frame_duration([40, 40, 80], stated=0)
    (40, 40)
    >>> last_frame_duration([40, 40, 80], stated=90_000)
    80
    """
    if stated <= 0:
        return statistics.median_low(gaps) if gaps else 0
    return min(stated, max(gaps, default=stated))


def is_too_slow(source_rate: Fraction | None, target: Fraction) -> bool:
    """Whether a source of this mean rate has too few frames for the target rate.

    Variable rates count by their mean over the whole video, so a long pause in a screen recording
    makes it slow, one in a fast video does not. A video of one frame (rate None) is an image and
    is never too slow.

    >>> is_too_slow(Fraction(30000, 1001), Fraction(30)), is_too_slow(Fraction(24), Fraction(25))
    (False, True)
    """
    return source_rate is not None and source_rate < target * (1 - RATE_TOLERANCE)


def clip_ticks(index: int, plan: ClipPlan) -> range:
    """Ticks of a clip; in mode whole of a piece: the first is one frame, as streams begin.

    >>> plan = ClipPlan(fps=(8.0,), clip_frames=17, stride_frames=16, max_clips_per_video=None,
    ...     tail=TailPolicy.drop, buckets=((64, 64),))
    >>> clip_ticks(2, plan)
    range(32, 49)
    """
    if plan.mode is SamplingMode.whole:
        start = 1 + (index - 1) * plan.clip_frames if index else 0
        return range(start, start + (plan.clip_frames if index else 1))
    return range(index * plan.stride_frames, index * plan.stride_frames + plan.clip_frames)


def expected_clips(duration_seconds: Fraction, rate: Fraction, plan: ClipPlan) -> int:
    """Whole clips (whole: pieces) of one rate in a video of this length, known before decoding.

    >>> plan = ClipPlan(fps=(8.0,), clip_frames=17, stride_frames=17, max_clips_per_video=None,
    ...     tail=TailPolicy.drop, buckets=((64, 64),))
    >>> expected_clips(Fraction(6 * 3600), Fraction(8), plan)
    10164
    """
    num_ticks = first_tick(duration_seconds, rate)
    first = clip_ticks(0, plan).stop
    number = (num_ticks - first) // plan.stride_frames + 1 if num_ticks >= first else 0
    bound = plan.max_clips_per_video
    return number if bound is None else min(number, bound)


def span_ticks(span: TimeSpan, rate: Fraction) -> tuple[int, int | None]:
    """First tick in a span, and the one behind its last; None: the video's end says it.

    >>> span_ticks(TimeSpan(1.0, 2.5), Fraction(8)), span_ticks(TimeSpan(0.9), Fraction(8))
    ((8, 20), (8, None))
    """
    start = first_tick(Fraction(span.start_seconds), rate)
    if span.end_seconds is None:
        return start, None
    return start, math.floor((Fraction(span.end_seconds) + TICK_TOLERANCE_SECONDS) * rate)


def expected_in_spans(
    duration_seconds: Fraction, rate: Fraction, plan: ClipPlan, spans: Sequence[TimeSpan]
) -> int:
    """Most clips of one rate that the spans of a video of this length can give.

    >>> plan = ClipPlan(fps=(8.0,), clip_frames=8, stride_frames=8, max_clips_per_video=None,
    ...     tail=TailPolicy.drop, buckets=((64, 64),))
    >>> spans = (TimeSpan(0.0, 2.0), TimeSpan(5.0), TimeSpan(50.0, 60.0))
    >>> expected_in_spans(Fraction(8), Fraction(8), plan, spans)
    5
    """
    number = 0
    for span in spans:
        end = duration_seconds
        if span.end_seconds is not None:
            end = min(end, Fraction(span.end_seconds))
        if end > Fraction(span.start_seconds):
            number += expected_clips(end - Fraction(span.start_seconds), rate, plan)
    bound = plan.max_clips_per_video
    return number if bound is None else min(number, bound)


def tail_frames(num_ticks: int, num_whole_clips: int, plan: ClipPlan) -> int | None:
    """Frames that count in the clip to pad at a video's end; None when there is none.

    Clips: only with ``tail=pad``, and only when it shows a tick that no earlier clip showed; all T
    count. Whole: what makes the length 1 + k * time_factor, rounded down (drop) or up (pad).
    """
    clip = clip_ticks(num_whole_clips, plan)
    left = num_ticks - clip.start
    if plan.mode is SamplingMode.whole:
        rounding = math.ceil if plan.tail is TailPolicy.pad else math.floor
        real = rounding(left / plan.time_factor) * plan.time_factor if left > 0 else 0
        return real or None
    covered = clip_ticks(num_whole_clips - 1, plan).stop if num_whole_clips else 0
    is_due = plan.tail is TailPolicy.pad and num_ticks > max(clip.start, covered)
    return plan.clip_frames if is_due else None


class PresentationOrder(Generic[Raw]):
    """Gives frames rising timestamps where a file's timestamps go backwards.

    A decoder hands frames out in the order of their content. Files exist whose timestamps
    contradict it (rising in the order of storage, as if there were no B-frames); there the content
    is right: in the file this was measured on, neighbouring frames differ by 1.3 grey levels in
    decoder order, by 2.5 in timestamp order. So the frames keep their order and the timestamps are
    sorted: the next frame out gets the smallest timestamp still waiting.

    To know the smallest, a frame waits until every earlier timestamp that the container announced
    has come, but never behind more than ``max_frames`` or ``max_bytes`` of other frames. Frames
    that come in order never wait. A timestamp that is still earlier than the one given before it
    is dropped together with a frame, and counted: what jumps back further than the window is not
    on screen at any time.

    Args:
        expected: every timestamp the container announced, sorted.
        max_frames: frames that may wait.
        max_bytes: size of the frames that may wait.
    """

    def __init__(
        self, expected: Sequence[int], *, max_frames: int = 16, max_bytes: int = 64 << 20
    ) -> None:
        self._expected = expected
        self._next_expected = 0
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._times: list[int] = []
        self._frames: deque[tuple[int, Raw]] = deque()
        self._waiting_bytes = 0
        self._last: int | None = None
        self.num_dropped = 0
        """Frames left out because their place in time had passed."""

    def add(self, time: int, frame: Raw, *, size_bytes: int) -> Iterator[tuple[int, Raw]]:
        """Take the decoder's next frame; gives the frames whose time is now certain."""
        heapq.heappush(self._times, time)
        self._frames.append((size_bytes, frame))
        self._waiting_bytes += size_bytes
        while self._frames and (self._is_certain or self._is_full):
            yield from self._pop()

    def finish(self) -> Iterator[tuple[int, Raw]]:
        """The frames still waiting; no other will come."""
        while self._frames:
            yield from self._pop()

    @property
    def _is_certain(self) -> bool:
        if self._next_expected == len(self._expected):
            return True
        return self._times[0] <= self._expected[self._next_expected]

    @property
    def _is_full(self) -> bool:
        return len(self._frames) > self._max_frames or self._waiting_bytes > self._max_bytes

    def _pop(self) -> Iterator[tuple[int, Raw]]:
        time = heapq.heappop(self._times)
        size_bytes, frame = self._frames.popleft()
        self._waiting_bytes -= size_bytes
        # Announced times up to this one either came or never will in order.
        self._next_expected = bisect_right(self._expected, time, lo=self._next_expected)
        if self._last is not None and time < self._last:
            self.num_dropped += 1
            return
        self._last = time
        yield time, frame
