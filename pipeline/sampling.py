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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from pipeline.records import ClipPlan, SamplingMode, TailPolicy

Raw = TypeVar("Raw")
Kept = TypeVar("Kept")

TICK_TOLERANCE_SECONDS = Fraction(1, 1000)
"""How much before its timestamp a frame may serve a tick."""
RATE_TOLERANCE = Fraction(2, 100)
"""How much slower than a target rate a source may be and still serve it."""
SOURCE_TOO_SLOW = "source_too_slow"
"""Filter reason: the source's mean rate is below the target rate."""
TOO_SHORT = "too_short"
"""Filter reason: the video ends before its first clip does."""


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


class ClipSampler(Generic[Raw, Kept]):
    """Makes clips at several target rates out of one pass over a video's frames.

    ``keep`` is called once for each frame that some clip shows, whatever the number of rates and
    ticks, before the next frame is asked for.

    Args:
        plan: rates, clip length, stride, bound and tail policy.
        keep: turns a decoded frame into what a clip holds (scaled RGB pixels).
        too_slow: rates of the plan that this video cannot serve.
    """

    def __init__(
        self, plan: ClipPlan, keep: Callable[[Raw], Kept], *, too_slow: frozenset[float]
    ) -> None:
        self._keep = keep
        self._rates = [_RateSampler[Kept](fps, plan) for fps in plan.fps if fps not in too_slow]
        self._filtered_slow = len(set(plan.fps) & too_slow)
        self._all_fps = plan.fps
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

    def add(self, seconds: Fraction, frame: Raw) -> Iterator[PickedClip[Kept]]:
        """Take the next frame in presentation order; gives the clips completed by its arrival.

        Raises:
            ValueError: the frame is earlier than the one before it.
        """
        previous, self._pending = self._pending, (seconds, frame)
        if previous is not None:
            if seconds < previous[0]:
                raise ValueError(f"frame at {seconds} s comes after one at {previous[0]} s")
            yield from self._show(*previous, until=seconds)

    def finish(self, end_seconds: Fraction) -> Iterator[PickedClip[Kept]]:
        """Show the last frame until ``end_seconds``, then apply the tail policy."""
        if self._pending is not None:
            (seconds, frame), self._pending = self._pending, None
            yield from self._show(seconds, frame, until=end_seconds, at_least_one_tick=seconds == 0)
        for rate in self._rates:
            yield from rate.finish(end_seconds)

    def filtered(self) -> dict[str, int]:
        """Reason -> number of rates without a clip; meaningful after ``finish``."""
        short = sum(rate.num_clips == 0 for rate in self._rates)
        reasons = {SOURCE_TOO_SLOW: self._filtered_slow, TOO_SHORT: short}
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
                if rate.wants_next_tick and kept is None:
                    kept = self._keep(frame)
                yield from rate.show(float(seconds), kept)


class _RateSampler(Generic[Kept]):
    """The grid of one target rate."""

    def __init__(self, fps: float, plan: ClipPlan) -> None:
        self.fps, self.rate = fps, exact_rate(fps)
        self.num_clips = 0
        self.next_tick = 0
        self._plan = plan
        # Ticks from the start of the clip being filled; at most T.
        self._shown: deque[tuple[float, Kept]] = deque(maxlen=plan.clip_frames)

    @property
    def is_done(self) -> bool:
        bound = self._plan.max_clips_per_video
        return bound is not None and self.num_clips >= bound

    @property
    def wants_next_tick(self) -> bool:
        """False between two clips, where the stride is longer than a clip."""
        return self.next_tick >= clip_ticks(self.num_clips, self._plan).start

    def show(self, seconds: float, kept: Kept | None) -> Iterator[PickedClip[Kept]]:
        if self.wants_next_tick:
            assert kept is not None
            self._shown.append((seconds, kept))
        self.next_tick += 1
        clip = clip_ticks(self.num_clips, self._plan)
        if self.next_tick == clip.stop:
            yield self._clip(clip, len(clip), end=None)

    def finish(self, end_seconds: Fraction) -> Iterator[PickedClip[Kept]]:
        num_real = tail_frames(self.next_tick, self.num_clips, self._plan)
        if num_real is None or self.is_done:
            return
        clip = clip_ticks(self.num_clips, self._plan)
        self._shown.extend([self._shown[-1]] * (clip.stop - self.next_tick))
        yield self._clip(clip, num_real, end=end_seconds)

    def _clip(self, ticks: range, num_real: int, *, end: Fraction | None) -> PickedClip[Kept]:
        grid_end = Fraction(ticks.start + num_real) / self.rate
        clip = PickedClip(
            fps=self.fps,
            clip_index=self.num_clips,
            num_real_frames=num_real,
            start_seconds=float(Fraction(ticks.start) / self.rate),
            end_seconds=float(grid_end if end is None else min(grid_end, end)),
            frame_seconds=tuple(seconds for seconds, _ in self._shown)[:num_real],
            frames=tuple(kept for _, kept in self._shown),
        )
        self.num_clips += 1
        next_start = clip_ticks(self.num_clips, self._plan).start
        for _ in range(min(next_start - ticks.start, len(self._shown))):
            self._shown.popleft()
        return clip


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
