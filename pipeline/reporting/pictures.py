"""Colours of tokens, and pictures for a page that is one file. Pure.

Token maps are PNG, small and exact. Frames are JPEG, a tenth of the size.
"""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from pipeline.film import Rgb

JPEG_SCALE = 4
"""Of the quantiser, 2 (best) to 31; at 4 a strip of 8 frames of 128 x 128 takes about 25 kB."""
_GOLDEN = 0.6180339887498949


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


def index_colours(indices: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """A colour for every index, the same one wherever it stands; neighbours look unlike.

    FSQ indices are mixed-radix numbers, so near numbers are no near meanings: hue and lightness go
    round by powers of the golden ratio.

    Args:
        indices: ``[...]``, from 0 on.

    Returns:
        uint8 ``[..., 3]``.
    """
    numbers = indices.astype(np.float64)
    hue, light = (numbers * _GOLDEN) % 1.0, 0.55 + 0.45 * ((numbers * _GOLDEN**2) % 1.0)
    phases = hue[..., None] + np.array([0.0, 1 / 3, 2 / 3])
    colours = light[..., None] * (0.5 + 0.5 * np.cos(2 * np.pi * phases))
    picture: npt.NDArray[np.uint8] = (255 * colours).round().astype(np.uint8)
    return picture


def latent_colours(latents: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """The first three channels as red, green and blue, each from its 2nd to its 98th percentile.

    Args:
        latents: ``[c, ...]``, any c from 1 on.

    Returns:
        uint8 ``[..., 3]``.
    """
    within = tuple(range(1, latents.ndim))
    low, high = np.percentile(latents, (2, 98), axis=within, keepdims=True)
    scaled = np.clip((latents - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    chosen = scaled[[min(channel, len(latents) - 1) for channel in range(3)]]
    picture: npt.NDArray[np.uint8] = np.moveaxis((255 * chosen).round().astype(np.uint8), 0, -1)
    return picture
