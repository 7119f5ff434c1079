"""Whether one video keeps within its limits; each check comes before what it would cost is spent.

Pure: numbers in, `VideoError` or nothing out.
"""

from __future__ import annotations

from fractions import Fraction

from pipeline.errors import VideoError
from pipeline.records import VideoLimits

PACKETS_PER_FRAME = 8
"""Packets of all streams, on the frames that are allowed: sound has a few more than pictures."""
FRAME_CPU_SECONDS = 0.05
"""CPU time that a picture of no size may take, tens of times what it does take ..."""
PIXELS_PER_CPU_SECOND = 2e6
"""... and pixels that are decoded in a second at least; the slowest codec tried does 100e6."""


def check_frames(num_frames: int, limits: VideoLimits, *, num_packets: int = 0) -> None:
    """Refuse videos of more pictures than allowed, and files of far more packets than that.

    Raises:
        VideoError: ``too_many_frames``.
    """
    if num_frames > limits.frames:
        raise VideoError("too_many_frames", f"more than {limits.frames} frames")
    if num_packets > PACKETS_PER_FRAME * limits.frames:
        raise VideoError("too_many_frames", f"more than {num_packets - 1} packets")


def check_streams(number: int, limits: VideoLimits) -> None:
    """Refuse files with more streams than allowed: each costs memory before it is looked at.

    Raises:
        VideoError: ``too_many_streams``.
    """
    if number > limits.streams:
        raise VideoError("too_many_streams", f"more than {limits.streams} streams")


def check_pixels(width: int, height: int, limits: VideoLimits) -> None:
    """Refuse pictures above the limit; to be called before one is decoded.

    Raises:
        VideoError: ``too_many_pixels``.
    """
    if width * height > limits.pixels:
        raise VideoError(
            "too_many_pixels", f"{width}x{height} pictures, at most {limits.pixels} pixels allowed"
        )


def check_clips(number: int, limits: VideoLimits) -> None:
    """Refuse videos that give more clips than allowed, before one is made where that is known.

    Raises:
        VideoError: ``too_many_clips``.
    """
    if number > limits.clips:
        raise VideoError("too_many_clips", f"gives {number}, at most {limits.clips} allowed")


def check_duration(seconds: Fraction | None, limits: VideoLimits) -> None:
    """Refuse videos that are longer than allowed; None (unknown) passes.

    Raises:
        VideoError: ``too_long``.
    """
    if seconds is not None and seconds > limits.duration_seconds:
        raise VideoError(
            "too_long", f"{float(seconds):.1f} s, at most {limits.duration_seconds:g} s allowed"
        )


def cpu_allowance(num_frames: int, pixels: int, limits: VideoLimits) -> float:
    """CPU seconds that decoding so many pictures of a size may take.

    Tens of times what the slowest codecs take, so that only a file that is made to be slow meets
    it; and never more than the limit.

    >>> cpu_allowance(300, 1920 * 1080, VideoLimits())
    356.04
    """
    per_frame = FRAME_CPU_SECONDS + pixels / PIXELS_PER_CPU_SECOND
    return min(limits.cpu_seconds, limits.no_progress_seconds + num_frames * per_frame)


def ffmpeg_max_pixels(limits: VideoLimits) -> str:
    """The bound inside FFmpeg, for sizes that change while a packet is decoded.

    Above ours by what rounding the sides up to whole blocks may add: FFmpeg counts that, and the
    exact bound is checked by us.

    >>> int(ffmpeg_max_pixels(VideoLimits(pixels=8192 * 8192))) / 8192**2
    1.140625
    """
    margin = (1 << 20) + min(limits.pixels, 1 << 23)
    return str(min(limits.pixels + margin, 2**31 - 1))
