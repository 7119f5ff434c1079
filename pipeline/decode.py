"""One video's bytes to clips: demux, decode, put in time, scale to RGB. No threads, no processes.

The bytes are untrusted. They are read from memory only: container formats that open other files or
addresses are not on the list of readable ones, and no protocol is allowed. The container is read
twice. The first reading (`pipeline.scan`) takes packets only and settles what must not depend on
where a pass stops: the mean rate, the length, whether the file was cut off or is too long. The
second decodes, and stops as soon as every target rate has its clips.

Times: a frame without a timestamp follows the one before it by that one's duration; timestamps that
go backwards are sorted (`pipeline.sampling.PresentationOrder`). Interlaced pictures are taken as
they are; HDR transfer curves are not tone-mapped. One decoder error, or one frame that the decoder
marks as corrupt, condemns the whole video.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.clip_sampler import ClipSampler, PickedClip
from pipeline.cuts import CutDetector
from pipeline.errors import VideoError
from pipeline.limits import (
    check_clips,
    check_duration,
    check_frames,
    check_pixels,
    cpu_allowance,
    ffmpeg_max_pixels,
)
from pipeline.pixel_stats import pixel_sums
from pipeline.records import Clip, ClipPlan, DecodeSummary, SourceInfo, TimeSpan, VideoLimits
from pipeline.sampling import (
    PresentationOrder,
    exact_rate,
    expected_clips,
    expected_in_spans,
    is_too_slow,
)
from pipeline.scaling import RgbFrame, RgbScaler
from pipeline.scan import Announced, describe, open_video, scan, video_stream
from pipeline.transforms import Geometry

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
"""Every reason under which `decode_clips` condemns a video."""

RgbFrames = npt.NDArray[np.uint8]
"""uint8 ``[T, H, W, 3]``."""


def decode_clips(
    data: bytes,
    plan: ClipPlan,
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
    new_frames: Callable[[tuple[int, ...]], RgbFrames] | None = None,
    spans: Sequence[TimeSpan] | None = None,
) -> Iterator[Clip | DecodeSummary]:
    """Yield every clip of the video, then exactly one `DecodeSummary`.

    Clips of one rate come in order; rates interleave as the video advances. A video condemned half
    way has yielded clips already: its caller forgets them.

    Args:
        data: the encoded file.
        plan: which clips to make.
        limits: bounds; the no-progress and memory bounds are the caller's business.
        on_progress: called for each packet read and each frame decoded.
        new_frames: gives the uint8 array of the shape asked for, ``[T, H, W, 3]``, that the next
            clip is written to and that its ``frames`` then is; by default a fresh array each time.
        spans: clips lie within one of these; None: anywhere.

    Raises:
        VideoError: with one of `REASONS`.
        MemoryError: FFmpeg or numpy could not allocate.
    """
    work = Work(limits)
    announced = scanned(data, limits, on_progress)
    decoding = _Decoding(announced, plan, limits, work, on_progress, spans)
    with open_video(data, limits) as container:
        for number, picked in enumerate(decoding.clips(container), 1):
            check_clips(number, limits)
            yield _clip(picked, new_frames)
    yield decoding.summary()


def scanned(data: bytes, limits: VideoLimits, on_progress: Callable[[], None]) -> Announced:
    """What the bytes of a video announce.

    Raises:
        VideoError: with one of `REASONS`.
    """
    if not data:
        raise VideoError("empty", "the file has no bytes")
    if len(data) > limits.video_bytes:
        raise VideoError("too_large", f"{len(data)} bytes, at most {limits.video_bytes} allowed")
    return scan(data, limits, on_progress)


def _clip(
    picked: PickedClip[RgbFrame], new_frames: Callable[[tuple[int, ...]], RgbFrames] | None
) -> Clip:
    shape = (len(picked.frames), *picked.frames[0].shape)
    out = new_frames(shape) if new_frames else None
    frames = np.stack(picked.frames, out=out)
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


class Work:
    """The CPU time that a video takes, against what it may take by what it has shown of itself."""

    def __init__(self, limits: VideoLimits) -> None:
        self._limits = limits
        self._began = time.process_time()
        self._max_pixels = 0

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process since the video was begun."""
        return time.process_time() - self._began

    def check(self, num_frames: int, pixels: int) -> None:
        """Condemns a video whose pictures take far longer than any honest codec's.

        Raises:
            VideoError: ``too_much_work``.
        """
        self._max_pixels = max(self._max_pixels, pixels)
        allowed = cpu_allowance(num_frames, self._max_pixels, self._limits)
        if self.cpu_seconds > allowed:
            raise VideoError(
                "too_much_work", f"{num_frames} frames took more than {allowed:.0f} s of CPU time"
            )


