"""A video's pictures as they are shown, each with its time, and the work that they take.

Times: a frame without a timestamp follows the one before it by that one's duration; timestamps that
go backwards are sorted (`pipeline.sampling.PresentationOrder`). Interlaced pictures are taken as
they are; HDR transfer curves are not tone-mapped. One decoder error, or one frame that the decoder
marks as corrupt, condemns the whole video.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import VideoError
from pipeline.limits import (
    check_duration,
    check_frames,
    check_pixels,
    cpu_allowance,
    ffmpeg_max_pixels,
)
from pipeline.records import SourceInfo, VideoLimits
from pipeline.sampling import PresentationOrder
from pipeline.scan import Announced, describe, scan, video_stream
from pipeline.transforms import Geometry


def scanned(data: bytes, limits: VideoLimits, on_progress: Callable[[], None]) -> Announced:
    """What the bytes of a video announce.

    Raises:
        VideoError: with one of `pipeline.decode.REASONS`.
    """
    if not data:
        raise VideoError("empty", "the file has no bytes")
    if len(data) > limits.video_bytes:
        raise VideoError("too_large", f"{len(data)} bytes, at most {limits.video_bytes} allowed")
    return scan(data, limits, on_progress)


class Work:
    """The CPU time that a video takes, against what it may take by what it has shown of itself.

    Args:
        limits: what one output of a video may cost.
        num_outputs: outputs that the pass serves; each brings an allowance of its own, so that
            none fails for the company that it is in.
    """

    def __init__(self, limits: VideoLimits, num_outputs: int = 1) -> None:
        self._limits, self._num_outputs = limits, num_outputs
        self._began = self._told = time.process_time()
        self._max_pixels = 0

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process since the video was begun, but for those elsewhere."""
        return time.process_time() - self._began

    def new_seconds(self) -> float:
        """CPU seconds since it was last asked: what outputs are told adds up to the pass's time."""
        before, self._told = self._told, time.process_time()
        return self._told - before

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """CPU time inside is not the video's: the same process does something else meanwhile."""
        left = time.process_time()
        try:
            yield
        finally:
            spent = time.process_time() - left
            self._began += spent
            self._told += spent

    def check(self, num_frames: int, pixels: int) -> None:
        """Condemns a video whose pictures take far longer than any honest codec's.

        Raises:
            VideoError: ``too_much_work``.
        """
        self._max_pixels = max(self._max_pixels, pixels)
        allowed = self._num_outputs * cpu_allowance(num_frames, self._max_pixels, self._limits)
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
            VideoError: with one of `pipeline.decode.REASONS`.
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
