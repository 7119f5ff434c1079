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
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipeline.errors import VideoError
from pipeline.records import Clip, ClipPlan, DecodeSummary, SourceInfo, VideoLimits
from pipeline.sampling import (
    ClipSampler,
    PickedClip,
    PresentationOrder,
    exact_rate,
    is_too_slow,
)
from pipeline.scan import (
    Announced,
    check_duration,
    check_pixels,
    describe,
    ffmpeg_max_pixels,
    open_video,
    scan,
    video_stream,
)
from pipeline.transforms import (
    Geometry,
    Orientation,
    clip_geometry,
    nearest_bucket,
    scaler_matrix,
)

REASONS = (
    "empty",
    "not_a_video",
    "no_video_stream",
    "no_frames",
    "truncated",
    "decode_error",
    "too_large",
    "too_many_pixels",
    "too_many_frames",
    "too_long",
)
"""Every reason under which `decode_clips` condemns a video."""

RgbFrame = npt.NDArray[np.uint8]
"""uint8 ``[H, W, 3]``."""
RgbFrames = npt.NDArray[np.uint8]
"""uint8 ``[T, H, W, 3]``."""

# Bilinear widens its triangle when it shrinks a picture, as the reference's antialiasing does: on
# natural video at 128 and 256 rows the two differ by 0.2 to 0.6 of 255 on average (PSNR 48 to
# 60 dB; area gives 34 to 58, bicubic 32 to 54). The other flags cost nothing measurable: exact
# rounding, the same on every CPU, and chroma interpolated to full width instead of repeated.
_SCALING = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
)


