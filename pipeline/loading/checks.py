"""Digests of what is read again: SHA-256 once, then a checksum that is twenty times as fast.

A data set is read for many epochs, and SHA-256 costs more than all else that is done to it. So what
has been compared with its SHA-256 is remembered by a checksum of this process; only bytes with
another one, or of a row group not seen before, are compared with the SHA-256 again.
"""

from __future__ import annotations

import numpy as np

from pipeline.loading.hashing import derived_key, hashes
from pipeline.manifest import Line
from pipeline.parts import check_group
from pipeline.receipts import Receipt

MAX_KNOWN = 1 << 17
"""Row groups remembered: 20 MB. Of more than that the others are compared with their SHA-256."""

_WORDS = 8192
"""Of a block, so that the keys stay in the cache."""
_KEYS = hashes(np.arange(_WORDS), derived_key("checksum")) | np.uint64(1)


class Checks:
    """Compares row groups with their digests. Threads may share it."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[str, int] = {}

    def __call__(self, line: Receipt | Line, group: int, content: bytes | memoryview) -> None:
        """Let pass what was committed.

        Raises:
            RunError: these are other bytes.
        """
        digest = line.row_groups[group].sha256
        found = checksum(content)
        if self._known.get(digest) == found:
            return
        check_group(line, group, content)
        if len(self._known) < MAX_KNOWN:
            self._known[digest] = found


def checksum(content: bytes | memoryview) -> int:
    """64 bits that differ for certain where one word of 8 bytes does, else but for 1 in 2^63.

    Words times odd keys, added up modulo 2^64 (multilinear hashing, Lemire and Kaser 2014): a
    difference times an odd number is never 0 there. Sums of blocks are summed likewise.
    """
    data = np.frombuffer(content, dtype=np.uint8)
    words, last = data[: data.size // 8 * 8].view(np.uint64), data[data.size // 8 * 8 :]
    whole = words.size // _WORDS * _WORDS
    blocks, rest = words[:whole].reshape(-1, _WORDS), words[whole:]
    sums = np.append(
        np.einsum("bw,w->b", blocks, _KEYS),
        np.array(
            [
                np.einsum("w,w->", rest, _KEYS[: rest.size]),
                int.from_bytes(last.tobytes(), "little"),
                data.size,
            ],
            dtype=np.uint64,
        ),
    )
    # keys come round again after 512 MiB, which only lets exchanged blocks pass
    return int(np.einsum("b,b->", sums, np.resize(_KEYS, sums.size)))
