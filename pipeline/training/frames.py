"""Pure: which pictures of a video make a training clip.

The published recipe chooses frames by their numbers. Here a number is a *slot*: a video of N frames
at mean rate v is cut into N slots of ``1 / v`` seconds, and slot i shows what is on screen in its
middle. At a constant rate that is frame i, even where a container rounds its timestamps by almost
half a frame; at a variable rate the pictures of a clip stay evenly spaced in time, as in
`pipeline.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

Raw = TypeVar("Raw")
Kept = TypeVar("Kept")


def num_slots(duration_seconds: Fraction, source_rate: Fraction | None) -> int:
    """N: as many pictures of the mean rate as the video has room for, at least one.

    >>> num_slots(Fraction(10), Fraction(30)), num_slots(Fraction(5), None)
    (300, 1)
    """
    return max(1, round(duration_seconds * source_rate)) if source_rate is not None else 1


def frame_step(source_rate: float, rate: float) -> int:
    """Source frames between two frames of a clip, at least 1.

    A half is rounded to the even neighbour, as published. The published code has no step for a
    source below half the rate; such a source gives every frame once here.

    >>> [frame_step(30.0, rate) for rate in (30, 12, 8, 3)], frame_step(10.0, 30)
    ([1, 2, 4, 10], 1)
    """
    return max(1, round(source_rate / rate))


def num_starts(num_frames: int, source_rate: float, wanted: int, rate: float) -> int:
    """How many first frames a clip may have; 1 where the video is hardly longer than a clip.

    >>> num_starts(300, 30.0, 17, 8), num_starts(65, 30.0, 17, 8)
    (235, 1)
    """
    span = (min(wanted, num_frames) - 1) * frame_step(source_rate, rate) + 1
    return max(1, num_frames - span)


def frame_numbers(
    num_frames: int, source_rate: float, wanted: int, rate: float, start: int
) -> list[int]:
    """Frames of the published training clip (VidTok, ``model_spec`` 10.3), ``[min(wanted, N)]``.

    ``trunc(linspace(start, min(N - 1, start + span), n))``: the last frame is one further than a
    clip of even steps would end. A video shorter than that is squeezed.

    Args:
        num_frames: N, of the video.
        source_rate: v, its frames per second.
        wanted: frames of a clip; a shorter video gives all it has.
        rate: the rate that the clip is to have, frames per second.
        start: first frame.

    >>> frame_numbers(300, 30.0, 5, 8, 5)
    [5, 9, 13, 17, 22]
    """
    n = min(wanted, num_frames)
    if n == 1:
        return [start]
    span = (n - 1) * frame_step(source_rate, rate) + 1
    length = min(num_frames - 1, start + span) - start
    return [start + k * length // (n - 1) for k in range(n)]


def clip_slots(
    num_frames: int, source_rate: float, wanted: int, rate: float, chance: float
) -> list[int]:
    """Slots of a clip, ``[wanted]``; in short videos the last one is repeated.

    Args:
        num_frames: N.
        source_rate: v; of an image any number.
        wanted: frames of the clip.
        rate: its rate.
        chance: where it starts among all places possible, in [0, 1).

    >>> clip_slots(3, 30.0, 5, 30, 0.9)
    [0, 1, 2, 2, 2]
    """
    start = int(chance * num_starts(num_frames, source_rate, wanted, rate))
    numbers = frame_numbers(num_frames, source_rate, wanted, rate, start)
    return numbers + numbers[-1:] * (wanted - len(numbers))


class SlotPicker(Generic[Raw, Kept]):
    """Gathers the pictures of one clip from a video's pictures as they pass.

    Args:
        slots: never falling.
        source_rate: slots per second.
        keep: turns a picture into what the clip holds; called once for each picture it shows.
    """

    def __init__(
        self, slots: Sequence[int], source_rate: Fraction, keep: Callable[[Raw], Kept]
    ) -> None:
        self._middles = [(slot + Fraction(1, 2)) / source_rate for slot in slots]
        self._keep = keep
        self.starts_at = slots[0] / source_rate
        """Seconds of the first slot."""
        self.frames: list[Kept] = []
        """What was gathered so far."""

    @property
    def is_done(self) -> bool:
        """Nothing is missing."""
        return len(self.frames) == len(self._middles)

    def show(self, frame: Raw, *, until: Fraction | None) -> None:
        """A picture that is on screen until then (None: for good), after those shown before."""
        kept: Kept | None = None
        for middle in self._middles[len(self.frames) :]:
            if until is not None and middle >= until:
                return
            if kept is None:
                kept = self._keep(frame)
            self.frames.append(kept)


def with_ends(frames: Iterator[tuple[Fraction, Raw]]) -> Iterator[tuple[Raw, Fraction | None]]:
    """Each picture with the time at which the next one takes its place; None for the last.

    >>> list(with_ends(iter([(Fraction(0), "a"), (Fraction(1), "b")])))
    [('a', Fraction(1, 1)), ('b', None)]
    """
    before: Raw | None = None
    for seconds, frame in frames:
        if before is not None:
            yield before, seconds
        before = frame
    if before is not None:
        yield before, None
