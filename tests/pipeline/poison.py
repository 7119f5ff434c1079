"""Hostile video files made by code: what they claim is what no healthy file would."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction

import av

from tests.pipeline.media import encode, numbered

GIANT = 30_000
"""Rows and columns that a header claims: 2.7 GB as RGB."""


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixels end after the first few."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


def jpeg(width: int, height: int) -> bytes:
    """A JPEG of 64x64 whose header claims another size."""
    data = encode(
        [0],
        container="mjpeg",
        codec="mjpeg",
        pix_fmt="yuvj420p",
        draw=lambda _: numbered(1),
    )
    frame = data.index(b"\xff\xc0") + 5  # behind marker, length and precision
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


def muxed(
    packets: Iterable[bytes],
    *,
    container: str,
    codec: str,
    width: int = 64,
    height: int = 64,
    step: int = 1,
    pix_fmt: str = "yuvj420p",
) -> bytes:
    """Packets as they are, in a container that claims a size and ``step`` seconds/25 a frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.pts = packet.dts = number * step
            packet.duration, packet.time_base = step, Fraction(1, 25)
            packet.stream, packet.is_keyframe = stream, True
            output.mux(packet)
    return file.getvalue()


HEADER_SIZES = {
    "mp4": lambda width, height: struct.pack(">HH", width, height) + b"\0\x48\0\0",
    "avi": lambda width, height: struct.pack("<ii", width, height) + b"\1\0\x18\0MJPG",
    "matroska": lambda width, height: struct.pack(">HHHH", 0xB082, width, 0xBA82, height),
}
"""The bytes that state the picture size, by container."""


def header_claims(container: str, width: int, height: int) -> bytes:
    """Healthy JPEGs of 64x64 in a container whose header states another size."""
    data = muxed([jpeg(64, 64)] * 3, container=container, codec="mjpeg", width=320, height=320)
    old, new = (HEADER_SIZES[container](*size) for size in ((320, 320), (width, height)))
    assert data.count(old) == 1, f"{old!r} is there {data.count(old)} times"
    return data.replace(old, new)


def mp4_of_many_samples(number: int = 10**9) -> bytes:
    """An MP4 of three pictures whose tables say that there are many, in a few bytes."""
    data = muxed([jpeg(64, 64)] * 3, container="mp4", codec="mjpeg")
    for name, old, new in (
        (b"stts", (1, 3), (1, number)),  # one run of 3 samples
        (b"stsz", (len(jpeg(64, 64)), 3), (1, number)),  # the size of each, 3 samples
        (b"stsc", (1, 1, 3), (1, 1, number)),  # chunk 1 holds 3 samples
    ):
        start = data.index(name) + 8
        found = struct.unpack_from(f">{len(old)}I", data, start)
        assert found == old, f"{name!r} holds {found}"
        patch = struct.pack(f">{len(new)}I", *new)
        data = data[:start] + patch + data[start + len(patch) :]
    return data


def matroska_of_hours(hours: int) -> bytes:
    """Three pictures, and a header that promises hours."""
    data = muxed([jpeg(64, 64)] * 3, container="matroska", codec="mjpeg")
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes
    return data[:place] + struct.pack(">d", hours * 3_600_000.0) + data[place + 8 :]


def many_streams(number: int, container: str = "matroska", content: bytes | None = None) -> bytes:
    """As many video streams of one picture each."""
    file = io.BytesIO()
    content = content or jpeg(64, 64)
    with av.open(file, "w", format=container) as output:
        streams = []
        for _ in range(number):
            stream = output.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
            streams.append(stream)
        for stream in streams:
            packet = av.Packet(content)
            packet.pts = packet.dts = 0
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            output.mux(packet)
    return file.getvalue()


def y4m(num_frames: int, width: int = 1, height: int = 1) -> bytes:
    """Raw grey pictures, seven bytes each at the least."""
    picture = b"FRAME\n" + bytes(width * height)
    return f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 Cmono\n".encode() + picture * num_frames


def gif(num_frames: int) -> bytes:
    """A GIF of one pixel that is to be repeated for ever."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    for_ever = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    picture = b"\x21\xf9\x04\0\x04\0\0\0" + b"\x2c" + bytes(4) + b"\1\0\1\0\0" + b"\2\2\x44\1\0"
    return head + for_ever + picture * num_frames + b"\x3b"


def empty_avi_chunks(number: int) -> bytes:
    """An AVI of three pictures, and behind them chunks of no bytes: eight bytes each."""
    data = muxed([jpeg(64, 64)] * 3, container="avi", codec="mjpeg")
    start = data.index(b"movi") - 4
    (size,) = struct.unpack_from("<I", data, start)
    end = start + 4 + size
    size += 8 * number
    return data[:start] + struct.pack("<I", size) + data[start + 4 : end] + b"00dc\0\0\0\0" * number


def h264(width: int, height: int) -> bytes:
    """A key frame of 64x64 behind a sequence header that states another size (whole blocks)."""
    data = encode(
        [0],
        container="h264",
        options={"profile": "baseline", "preset": "ultrafast", "x264-params": "aud=0"},
    )
    units = [b"\0\0\1" + unit.rstrip(b"\0") for unit in data.split(b"\0\0\1")[1:]]
    kinds = [unit[3] & 0x1F for unit in units]
    assert 7 in kinds
    assert 5 in kinds
    units[kinds.index(7)] = _h264_sequence_header(width, height)
    return b"".join(units)


def _h264_sequence_header(width: int, height: int) -> bytes:
    def number(value: int) -> str:
        digits = f"{value + 1:b}"
        return "0" * (len(digits) - 1) + digits

    fields = (0, 0, 2, 1)  # id, digits of frame numbers, order of pictures, reference pictures
    bits = "".join(number(value) for value in fields) + "0"
    bits += number(width // 16 - 1) + number(height // 16 - 1) + "1000" + "1"
    bits += "0" * (-len(bits) % 8)
    payload = bytes([66, 0, 62]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
    while b"\0\0\0" in payload or b"\0\0\1" in payload or b"\0\0\2" in payload:
        for tail in (b"\0", b"\1", b"\2"):
            payload = payload.replace(b"\0\0" + tail, b"\0\0\3" + tail)
    return b"\0\0\1\x67" + payload


def attachment_of(num_bytes: int) -> bytes:
    """A Matroska file of three pictures and one attached file."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        output.add_attachment("a.bin", "application/octet-stream", bytes(num_bytes))
        packet = av.Packet(jpeg(64, 64))
        packet.pts = packet.dts = 0
        packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
        output.mux(packet)
    return file.getvalue()


def extradata_claims(num_bytes: int) -> bytes:
    """An MP4 whose decoder configuration claims a size that the file does not have."""
    data = encode(range(3))
    place = data.index(b"avcC") - 4
    return data[:place] + struct.pack(">I", num_bytes) + data[place + 4 :]
