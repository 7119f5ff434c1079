"""What one output takes of a pass over a video: its clips, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.clip_sampler import ClipSampler, PickedClip
from pipeline.decode_pictures import Pictures, Work, described
from pipeline.limits import check_clips
from pipeline.pixel_stats import pixel_sums
from pipeline.records import Clip, ClipPlan, DecodeSummary, SourceInfo, TimeSpan, VideoLimits
from pipeline.sampling import exact_rate, expected_clips, expected_in_spans, is_too_slow
from pipeline.scaling import RgbFrame, SharedScaler
from pipeline.scan import Announced


class OutputPass:
    """Made before the first frame; takes every frame in the order in which they are shown.

    Args:
        plan: which clips to make.
        announced: what the video says of itself.
        limits: bounds.
        scaler: makes RGB of frames.
        spans: clips lie within one of these; None: anywhere.
        new_frames: gives the array of a clip, see `pipeline.decode.decode_clips`.

    Raises:
        VideoError: ``too_many_clips`` by the length that the video announces.
    """

    def __init__(
        self,
        plan: ClipPlan,
        announced: Announced,
        limits: VideoLimits,
        scaler: SharedScaler,
        spans: Sequence[TimeSpan] | None,
        new_frames: Callable[[tuple[int, ...]], npt.NDArray[np.uint8]] | None,
    ) -> None:
        too_slow = frozenset(
            fps for fps in plan.fps if is_too_slow(announced.mean_rate, exact_rate(fps))
        )
        rates = [exact_rate(fps) for fps in plan.fps if fps not in too_slow]
        check_clips(sum(_expected(announced, rate, plan, spans) for rate in rates), limits)
        self.cut_threshold = plan.cut_threshold
        """Mean change of luma that is a cut for this output; None: it knows no cuts."""
        self._announced, self._limits, self._scaler = announced, limits, scaler
        self._new_frames = new_frames
        self._sampler = ClipSampler(plan, scaler.rgb, too_slow=too_slow, spans=spans)
        self._source: SourceInfo | None = None
        self._num_clips = 0

    @property
    def is_done(self) -> bool:
        """It needs no other frame."""
        return self._sampler.is_done

    def describe(self, stream: VideoStream, frame: VideoFrame) -> None:
        """Note what the first frame says of the video.

        Raises:
            VideoError: ``too_many_pixels`` where its picture, scaled for these clips, is huge.
        """
        self._source = described(self._announced, self._scaler.geometry(frame), stream, frame)

    def add(self, seconds: Fraction, frame: VideoFrame, *, is_cut: bool) -> Iterator[Clip]:
        """Take the next frame; gives the clips that its arrival completes.

        Raises:
            VideoError: ``too_many_clips``, or ``too_many_pixels`` as in `describe`.
        """
        return self._made(self._sampler.add(seconds, frame, is_cut=is_cut))

    def finish(self, end_seconds: Fraction) -> Iterator[Clip]:
        """The clips at the video's end.

        Raises:
            VideoError: as in `add`.
        """
        return self._made(self._sampler.finish(end_seconds))

    def summary(self, pictures: Pictures, work: Work) -> DecodeSummary:
        """How it went, as of now; to be asked once."""
        assert self._source is not None
        return DecodeSummary(
            source=replace(self._source, num_frames=pictures.num_frames),
            num_clips=self._sampler.num_clips,
            filtered=self._sampler.filtered(),
            decode_seconds=work.new_seconds(),
            num_dropped_frames=pictures.num_dropped,
        )

    def _made(self, picked: Iterable[PickedClip[RgbFrame]]) -> Iterator[Clip]:
        for one in picked:
            self._num_clips += 1
            check_clips(self._num_clips, self._limits)
            shape = (len(one.frames), *one.frames[0].shape)
            out = self._new_frames(shape) if self._new_frames else None
            yield _clip(one, np.stack(one.frames, out=out))


def _expected(
    announced: Announced, rate: Fraction, plan: ClipPlan, spans: Sequence[TimeSpan] | None
) -> int:
    duration = announced.duration_seconds
    if spans is None:
        return expected_clips(duration, rate, plan)
    return expected_in_spans(duration, rate, plan, spans)


def _clip(picked: PickedClip[RgbFrame], frames: npt.NDArray[np.uint8]) -> Clip:
    return Clip(
        fps=picked.fps,
        clip_index=picked.clip_index,
        num_real_frames=picked.num_real_frames,
        start_seconds=picked.start_seconds,
        end_seconds=picked.end_seconds,
        frame_seconds=picked.frame_seconds,
        frames=frames,
        span_index=picked.span_index,
        pixels=pixel_sums(frames[: picked.num_real_frames]),
    )
