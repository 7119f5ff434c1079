"""Whether a GIF is there to its end, which FFmpeg does not ask: it shows what it has.

Pure, and on untrusted bytes. The format is that of the GIF89a specification (CompuServe, 1990).
"""

from __future__ import annotations

_SCREEN, _PICTURE = 13, 10
"""Bytes of the header with the logical screen descriptor, and of an image descriptor."""
_EXTENSION, _IMAGE, _TRAILER = b"!", b",", b";"


def is_whole_gif(data: bytes) -> bool:
    """Whether block follows block up to the trailer; what stands behind it does not matter.

    >>> is_whole_gif(b"GIF89a" + bytes(7) + b";")
    True
    >>> is_whole_gif(b"GIF89a" + bytes(7))
    False
    """
    at = _SCREEN + _colours(data[10:11])
    while (label := data[at : at + 1]) != _TRAILER:
        if label == _EXTENSION:
            at += 2
        elif label == _IMAGE:
            packed = data[at + _PICTURE - 1 : at + _PICTURE]
            at += _PICTURE + _colours(packed) + 1  # and the code size
        else:
            return False
        at = _behind_sub_blocks(data, at)
    return True


def _colours(packed: bytes) -> int:
    """Bytes of the colour table that a descriptor's flags announce."""
    flags = packed[0] if packed else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _behind_sub_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