class Pictures:
    """One pass over one video: its pictures as they are shown, each with its time.

    Args:
        announced: what `pipeline.scan.scan` said of the video.
        limits: bounds; what they forbid is raised where it is met.
        work: the CPU time of this video.
        on_progress: called for each frame decoded.
        on_first: called with the stream and its first frame before anything is shown.
    """

    def __init__(
        self,
        announced: Announced,
        limits: VideoLimits,
        work: Work,
        on_progress: Callable[[], None],
        on_first: Callable[[VideoStream, VideoFrame], None] = lambda stream, frame: None,
    ) -> None:
        self._announced, self._limits, self._on_progress = announced, limits, on_progress
        self._work, self._on_first = work, on_first
        self._order = PresentationOrder[VideoFrame](announced.times)
        self._origin: int | None = None
        self._last_time = 0
        self.num_frames = 0
        """Frames decoded so far."""

    def shown(self, container: InputContainer) -> Iterator[tuple[Fraction, VideoFrame]]:
        """Seconds after the first picture, never falling, and the picture.

        Raises:
            VideoError: with one of `REASONS`.
        """
        stream = video_stream(container)
        for time_, frame in self._timed(self._decoded(container, stream)):
            size_bytes = sum(plane.buffer_size for plane in frame.planes)
            if self.num_frames == 1:
                self._on_first(stream, frame)
            for shown_time, shown in self._order.add(time_, frame, size_bytes=size_bytes):
                yield self._seconds(shown_time), shown
        for shown_time, shown in self._order.finish():
            yield self._seconds(shown_time), shown
        if not self.num_frames:
            raise VideoError("no_frames", "the video stream decodes to no frame")

    @property
    def num_dropped(self) -> int:
        """Frames left out because their place in time had passed."""
        return self._order.num_dropped

    def end_seconds(self) -> Fraction:
        """When the last frame leaves the screen; a video of one frame is an image, without time."""
        last = self._seconds(self._last_time)
        return last + self._announced.last_step * self._announced.time_base if last else last

    def _timed(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        """Each frame with its timestamp; one that has none follows the frame before it."""
        expected = self._announced.times[0] if self._announced.times else 0
        for frame in frames:
            time_ = frame.pts if frame.pts is not None else expected
            expected = time_ + (frame.duration or self._announced.usual_step)
            yield time_, frame

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": ffmpeg_max_pixels(self._limits)}
        try:
            for packet in container.demux(stream):
                for frame in self._decode_packet(packet):
                    self._check(frame)
                    yield frame
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise VideoError(
                "decode_error", f"after {self.num_frames} frames: {describe(error)}"
            ) from error

    def _decode_packet(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        try:
            return packet.decode()
        except FFmpegError:
            # A recording may begin between two key frames: what cannot be decoded there was
            # never to be shown. Behind the first frame an error is an error.
            if self.num_frames == 0 and packet.size and not packet.is_keyframe:
                return []
            raise

    def _check(self, frame: VideoFrame) -> None:
        self.num_frames += 1
        self._on_progress()
        if frame.is_corrupt:
            raise VideoError("decode_error", f"frame {self.num_frames - 1} is corrupt")
        check_pixels(frame.width, frame.height, self._limits)
        check_frames(self.num_frames, self._limits)
        self._work.check(self.num_frames, frame.width * frame.height)

    def _seconds(self, time_: int) -> Fraction:
        """After the first frame; the bound holds for times that no packet announced, too."""
        if self._origin is None:
            self._origin = time_
        self._last_time = time_
        seconds = (time_ - self._origin) * self._announced.time_base
        check_duration(seconds, self._limits)
        return seconds


class _Decoding:
    """The clips of one video, and what is said of it."""

    def __init__(
        self,
        announced: Announced,
        plan: ClipPlan,
        limits: VideoLimits,
        work: Work,
        on_progress: Callable[[], None],
        spans: Sequence[TimeSpan] | None,
    ) -> None:
        self._announced, self._work = announced, work
        too_slow = frozenset(
            fps for fps in plan.fps if is_too_slow(announced.mean_rate, exact_rate(fps))
        )
        rates = [exact_rate(fps) for fps in plan.fps if fps not in too_slow]
        duration = announced.duration_seconds
        check_clips(
            sum(
                expected_clips(duration, rate, plan)
                if spans is None
                else expected_in_spans(duration, rate, plan, spans)
                for rate in rates
            ),
            limits,
        )
        self._scaler = RgbScaler(plan, announced.pixel_aspect, limits)
        self._sampler = ClipSampler(plan, self._scaler.rgb, too_slow=too_slow, spans=spans)
        self._cuts = None if plan.cut_threshold is None else CutDetector(plan.cut_threshold)
        self._pictures = Pictures(announced, limits, work, on_progress, self._describe)
        self._source: SourceInfo | None = None

    def clips(self, container: InputContainer) -> Iterator[PickedClip[RgbFrame]]:
        for seconds, frame in self._pictures.shown(container):
            is_cut = self._cuts is not None and self._cuts.is_cut(frame)
            yield from self._sampler.add(seconds, frame, is_cut=is_cut)
            if self._sampler.is_done:
                return
        yield from self._sampler.finish(self._pictures.end_seconds())

    def summary(self) -> DecodeSummary:
        assert self._source is not None
        return DecodeSummary(
            source=replace(self._source, num_frames=self._pictures.num_frames),
            num_clips=self._sampler.num_clips,
            filtered=self._sampler.filtered(),
            decode_seconds=self._work.cpu_seconds,
            num_dropped_frames=self._pictures.num_dropped,
        )

    def _describe(self, stream: VideoStream, frame: VideoFrame) -> None:
        self._source = described(self._announced, self._scaler.geometry(frame), stream, frame)


def described(
    announced: Announced, geometry: Geometry, stream: VideoStream, frame: VideoFrame
) -> SourceInfo:
    """What is known of a video at its first frame; its frames are still to be counted."""
    rate = announced.mean_rate
    return SourceInfo(
        width=geometry.shown_width,
        height=geometry.shown_height,
        fps=float(rate) if rate is not None else 0.0,
        num_frames=0,
        duration_seconds=float(announced.duration_seconds),
        codec=stream.codec_context.name,
        pixel_format=frame.format.name,
    )
