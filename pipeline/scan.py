"""What a container says of its video before anything is decoded: one reading of its packets.

It takes milliseconds and sees the whole file, so that verdicts which must not depend on how far a
pass decodes are settled here: no video, too long, too many frames, cut off, and the mean rate.
The bytes are untrusted: see ``READABLE_FORMATS``.
"""

from __future__ import annotations

import io
import itertools
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from pipeline.errors import VideoError
from pipeline.limits import (
    check_duration,
    check_frames,
    check_pixels,
    check_streams,
    ffmpeg_max_pixels,
)
from pipeline.records import VideoLimits
from pipeline.sampling import last_frame_duration, mean_rate

READABLE_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,rm,nut,mxf,ivf,dv,gif,apng,yuv4mpegpipe,"
    "h264,hevc,m4v,h263,h261,vc1,av1,obu,mjpeg,"
    "webp_pipe,jpeg_pipe,png_pipe,bmp_pipe,tiff_pipe,ppm_pipe,pgm_pipe"
)
"""FFmpeg's names of the formats that are read. Left out are all that fetch something else by a name
inside the file (concat, hls, dash, sdp, image2, ...) and those without pictures."""
LENGTH_IN_HEADER = frozenset({"mov", "matroska", "avi", "flv", "asf"})
"""Formats whose header states a length. FFmpeg estimates that of the others from what is there, so
it says nothing about what is missing."""
TRUNCATED_SECONDS = Fraction(1, 2)
"""A file may end this much before the length in its header ..."""
TRUNCATED_FRACTION = Fraction(2, 100)
"""... or this part of that length, whichever is more ..."""
TRUNCATED_GAPS = 2
"""... or this many times the longest gap between two frames, whichever is more."""
DEFAULT_RATE = Fraction(25)
"""Frames per second of a file with neither timestamps nor durations nor a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The video stream by its packets."""

    time_base: Fraction
    """Seconds per unit of the integers below."""
    times: tuple[int, ...]
    """Presentation timestamps of the frames to come, sorted; those that have none are missing."""
    mean_rate: Fraction | None
    """Frames per second over the whole video; None for a single frame."""
    usual_step: int
    """Duration of a frame that states none, in units."""
    last_step: int
    """How long the last frame stays on screen, in units."""
    duration_seconds: Fraction
    """From the first timestamp to the end of the last frame."""
    pixel_aspect: Fraction | None
    """Width of a coded pixel over its height; None if unknown."""


def open_video(data: bytes, limits: VideoLimits) -> InputContainer:
    """Open bytes as one of the readable formats.

    Raises:
        VideoError: ``not_a_video``.
    """
    try:
        return av.open(
            io.BytesIO(data),
            "r",
            options={"max_pixels": ffmpeg_max_pixels(limits)},
            container_options={
                "format_whitelist": READABLE_FORMATS,
                "protocol_whitelist": "none",  # no such protocol: bytes only
            },
            metadata_errors="replace",
            buffer_size=1 << 18,
        )
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        raise VideoError("not_a_video", f"cannot be opened: {describe(error)}") from error


def video_stream(container: InputContainer) -> VideoStream:
    """The first stream of moving pictures; cover art and thumbnails are none.

    Raises:
        VideoError: ``no_video_stream``, or ``decode_error`` where FFmpeg has no decoder for it.
    """
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    for stream in container.streams.video:
        if stream.disposition & pictures:
            continue
        if stream.codec_context is None:
            raise VideoError("decode_error", f"no decoder for stream {stream.index}")
        return stream
    kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
    raise VideoError("no_video_stream", f"{container.format.name} file holds {kinds}")


def scan(data: bytes, limits: VideoLimits, on_progress: Callable[[], None]) -> Announced:
    """Read all packets once and judge what they announce.

    Raises:
        VideoError: ``not_a_video``, ``no_video_stream``, ``no_frames``, ``too_many_pixels``,
            ``too_many_frames``, ``too_long``, ``truncated`` or ``decode_error``.
    """
    with open_video(data, limits) as container:
        check_streams(len(container.streams), limits)
        stream = video_stream(container)
        check_pixels(stream.codec_context.width, stream.codec_context.height, limits)
        check_duration(_header_seconds(container), limits)
        packets = _Packets(stream)
        try:
            for number, packet in enumerate(container.demux(), 1):
                on_progress()
                packets.add(packet)
                check_frames(packets.num_frames, limits, num_packets=number)
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise VideoError("decode_error", f"cannot be read: {describe(error)}") from error
        if not packets.num_frames:
            raise VideoError("no_frames", "the video stream has no packets")
        announced = packets.announced()
        check_duration(announced.duration_seconds, limits)
        _check_complete(container, stream, packets)
        return announced


