"""A video that a decoder child has to decode, and what the child has given of it so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from pipeline.records import Clip, DecodeSummary, TimeSpan


@dataclass(frozen=True, slots=True)
class Job:
    """A video that is to be decoded."""

    ticket: int
    """Its name in events."""
    data: bytes
    """The encoded file."""
    factor: int = 1
    """On the limits: 1 the first time, 2 the second and last time."""
    num_kills: int = 0
    """Children that somebody else killed while they had it."""
    spans: tuple[TimeSpan, ...] | None = None
    """Its clips lie within one of these; None: anywhere."""
    is_image: bool = False
    """It is an image: one clip of one frame."""
    outputs: tuple[int, ...] = (0,)
    """The outputs that want clips of it, ascending."""


class Answers:
    """What has come of a job: clips in order, and at most one end for each output that is wanted.

    Args:
        job: as its child got it.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        """What it is about."""
        self._num_clips: dict[int, Counter[float]] = {out: Counter() for out in job.outputs}

    @property
    def open_outputs(self) -> tuple[int, ...]:
        """Outputs that have not ended."""
        return tuple(self._num_clips)

    def num_clips(self, output: int) -> dict[float, int]:
        """Clips of an open output so far, by rate."""
        return dict(self._num_clips[output])

    def check(self, output: int, clip: Clip) -> None:
        """Whether it is this clip's turn.

        Raises:
            ValueError: it is not, or its span is none of the video's.
        """
        if not self._is_span(clip.span_index):
            raise ValueError(f"span {clip.span_index} is not one of its video's")
        if clip.clip_index != self._num_clips[output][clip.fps]:
            raise ValueError(f"clip {clip.clip_index} at {clip.fps} fps comes out of order")

    def count(self, output: int, clip: Clip) -> None:
        """One more clip of an open output."""
        self._num_clips[output][clip.fps] += 1

    def check_counts(self, output: int, summary: DecodeSummary) -> None:
        """Whether a summary counts the clips that came.

        Raises:
            ValueError: it does not.
        """
        given = self.num_clips(output)
        if {fps: number for fps, number in summary.num_clips.items() if number} != given:
            raise ValueError(f"gave {given} clips, counts {summary.num_clips}")

    def end(self, output: int) -> None:
        """Nothing more comes of this output."""
        del self._num_clips[output]

    def rest(self) -> Job:
        """What is still to be done, from the beginning of the video."""
        return replace(self.job, outputs=self.open_outputs)

    def _is_span(self, index: int | None) -> bool:
        spans = self.job.spans
        return index is None if spans is None else index is not None and index < len(spans)
