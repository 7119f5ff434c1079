"""How a picture is to be turned, by its EXIF: the one thing that a decoder leaves to its caller.

Pure, and on untrusted bytes: whatever cannot be followed says nothing, and the picture stays as it
is. The formats are those of JPEG (ITU-T T.81 segments), PNG (chunks), RIFF (WebP) and TIFF 6.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pipeline.transforms import Orientation

_ORIENTATIONS = {
    2: Orientation(flip_columns=True),
    3: Orientation(flip_columns=True, flip_rows=True),
    4: Orientation(flip_rows=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, flip_columns=True),
    7: Orientation(transposed=True, flip_columns=True, flip_rows=True),
    8: Orientation(transposed=True, flip_rows=True),
}
"""EXIF 2.3, tag 0x0112: where row 0 and column 0 of what is stored are seen."""
_TAG, _SHORT = 0x0112, 3
_MAX_ENTRIES = 1000
_MAX_BLOCKS = 1000
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"


def exif_orientation(data: bytes) -> Orientation:
    """How a JPEG, PNG or WebP is turned before it is shown; as it is where nothing says so.

    >>> exif_orientation(b"not a picture") == Orientation()
    True
    """
    for block in _exif_blocks(data):
        return _ORIENTATIONS.get(_tag(block.removeprefix(_EXIF)), Orientation())
    return Orientation()


def is_animated_webp(data: bytes) -> bool:
    """Whether a WebP says that it moves (bit 1 of the VP8X chunk's flags)."""
    is_webp = data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X"
    return is_webp and len(data) > 20 and bool(data[20] & 2)


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    if data.startswith(_JPEG):
        yield from _jpeg_blocks(data)
    elif data.startswith(_PNG):
        yield from _chunks(data, len(_PNG), ">I4s", b"eXIf", size_first=True, behind=4, pad=1)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        yield from _chunks(data, 12, "<4sI", b"EXIF", size_first=False, behind=0, pad=2)


def _jpeg_blocks(data: bytes) -> Iterator[bytes]:
    """APP1 segments that hold EXIF, before the first scan."""
    at = 2
    for _ in range(_MAX_BLOCKS):
        if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] == 0xDA:
            return
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + size]
        if data[at + 1] == 0xE1 and content.startswith(_EXIF):
            yield content
        at += 2 + max(size, 2)


def _chunks(
    data: bytes, at: int, header: str, wanted: bytes, *, size_first: bool, behind: int, pad: int
) -> Iterator[bytes]:
    """Chunks of one name; each is a header, its content, and what stands behind that."""
    for _ in range(_MAX_BLOCKS):
        if at + 8 > len(data):
            return
        first, second = struct.unpack_from(header, data, at)
        size, name = (first, second) if size_first else (second, first)
        if name == wanted:
            yield data[at + 8 : at + 8 + size]
        at += 8 + -(-size // pad) * pad + behind


def _tag(tiff: bytes) -> int:
    """The orientation in the first directory of a TIFF header; 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    start = struct.unpack_from(f"{order}I", tiff, 4)[0]
    if start + 2 > len(tiff):
        return 1
    number = struct.unpack_from(f"{order}H", tiff, start)[0]
    for entry in range(min(number, _MAX_ENTRIES)):
        at = start + 2 + 12 * entry
        if at + 12 > len(tiff):
            return 1
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, at)
        if tag == _TAG and kind == _SHORT:
            return int(value)
    return 1