class _Packets:
    """Gathers what the packets of a container say."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self.time_base = stream.time_base or 1 / DEFAULT_RATE
        self.num_frames = 0
        self.end_seconds = Fraction(0)
        """Latest end of a video packet."""
        self.any_end_seconds = Fraction(0)
        """Latest end of a packet of any stream."""
        self.longest_gap_seconds = Fraction(0)
        self._times: list[tuple[int, int]] = []
        self._durations: list[int] = []

    def add(self, packet: Packet[Stream]) -> None:
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.size == 0:  # the end of a stream, or "show the last frame again" in AVI
            return
        duration = packet.duration or 0
        is_video = packet.stream.index == self._stream.index
        if time is not None:
            end = (time + duration) * (packet.time_base or self.time_base)
            self.any_end_seconds = max(self.any_end_seconds, end)
            if is_video:
                self.end_seconds = max(self.end_seconds, end)
        if is_video and not packet.is_discard and not self._is_hidden(packet):
            self.num_frames += 1
            if duration > 0:
                self._durations.append(duration)
            if time is not None:
                self._times.append((time, duration))

    def _is_hidden(self, packet: Packet[Stream]) -> bool:
        """A VP8 picture that is never shown; other codecs pack theirs with one that is."""
        return self._stream.codec_context.codec.name.endswith("vp8") and not (
            memoryview(packet)[0] & 0x10
        )

    def announced(self) -> Announced:
        self._times.sort()
        times = tuple(time for time, _ in self._times)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        gaps = [gap for gap in gaps if gap > 0]
        self.longest_gap_seconds = max(gaps, default=0) * self.time_base
        step = self._usual_step(gaps)
        last_step = last_frame_duration(gaps, stated=self._times[-1][1] if times else 0)
        rate: Fraction | None = None
        if len(times) < self.num_frames:  # raw streams: times will be derived from the step
            duration = self.num_frames * step
            rate = 1 / (step * self.time_base) if self.num_frames > 1 else None
        else:
            duration = times[-1] + last_step - times[0]
            rate = mean_rate(times, self.time_base)
        return Announced(
            time_base=self.time_base,
            times=times,
            mean_rate=rate,
            usual_step=step,
            last_step=last_step if times else step,
            duration_seconds=duration * self.time_base,
            pixel_aspect=self._stream.sample_aspect_ratio,
        )

    def _usual_step(self, gaps: list[int]) -> int:
        """Median gap; without timestamps the median duration; without either the stated rate."""
        if known := gaps or self._durations:
            return statistics.median_low(known)
        rate = self._stream.average_rate or DEFAULT_RATE
        return max(1, round(1 / rate / self.time_base))


def describe(error: FFmpegError) -> str:
    """FFmpeg's words for an error, without a made-up file name."""
    return f"{error.strerror or type(error).__name__} ({type(error).__name__})"


def _formats(container: InputContainer) -> frozenset[str]:
    return frozenset(container.format.name.split(","))


def _header_seconds(container: InputContainer) -> Fraction | None:
    if container.duration is None or not _formats(container) & LENGTH_IN_HEADER:
        return None
    return Fraction(container.duration, av.time_base)


def _check_complete(container: InputContainer, stream: VideoStream, packets: _Packets) -> None:
    """Compare the length in the header with the last packet: some cut files end without an error.

    The stream's own length is preferred, because audio may be longer. Where only the file's is
    known, all streams count: a healthy file reaches its end in one of them.
    """
    if not _formats(container) & LENGTH_IN_HEADER:
        return
    tag = _tag_seconds(stream.metadata.get("DURATION", ""))
    seen = packets.end_seconds
    if stream.duration is not None:
        stated = (stream.duration + (stream.start_time or 0)) * packets.time_base
    elif tag is not None:
        stated = tag
    elif container.duration is not None:
        stated, seen = Fraction(container.duration, av.time_base), packets.any_end_seconds
    else:
        return
    tolerance = max(
        TRUNCATED_SECONDS,
        TRUNCATED_FRACTION * stated,
        TRUNCATED_GAPS * packets.longest_gap_seconds,
    )
    if seen < stated - tolerance:
        raise VideoError(
            "truncated",
            f"ends at {float(seen):.2f} s, its header promises {float(stated):.2f} s",
        )


def _tag_seconds(tag: str) -> Fraction | None:
    """Matroska's length of one track, written as text.

    >>> _tag_seconds("00:01:02.500000000"), _tag_seconds("?")
    (Fraction(125, 2), None)
    """
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag.strip())
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