def decode_clips(
    data: bytes,
    plan: ClipPlan,
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
    new_frames: Callable[[tuple[int, ...]], RgbFrames] | None = None,
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

    Raises:
        VideoError: with one of `REASONS`.
        MemoryError: FFmpeg or numpy could not allocate.
    """
    started = time.process_time()
    if not data:
        raise VideoError("empty", "the file has no bytes")
    if len(data) > limits.video_bytes:
        raise VideoError("too_large", f"{len(data)} bytes, at most {limits.video_bytes} allowed")
    announced = scan(data, limits, on_progress)
    decoding = _Decoding(announced, plan, limits, on_progress)
    with open_video(data, limits) as container:
        for picked in decoding.clips(container):
            yield _clip(picked, new_frames)
    yield decoding.summary(cpu_seconds=time.process_time() - started)


def _clip(
    picked: PickedClip[RgbFrame], new_frames: Callable[[tuple[int, ...]], RgbFrames] | None
) -> Clip:
    shape = (len(picked.frames), *picked.frames[0].shape)
    out = new_frames(shape) if new_frames else None
    return Clip(
        fps=picked.fps,
        clip_index=picked.clip_index,
        num_real_frames=picked.num_real_frames,
        start_seconds=picked.start_seconds,
        end_seconds=picked.end_seconds,
        frame_seconds=picked.frame_seconds,
        frames=np.stack(picked.frames, out=out),
    )


class _Decoding:
    """One pass over one video."""

    def __init__(
        self,
        announced: Announced,
        plan: ClipPlan,
        limits: VideoLimits,
        on_progress: Callable[[], None],
    ) -> None:
        self._announced, self._limits, self._on_progress = announced, limits, on_progress
        too_slow = frozenset(
            fps for fps in plan.fps if is_too_slow(announced.mean_rate, exact_rate(fps))
        )
        self._scaler = RgbScaler(plan, announced.pixel_aspect, limits)
        self._sampler = ClipSampler(plan, self._scaler.rgb, too_slow=too_slow)
        self._order = PresentationOrder[VideoFrame](announced.times)
        self._origin: int | None = None
        self._last_time = 0
        self._num_frames = 0
        self._source: SourceInfo | None = None

    def clips(self, container: InputContainer) -> Iterator[PickedClip[RgbFrame]]:
        stream = video_stream(container)
        for time_, frame in self._timed(self._decoded(container, stream)):
            size_bytes = sum(plane.buffer_size for plane in frame.planes)
            if self._source is None:
                self._source = self._describe(stream, frame)
            for shown_time, shown in self._order.add(time_, frame, size_bytes=size_bytes):
                yield from self._sampler.add(self._seconds(shown_time), shown)
            if self._sampler.is_done:
                return
        for shown_time, shown in self._order.finish():
            yield from self._sampler.add(self._seconds(shown_time), shown)
        if self._source is None:
            raise VideoError("no_frames", "the video stream decodes to no frame")
        yield from self._sampler.finish(self._end_seconds())

    def summary(self, *, cpu_seconds: float) -> DecodeSummary:
        assert self._source is not None
        return DecodeSummary(
            source=replace(self._source, num_frames=self._num_frames),
            num_clips=self._sampler.num_clips,
            filtered=self._sampler.filtered(),
            decode_seconds=cpu_seconds,
            num_dropped_frames=self._order.num_dropped,
        )

    def _describe(self, stream: VideoStream, frame: VideoFrame) -> SourceInfo:
        geometry = self._scaler.geometry(frame)
        rate = self._announced.mean_rate
        return SourceInfo(
            width=geometry.shown_width,
            height=geometry.shown_height,
            fps=float(rate) if rate is not None else 0.0,
            num_frames=0,
            duration_seconds=float(self._announced.duration_seconds),
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
        )

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
                "decode_error", f"after {self._num_frames} frames: {describe(error)}"
            ) from error

    def _decode_packet(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        try:
            return packet.decode()
        except FFmpegError:
            # A recording may begin between two key frames: what cannot be decoded there was
            # never to be shown. Behind the first frame an error is an error.
            if self._num_frames == 0 and packet.size and not packet.is_keyframe:
                return []
            raise

    def _check(self, frame: VideoFrame) -> None:
        self._num_frames += 1
        self._on_progress()
        if frame.is_corrupt:
            raise VideoError("decode_error", f"frame {self._num_frames - 1} is corrupt")
        check_pixels(frame.width, frame.height, self._limits)
        if self._num_frames > self._limits.frames:
            raise VideoError("too_many_frames", f"more than {self._limits.frames} frames")

    def _seconds(self, time_: int) -> Fraction:
        """After the first frame; the bound holds for times that no packet announced, too."""
        if self._origin is None:
            self._origin = time_
        self._last_time = time_
        seconds = (time_ - self._origin) * self._announced.time_base
        check_duration(seconds, self._limits)
        return seconds

    def _end_seconds(self) -> Fraction:
        """When the last frame leaves the screen; a video of one frame is an image, without time."""
        last = self._seconds(self._last_time)
        return last + self._announced.last_step * self._announced.time_base if last else last


class RgbScaler:
    """Decoded pictures to RGB clip pixels; sizes may change from one frame to the next."""

    def __init__(self, plan: ClipPlan, pixel_aspect: Fraction | None, limits: VideoLimits) -> None:
        self._plan, self._pixel_aspect, self._limits = plan, pixel_aspect, limits
        self._reformatter = VideoReformatter()
        self._geometries: dict[tuple[int, int, Orientation], Geometry] = {}
        self._bucket: tuple[int, int] | None = None

    def bucket(self, frame: VideoFrame) -> tuple[int, int]:
        """Clip (H, W) of the video, by the shape of its first frame."""
        if self._bucket is None:
            shown = clip_geometry(
                frame.width,
                frame.height,
                pixel_aspect=self._pixel_aspect,
                orientation=orientation(frame),
                clip_width=1,
                clip_height=1,
            )
            self._bucket = nearest_bucket(shown.shown_width, shown.shown_height, self._plan.buckets)
        return self._bucket

    def geometry(self, frame: VideoFrame) -> Geometry:
        """How this frame is scaled and cropped.

        Raises:
            VideoError: ``too_many_pixels`` for pictures so narrow that the scaled one is huge.
        """
        key = (frame.width, frame.height, orientation(frame))
        if key not in self._geometries:
            clip_height, clip_width = self.bucket(frame)
            geometry = clip_geometry(
                frame.width,
                frame.height,
                pixel_aspect=self._pixel_aspect,
                orientation=key[2],
                clip_width=clip_width,
                clip_height=clip_height,
            )
            check_pixels(geometry.scaled_width, geometry.scaled_height, self._limits)
            self._geometries = {key: geometry}  # the last size only: a file may hold thousands
        return self._geometries[key]

    def rgb(self, frame: VideoFrame) -> RgbFrame:
        """The frame as uint8 ``[H, W, 3]`` of the clip, contiguous and owned by the caller."""
        geometry = self.geometry(frame)
        matrix, color_range = self._source_colours(frame)
        scaled = self._reformatter.reformat(
            frame,
            geometry.scaled_width,
            geometry.scaled_height,
            "rgb24",
            src_colorspace=matrix,
            src_color_range=color_range,
            dst_color_range=ColorRange.JPEG,
            interpolation=_SCALING,
            threads=1,
        )
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : scaled.height
        ]
        picture = rows[:, : scaled.width * 3].reshape(scaled.height, scaled.width, 3)
        picture = orientation(frame).apply(picture)
        clip_height, clip_width = self.bucket(frame)
        bottom, right = geometry.top + clip_height, geometry.left + clip_width
        return np.ascontiguousarray(picture[geometry.top : bottom, geometry.left : right])

    @staticmethod
    def _source_colours(frame: VideoFrame) -> tuple[int | None, int | None]:
        """Matrix and range of a YUV frame by its tags; both None where there is no matrix."""
        if frame.format.is_rgb or frame.format.has_palette or len(frame.format.components) < 3:
            return None, None
        color_range = frame.color_range or ColorRange.MPEG
        return scaler_matrix(frame.colorspace, frame.height), int(color_range)


def orientation(frame: VideoFrame) -> Orientation:
    """How the container says that this frame is turned; the decoder leaves it as coded."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # a buffer that the stubs do not know
    if matrix is None:
        return Orientation()
    return Orientation.from_matrix(np.frombuffer(matrix, np.int32).tolist())
