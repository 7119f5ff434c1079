"""The members of a tar, one header after the other, of an archive that is not trusted.

Python's own ``TarFile.next`` takes a header that does not check, and a missing end, for the end of
the archive, which would lose the rest in silence: here the archive is *cut*, with the place.
Parsing one header stays the standard library's, fed with bounded reads.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from pipeline.ranges import ReadsPlaces

_BLOCK = tarfile.BLOCKSIZE
_END_BYTES = 8 << 20
_MAX_LONG_HEADER_BYTES = 1 << 20
_MAX_HEADER_READS = 200
_MAX_GLOBAL_RECORDS = 100


class TarCut(Exception):
    """The archive cannot be followed beyond this place."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset, self.reason = offset, reason


class TarWalk:
    """One pass over one tar."""

    def __init__(self, file: ReadsPlaces) -> None:
        self._file = file
        self.end = 0
        """Where the end-of-archive marker stands, once it was met."""

    def members(self, offset: int) -> Iterator[tarfile.TarInfo]:
        """Members from ``offset`` on, whose content lies inside the archive.

        Raises:
            TarCut: a header that cannot be read, or no end marker.
            StorageError: the archive cannot be read.
        """
        # Opened on an empty archive, because opening reads a header; headers come from `source`.
        archive = tarfile.TarFile(
            fileobj=io.BytesIO(bytes(2 * _BLOCK)), encoding="utf-8", errors="surrogateescape"
        )
        while True:
            header = self._file.read(offset, _BLOCK)
            if not header:
                raise TarCut(offset, "the archive stops without its end marker")
            if len(header) < _BLOCK:
                raise TarCut(offset, "the archive is cut inside a header")
            if not header.strip(b"\0"):
                self._check_nothing_follows(offset)
                self.end = offset
                return
            info = self._parse(archive, offset)
            data_end = info.offset_data + info.size
            is_stored = info.isreg() and info.sparse is None  # a sparse size is not what is stored
            if (
                info.size < 0
                or archive.offset <= offset
                or (is_stored and data_end > self._file.size_bytes)
            ):
                raise TarCut(
                    offset, f"{info.name!r} says {info.size:,} bytes, the archive ends before that"
                )
            yield info
            offset = archive.offset

    def _parse(self, archive: tarfile.TarFile, offset: int) -> tarfile.TarInfo:
        """The member at this place; ``archive.offset`` is then that of the next one."""
        try:
            archive.fileobj = _HeaderSource(self._file, offset)  # type: ignore[assignment] # it reads only
            archive.offset = offset
            info = tarfile.TarInfo.fromtarfile(archive)
        except (tarfile.TarError, ValueError) as error:
            raise TarCut(offset, f"not a tar header ({error})") from error
        # these hold for the rest of the archive, and would be kept and copied for every member
        if len(archive.pax_headers) > _MAX_GLOBAL_RECORDS:
            raise TarCut(offset, f"more than {_MAX_GLOBAL_RECORDS:,} global header records")
        return info

    def _check_nothing_follows(self, offset: int) -> None:
        """The end marker is followed by zeros only; anything else was lost or appended."""
        for at in range(offset, self._file.size_bytes, _END_BYTES):
            if self._file.read(at, _END_BYTES).strip(b"\0"):
                raise TarCut(offset, "an empty block, as at the end, but data follow it")


class _HeaderSource:
    """What `tarfile` reads the headers of one member from: whole or not at all, and bounded."""

    def __init__(self, file: ReadsPlaces, offset: int) -> None:
        self._file, self._offset, self._num_reads = file, offset, 0

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int) -> None:
        self._offset = offset

    def read(self, size: int) -> bytes:
        self._num_reads += 1
        if not 0 <= size <= _MAX_LONG_HEADER_BYTES:
            raise tarfile.HeaderError(f"an extended header of {size:,} bytes")
        if self._num_reads > _MAX_HEADER_READS:  # tarfile calls itself for each
            raise tarfile.HeaderError("too many extended headers for one member")
        data = self._file.read(self._offset, size)
        self._offset += len(data)
        return data
