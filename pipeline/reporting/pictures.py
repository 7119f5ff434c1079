"""Pictures for a page that is one file: arrays to PNG or JPEG, to ``data:`` addresses. Pure.

PNG is written here: token maps are small and must be exact. Frames are JPEG, a tenth of the size.
"""

from __future__ import annotations

import base64
import colorsys
import struct
import zlib

import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

Rgb = npt.NDArray[np.uint8]
"""uint8 ``[H, W, 3]``."""

JPEG_SCALE = 4
"""Of the quantiser, 2 (best) to 31; at 4 a strip of 8 frames of 128 x 128 takes about 25 kB."""
_GOLDEN = 0.6180339887498949


def png(image: Rgb) -> bytes:
    """An image as PNG (ISO/IEC 15948): one IDAT chunk, rows unfiltered.

    Args:
        image: uint8 ``[H, W, 3]``.

    Raises:
        ValueError: of another shape, or empty.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be [H, W, 3] and not empty, got {list(image.shape)}")
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each begins with filter type 0
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def jpeg(image: Rgb) -> bytes:
    """An image as JPEG.

    Args:
        image: uint8 ``[H, W, 3]``.
    """
    height, width, _ = image.shape
    codec = CodecContext.create("mjpeg", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt = width, height, "yuvj444p"
    codec.framerate = codec.time_base = 1  # type: ignore[assignment]
    codec.qmin = codec.qmax = JPEG_SCALE
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    picture = frame.reformat(format="yuvj444p", dst_color_range="JPEG")
    return b"".join(bytes(packet) for packet in [*codec.encode(picture), *codec.encode(None)])


def address(content: bytes) -> str:
    """A picture as ``data:`` address.

    Raises:
        ValueError: neither PNG nor JPEG.
    """
    for kind, start in (("png", b"\x89PNG"), ("jpeg", b"\xff\xd8")):
        if content.startswith(start):
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    raise ValueError("neither PNG nor JPEG")


def strip(frames: npt.NDArray[np.uint8], *, num: int) -> Rgb:
    """Frames side by side, the first and the last and some in between.

    Args:
        frames: uint8 ``[T, H, W, 3]``.
        num: at most so many.

    Returns:
        uint8 ``[H, n * W, 3]``.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, num).round().astype(int))
    return np.concatenate(list(frames[chosen]), axis=1)


def index_colours(indices: npt.NDArray[np.integer], codebook_size: int) -> Rgb:
    """A colour for every index, the same one wherever it stands; neighbours look unlike.

    FSQ indices are mixed-radix numbers, so near numbers are no near meanings: hues go round by the
    golden ratio, and lightness by the index's height in the codebook.

    Args:
        indices: ``[h, w]`` in ``[0, codebook_size)``.
        codebook_size: number of indices.

    Returns:
        uint8 ``[h, w, 3]``.
    """
    values, places = np.unique(indices, return_inverse=True)
    colours = [
        colorsys.hls_to_rgb((int(v) * _GOLDEN) % 1.0, 0.3 + 0.45 * int(v) / codebook_size, 0.62)
        for v in values
    ]
    table = (np.array(colours) * 255).round().astype(np.uint8)
    picture: Rgb = table[places.reshape(indices.shape)]
    return picture


def latent_colours(latents: npt.NDArray[np.floating]) -> Rgb:
    """The first three channels as red, green and blue, each from its 2nd to its 98th percentile.

    Args:
        latents: ``[c, h, w]``, any c from 1 on.

    Returns:
        uint8 ``[h, w, 3]``.
    """
    low, high = np.percentile(latents, (2, 98), axis=(1, 2), keepdims=True)
    scaled = np.clip((latents - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    chosen = scaled[[min(channel, len(latents) - 1) for channel in range(3)]]
    picture: Rgb = (chosen * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return picture


def with_gaps(pictures: npt.NDArray[np.uint8], *, gap: int, colour: int) -> Rgb:
    """Pictures side by side with room between them.

    Args:
        pictures: uint8 ``[n, H, W, 3]``.
        gap: pixels between two.
        colour: of the room, a grey 0 to 255.
    """
    num, height, width, _ = pictures.shape
    wide = np.full((height, num * (width + gap) - gap, 3), colour, dtype=np.uint8)
    for at, picture in enumerate(pictures):
        wide[:, at * (width + gap) : at * (width + gap) + width] = picture
    return wide
