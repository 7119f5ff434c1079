"""A picture as a PNG file."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray


def png(picture: NDArray[np.uint8]) -> bytes:
    """uint8 ``[H, W, 3]`` as a PNG file."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="image2pipe") as container:
        video = container.add_stream("png", rate=1)
        video.height, video.width = picture.shape[:2]
        video.pix_fmt = "rgb24"
        container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    return stream.getvalue()
