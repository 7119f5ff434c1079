"""Pictures as PNG files, for whoever shows or keeps one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame


def png(picture: npt.NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file (ISO/IEC 15948), without loss; the same bytes every time.

    Args:
        picture: uint8 ``[H, W, 3]``, RGB.

    Raises:
        ValueError: of another shape, or empty.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"a picture must be [H, W, 3] and not empty, got {list(picture.shape)}")
    codec = CodecContext.create("png", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.height, codec.width, codec.pix_fmt = *picture.shape[:2], "rgb24"
    codec.framerate = codec.time_base = 1  # type: ignore[assignment]
    codec.options = {"pred": "mixed"}
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
