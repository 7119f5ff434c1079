"""One image's bytes to a clip of one frame. No threads, no processes; it runs in a decoder child.

The bytes are as untrusted as a video's, and are read by the same rules (`pipeline.scan`). What an
image is that a video is not: turned by its EXIF, see-through, of square pixels whatever its header
says about dots per inch (as viewers show it), and of one frame, the first where it moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from pipeline.decode import Item, NewFrames
from pipeline.decode_pictures import Work, described
from pipeline.errors import VideoError
from pipeline.exif import exif_orientation, is_animated_webp
from pipeline.gif import is_whole_gif
from pipeline.limits import check_pixels, ffmpeg_max_pixels
from pipeline.pixel_stats import pixel_sums
from pipeline.records import (
    IMAGE_FPS,
    Clip,
    ClipPlan,
    DecodeSummary,
    TimeSpan,
    VideoLimits,
    chosen_outputs,
)
from pipeline.scaling import RgbFrame, SharedScalers
from pipeline.scan import Announced, describe, open_video, video_stream
from pipeline.transforms import BT470BG, UNSPECIFIED

IMAGE_FORMATS = frozenset(
    "webp_pipe jpeg_pipe png_pipe bmp_pipe tiff_pipe ppm_pipe pgm_pipe gif apng mjpeg".split()
)
"""FFmpeg's names of what counts as an image."""
_BLEND_PIXELS = 1 << 20
"""Blended at once: memory beside the picture itself."""
_STILL = Announced(
    time_base=Fraction(1),
    times=(),
    mean_rate=None,
    usual_step=0,
    last_step=0,
    duration_seconds=Fraction(0),
    pixel_aspect=None,
)


def decode_image(
    data: bytes,
    plans: Sequence[ClipPlan],
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
    new_frames: NewFrames | None = None,
    spans: Sequence[TimeSpan] | None = None,
    outputs: Sequence[int] | None = None,
) -> Iterator[Item]:
    """Yield for every output the image as a clip ``[1, H, W, 3]`` at ``IMAGE_FPS``, and its end.

    An end is a `DecodeSummary`, or a `VideoError` that concerns this output alone. Transparent
    pixels are laid on white. Grey, palettes and 16 bits become 8-bit RGB.

    Args:
        data: the encoded file.
        plans: sizes of clips, one plan for each output; rates and lengths are for videos.
        limits: bounds; the no-progress and memory bounds are the caller's business.
        on_progress: called when the picture is decoded.
        new_frames: gives the uint8 array that a clip is written to; by default a fresh one.
        spans: an image has no time: it belongs to the first of them; None: there are none.
        outputs: places in ``plans`` of those that are wanted, ascending; None: all.

    Raises:
        VideoError: with one of ``decode.REASONS``; it condemns every output that has not ended.
        MemoryError: FFmpeg or numpy could not allocate.
        ValueError: ``outputs`` cannot be.
    """
    wanted = chosen_outputs(outputs, len(plans))
    work = Work(limits, len(wanted))
    stream, frame = _decoded(data, limits)
    on_progress()
    work.check(1, frame.width * frame.height)
    scalers = SharedScalers(None, limits, orientation=exif_orientation(data))
    blended: VideoFrame | None = None
    for output in wanted:
        scaler = scalers.of(plans[output])
        try:
            source = described(_STILL, scaler.geometry(frame), stream, frame)
            blended = opaque(frame) if blended is None else blended
            picture = scaler.rgb(blended)
        except VideoError as error:
            yield output, error
            continue
        yield output, _clip(picture, new_frames, span_index=0 if spans else None)
        seconds = work.new_seconds()
        yield output, DecodeSummary(source=source, num_clips={IMAGE_FPS: 1}, decode_seconds=seconds)


def _clip(picture: RgbFrame, new_frames: NewFrames | None, *, span_index: int | None) -> Clip:
    out = new_frames((1, *picture.shape)) if new_frames else None
    frames = np.stack([picture], out=out)
    return Clip(
        fps=IMAGE_FPS,
        clip_index=0,
        num_real_frames=1,
        start_seconds=0.0,
        end_seconds=0.0,
        frame_seconds=(0.0,),
        frames=frames,
        span_index=span_index,
        pixels=pixel_sums(frames),
    )


def _decoded(data: bytes, limits: VideoLimits) -> tuple[VideoStream, VideoFrame]:
    """The first picture of the file, and the stream that it is in."""
    if not data:
        raise VideoError("empty", "the file has no bytes")
    if len(data) > limits.video_bytes:
        raise VideoError("too_large", f"{len(data)} bytes, at most {limits.video_bytes} allowed")
    if is_animated_webp(data):
        raise VideoError("not_an_image", "an animated WebP, which FFmpeg does not read")
    with open_video(data, limits) as container:
        if container.format.name not in IMAGE_FORMATS:
            raise VideoError("not_an_image", f"the file is {container.format.name}")
        if container.format.name == "gif" and not is_whole_gif(data):
            raise VideoError("truncated", "a GIF without its end")
        stream = video_stream(container)
        check_pixels(stream.codec_context.width, stream.codec_context.height, limits)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "max_pixels": ffmpeg_max_pixels(limits),
            "err_detect": "explode",  # else half a JPEG is a picture whose other half is grey
        }
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    return stream, _checked(frame, limits)
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise VideoError("decode_error", describe(error)) from error
    raise VideoError("no_frames", "nothing to show in it")


def _checked(frame: VideoFrame, limits: VideoLimits) -> VideoFrame:
    if frame.is_corrupt:
        raise VideoError("decode_error", "the picture is corrupt")
    check_pixels(frame.width, frame.height, limits)
    if frame.colorspace == UNSPECIFIED:
        frame.colorspace = BT470BG  # JFIF and WebP say so, whatever the size
    return frame


def opaque(frame: VideoFrame) -> VideoFrame:
    """The picture laid on white, if it has transparent pixels; else itself."""
    pixel_format = frame.format
    if not pixel_format.has_palette and not any(c.is_alpha for c in pixel_format.components):
        return frame
    is_yuv = not pixel_format.is_rgb and len(pixel_format.components) > 3
    converted = frame.reformat(
        format="rgba",
        src_colorspace=frame.colorspace if is_yuv else None,
        src_color_range=int(frame.color_range or ColorRange.MPEG) if is_yuv else None,
        dst_color_range=ColorRange.JPEG,
    )
    rgba: npt.NDArray[np.uint8] = converted.to_ndarray().astype(np.uint8, copy=False)
    rows = max(1, _BLEND_PIXELS // frame.width)
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    for start in range(0, rgba.shape[0], rows):
        rgb[start : start + rows] = on_white(rgba[start : start + rows])
    return VideoFrame.from_ndarray(rgb, format="rgb24")


def on_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pixels ``[H, W, 4]`` with straight alpha laid on white, ``[H, W, 3]``, rounded.

    >>> on_white(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8)).tolist()
    [[[200, 0, 0], [255, 255, 255]]]
    """
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    blended: npt.NDArray[np.uint8] = ((mixed + 127) // 255).astype(np.uint8)
    return blended
