"""Images drawn by code, in the formats that data sets hold, and what they say of themselves."""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np

CORNERS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8)
"""Red, green; blue, yellow."""


def corners(height: int = 64, width: int = 64) -> np.ndarray:
    """Four colours, uint8 ``[H, W, 3]``: each corner has its own, so that any turn shows."""
    return CORNERS.repeat(height // 2, 0).repeat(width // 2, 1)


def image(picture: np.ndarray, codec: str = "png", pix_fmt: str = "rgb24", **options: str) -> bytes:
    """One picture ``[H, W, 3 or 4]`` as a file: mjpeg, png, libwebp, gif (a container of one)."""
    frame = av.VideoFrame.from_ndarray(
        picture, format="rgba" if picture.shape[-1] == 4 else "rgb24"
    ).reformat(format=pix_fmt)
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, pix_fmt
    encoder.time_base = Fraction(1, 25)
    encoder.options = options
    if pix_fmt.startswith("yuvj"):
        encoder.color_range = 2
    return b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))


def jpeg(picture: np.ndarray) -> bytes:
    return image(picture, "mjpeg", "yuvj444p", qmin="1", qmax="1")


def webp(picture: np.ndarray) -> bytes:
    return image(picture, "libwebp", "bgra", lossless="1")


def tiff_header(orientation: int, order: str = "<") -> bytes:
    """EXIF that says nothing but how the picture is turned."""
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turned_jpeg(data: bytes, orientation: int) -> bytes:
    content = b"Exif\0\0" + tiff_header(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


def turned_png(data: bytes, orientation: int) -> bytes:
    import zlib

    content = tiff_header(orientation, ">")
    crc = struct.pack(">I", zlib.crc32(b"eXIf" + content))
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + crc
    return data[:33] + chunk + data[33:]  # behind the signature and IHDR


def moving(num_frames: int, container: str = "gif", codec: str = "gif", pix: str = "rgb8") -> bytes:
    """An animation; frame k is as bright as k says."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = pix
        for k in range(num_frames):
            shade = np.full((64, 64, 3), 36 * k, np.uint8)
            frame = av.VideoFrame.from_ndarray(shade).reformat(format=pix)
            frame.pts = k
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def palette_png(colours: np.ndarray, alphas: list[int], indices: np.ndarray) -> bytes:
    """PNG of colour type 3, written by hand: FFmpeg's own encoder needs a palette of its own."""
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    height, width = indices.shape
    rows = b"".join(b"\0" + row.tobytes() for row in indices.astype(np.uint8))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", colours.astype(np.uint8).tobytes())
        + chunk(b"tRNS", bytes(alphas))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
