"""One video's bytes to clips: demux, decode, put in time, scale to RGB. No threads, no processes.

The bytes are untrusted. They are read from memory only: container formats that open other files or
addresses are not on the list of readable ones, and no protocol is allowed. The container is read
twice. The first reading (`pipeline.scan`) takes packets only and settles what must not depend on
where a pass stops: the mean rate, the length, whether the file was cut off or is too long. The
second (`pipeline.decode_pictures`) decodes, and stops as soon as every target rate has its clips.

One pass serves several *outputs*, each with its own `ClipPlan`, and gives each exactly what a pass
for it alone would give. An output that has all its clips ends at that moment, so that damage
further behind condemns only those that still need frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.cuts import CutDetector
from pipeline.decode_output import OutputPass
from pipeline.decode_pictures import Pictures, Work, scanned
from pipeline.errors import VideoError
from pipeline.records import Clip, ClipPlan, DecodeSummary, TimeSpan, VideoLimits, chosen_outputs
from pipeline.scaling import SharedScalers
from pipeline.scan import Announced, open_video

REASONS = (
    "empty",
    "not_a_video",
    "not_an_image",
    "no_video_stream",
    "no_frames",
    "truncated",
    "decode_error",
    "too_large",
    "too_many_pixels",
    "too_many_frames",
    "too_many_streams",
    "too_many_clips",
    "too_long",
    "too_much_work",
)
"""Every reason under which `decode_clips` condemns a video, or an output of it."""

NewFrames = Callable[[tuple[int, ...]], npt.NDArray[np.uint8]]
"""Gives the uint8 array of the shape asked for, ``[T, H, W, 3]``, that the next clip is in."""
Item = tuple[int, Clip | DecodeSummary | VideoError]
"""The output, and a clip of it or its end."""


def decode_clips(
    data: bytes,
    plans: Sequence[ClipPlan],
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
    new_frames: NewFrames | None = None,
    spans: Sequence[TimeSpan] | None = None,
    outputs: Sequence[int] | None = None,
) -> Iterator[Item]:
    """Yield the clips of every output, each with its output, and one end for each.

    An end is a `DecodeSummary`, or a `VideoError` of one of `REASONS` that concerns this output
    alone. Clips of one rate of an output come in order; all else interleaves as the video advances.
    An output condemned half way has got clips already: the caller forgets them.

    Args:
        data: the encoded file.
        plans: which clips to make, one plan for each output.
        limits: bounds; those on clips and CPU time are for each output. The no-progress and memory
            bounds are the caller's business.
        on_progress: called for each packet read and each frame decoded.
        new_frames: gives the array that the next clip is written to and that its ``frames`` then
            is; by default a fresh array each time.
        spans: clips lie within one of these; None: anywhere.
        outputs: places in ``plans`` of those that are wanted, ascending; None: all.

    Raises:
        VideoError: with one of `REASONS`; it condemns every output that has not ended.
        MemoryError: FFmpeg or numpy could not allocate.
        ValueError: ``outputs`` cannot be.
    """
    wanted = chosen_outputs(outputs, len(plans))
    work = Work(limits, len(wanted))
    announced = scanned(data, limits, on_progress)
    decoding = _Pass(announced, limits, work, on_progress, new_frames)
    yield from decoding.take_on({number: plans[number] for number in wanted}, spans)
    if decoding.is_wanted:
        yield from decoding.run(data)


def decode_plan(
    data: bytes,
    plan: ClipPlan,
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
    new_frames: NewFrames | None = None,
    spans: Sequence[TimeSpan] | None = None,
) -> Iterator[Clip | DecodeSummary]:
    """`decode_clips` for one output: its clips, then exactly one `DecodeSummary`.

    Raises:
        VideoError: with one of `REASONS`.
        MemoryError: FFmpeg or numpy could not allocate.
    """
    for _, item in decode_clips(data, (plan,), limits, on_progress, new_frames, spans):
        if isinstance(item, VideoError):
            raise item
        yield item


class _Pass:
    """One pass over a video, and the outputs that still need it."""

    def __init__(
        self,
        announced: Announced,
        limits: VideoLimits,
        work: Work,
        on_progress: Callable[[], None],
        new_frames: NewFrames | None,
    ) -> None:
        self._announced, self._limits, self._work = announced, limits, work
        self._new_frames = new_frames
        self._scalers = SharedScalers(announced.pixel_aspect, limits)
        self._cuts: dict[float, CutDetector] = {}
        self._pictures = Pictures(announced, limits, work, on_progress, self._describe)
        self._open: dict[int, OutputPass] = {}
        self._refused: dict[int, VideoError] = {}

    @property
    def is_wanted(self) -> bool:
        """Some output has not ended."""
        return bool(self._open)

    def take_on(
        self, plans: dict[int, ClipPlan], spans: Sequence[TimeSpan] | None
    ) -> Iterator[Item]:
        """Begin outputs; gives the ends of those that cannot be served."""
        for number, plan in plans.items():
            scaler = self._scalers.of(plan)
            try:
                self._open[number] = OutputPass(
                    plan, self._announced, self._limits, scaler, spans, self._new_frames
                )
            except VideoError as error:
                yield number, error
        thresholds = {output.cut_threshold for output in self._open.values()}
        self._cuts = {value: CutDetector(value) for value in thresholds if value is not None}

    def run(self, data: bytes) -> Iterator[Item]:
        """Decode until no output needs another frame."""
        with open_video(data, self._limits) as container:
            try:
                for seconds, frame in self._pictures.shown(container):
                    yield from self._refusals()
                    yield from self._show(seconds, frame)
                    if not self._open:
                        return
                end_seconds = self._pictures.end_seconds()
            except VideoError:
                yield from self._refusals()
                if not self._open:
                    return
                raise
            yield from self._each(lambda output: output.finish(end_seconds), is_last=True)

    def _describe(self, stream: VideoStream, frame: VideoFrame) -> None:
        """The first frame: it may be one that some output cannot have."""
        for number, output in self._open.items():
            try:
                output.describe(stream, frame)
            except VideoError as error:
                self._refused[number] = error

    def _refusals(self) -> Iterator[Item]:
        refused, self._refused = self._refused, {}
        for number, error in refused.items():
            del self._open[number]
            yield number, error

    def _show(self, seconds: Fraction, frame: VideoFrame) -> Iterator[Item]:
        needed = {output.cut_threshold for output in self._open.values()}
        cuts = {value for value, at in self._cuts.items() if value in needed and at.is_cut(frame)}
        yield from self._each(
            lambda output: output.add(seconds, frame, is_cut=output.cut_threshold in cuts)
        )
        self._scalers.forget()

    def _each(
        self, step: Callable[[OutputPass], Iterator[Clip]], *, is_last: bool = False
    ) -> Iterator[Item]:
        """The same step for every output; those that end by it end here."""
        for number, output in tuple(self._open.items()):
            try:
                for clip in step(output):
                    yield number, clip
            except VideoError as error:
                del self._open[number]
                yield number, error
                continue
            if is_last or output.is_done:
                del self._open[number]
                yield number, output.summary(self._pictures, self._work)
