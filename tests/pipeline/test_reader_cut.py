"""Archives that are cut, damaged or hostile, and storage that gives less than it holds."""

from __future__ import annotations

import random
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline import backends
from pipeline.errors import StorageError
from pipeline.ranges import RangeBuffers
from pipeline.reader import Sample
from tests.pipeline.tars import read, tar_bytes, tar_shard, three_samples

BLOCK = 512
CONTENT = tar_bytes(three_samples(), format=tarfile.GNU_FORMAT)


@pytest.fixture
def straight(tmp_path: Path) -> list[Sample]:
    return read(tar_shard(tmp_path / "straight.tar", CONTENT))[0]


def cut_places() -> list[int]:
    """The edges of every block and some places inside."""
    edges = range(0, len(CONTENT) + 1, BLOCK)
    dice = random.Random(0)
    near = {edge + step for edge in edges for step in (-1, 0, 1)}
    inside = {dice.randrange(len(CONTENT)) for _ in range(60)}
    return sorted(place for place in near | inside if 0 <= place <= len(CONTENT))


def test_a_cut_archive_gives_a_prefix_and_says_that_it_is_cut(
    tmp_path: Path, straight: list[Sample]
) -> None:
    padding_begins = straight[-1].end_offset
    for place in cut_places():
        samples, end = read(tar_shard(tmp_path / "cut.tar", CONTENT[:place]))
        assert samples == straight[: len(samples)], f"cut at {place}"
        if place >= padding_begins + BLOCK:
            assert (samples, end.cut) == (straight, None), f"cut at {place}"
        else:
            assert end.cut is not None, f"cut at {place}"
            assert end.offset == (samples[-1].end_offset if samples else 0)
            # a sample is known to be whole when the next one's first member (23 bytes) is there
            known = sum(s.end_offset + BLOCK + 23 <= place for s in straight[:-1])
            assert len(samples) == known, f"cut at {place}"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (0, "without its end marker"),
        (100, "inside a header"),
        (BLOCK + 5, "says 23 bytes, the archive ends before that"),
        (2 * BLOCK, "without its end marker"),
    ],
    ids=["empty file", "header", "data", "member boundary"],
)
def test_a_cut_is_described_with_its_place(tmp_path: Path, place: int, words: str) -> None:
    _, end = read(tar_shard(tmp_path / "cut.tar", CONTENT[:place]))
    assert end.cut is not None
    assert end.cut.startswith("byte ")
    assert words in end.cut


@pytest.mark.parametrize("num_blocks", [1, 2, 20])
def test_zeros_alone_are_an_empty_archive(tmp_path: Path, num_blocks: int) -> None:
    samples, end = read(tar_shard(tmp_path / "zero.tar", bytes(num_blocks * BLOCK)))
    assert (samples, end.cut, end.offset) == ([], None, 0)


def damaged(offset: int, change: bytes) -> bytes:
    return CONTENT[:offset] + change + CONTENT[offset + len(change) :]


@pytest.mark.parametrize(
    "change", [b"\xa5" * BLOCK, bytes(BLOCK), b"text" * 128], ids=["noise", "hole", "text"]
)
def test_a_damaged_header_in_the_middle_is_a_cut(
    tmp_path: Path, straight: list[Sample], change: bytes
) -> None:
    content = damaged(straight[1].start_offset, change)
    samples, end = read(tar_shard(tmp_path / "bad.tar", content))
    assert samples == [], "the sample before may have lost members: nothing says that it has not"
    assert end.offset == 0
    assert f"byte {straight[1].start_offset}:" in str(end.cut)


def test_a_second_archive_behind_the_first_is_not_lost_in_silence(tmp_path: Path) -> None:
    _, end = read(tar_shard(tmp_path / "two.tar", CONTENT + CONTENT))
    assert "data follow it" in str(end.cut)


def test_damaged_data_are_not_the_readers_business(tmp_path: Path, straight: list[Sample]) -> None:
    content = damaged(straight[0].end_offset - 700, b"\xa5" * 600)
    samples, end = read(tar_shard(tmp_path / "bad.tar", content))
    assert [s.key for s in samples] == [s.key for s in straight]
    assert end.cut is None


def header(name: str = "a.mp4", *, size: int | bytes = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One header with any size field, and a checksum that holds."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(number: int) -> bytes:
    """A size field beyond octal: GNU's, two's complement."""
    first = b"\xff" if number < 0 else b"\x80"
    return first + struct.pack(">q", number).rjust(11, b"\xff" if number < 0 else b"\0")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax(record: str, kind: bytes = tarfile.XHDTYPE) -> bytes:
    data = record.encode()
    return header("pax", size=len(data), kind=kind) + padded(data)


END = bytes(2 * BLOCK)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "huge size": lambda: header(size=8**11 - 1) + END,
    "huge base-256 size": lambda: header(size=base256(1 << 60)) + END,
    "negative size": lambda: header(size=base256(-512)) + END,
    "very negative size": lambda: header(size=base256(-(1 << 60))) + END,
    "size that is no number": lambda: header(size=b"zzzzzzzzzzz\0") + END,
    "huge long name": lambda: header(size=1 << 30, kind=tarfile.GNUTYPE_LONGNAME) + END,
    "negative long name": lambda: (
        header(size=base256(-5000), kind=tarfile.GNUTYPE_LONGNAME) + header() + END
    ),
    "huge pax header": lambda: header(size=1 << 30, kind=tarfile.XHDTYPE) + END,
    "huge pax header behind a small one": lambda: (
        pax("11 path=ab\n") + header(size=64 << 20, kind=tarfile.XHDTYPE) + bytes(64 << 20) + END
    ),
    "pax size is huge": lambda: pax("23 size=99999999999999\n") + header() + END,
    "pax size is negative": lambda: pax("13 size=-512\n") + header() + END,
    "chain of pax headers": lambda: pax("11 path=ab\n") * 3000 + header() + END,
    "chain of long names": lambda: (
        (header(size=5, kind=tarfile.GNUTYPE_LONGNAME) + padded(b"ab.x\0")) * 3000 + header() + END
    ),
    "sparse map that is no number": lambda: (
        pax("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
        + header(size=BLOCK)
        + padded(b"many\n")
        + END
    ),
    "long name and then nothing": lambda: (
        header(size=BLOCK, kind=tarfile.GNUTYPE_LONGNAME) + bytes(BLOCK)
    ),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_a_cut_and_costs_little(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    first = tar_bytes([("first.mp4", b"1")])[: 2 * BLOCK]
    shard = tar_shard(tmp_path / "hostile.tar", first + make())
    tracemalloc.start()
    try:
        samples, end = read(shard)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [s.key for s in samples if s.defect is None] in ([], ["first"])
    assert end.cut is not None
    assert peak < 32 << 20


def test_random_damage_never_raises_and_never_hangs(tmp_path: Path) -> None:
    dice = random.Random(1)
    whole = tar_bytes([*three_samples(), ("long/" * 50 + "x.mp4", b"1")])
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(content) // BLOCK) * BLOCK + dice.randrange(160)
            content[at] = dice.randrange(256)
        if dice.random() < 0.7:  # most damage would end at the checksum
            for at in range(0, len(content), BLOCK):
                if content[at + 257 : at + 262] == b"ustar":
                    content[at + 148 : at + 156] = b" " * 8
                    total = sum(content[at : at + BLOCK])
                    content[at + 148 : at + 156] = b"%06o\0 " % total
        samples, end = read(tar_shard(tmp_path / "bad.tar", bytes(content)))
        assert len(samples) <= 8
        assert end.offset <= len(content)


class _ShortFile:
    """A file of a storage that stops answering at a place."""

    def __init__(self, file: object, limit: int) -> None:
        self._file, self._limit = file, limit

    def __enter__(self) -> _ShortFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        return self._file.read(max(0, min(size, self._limit - self._file.tell())))


class _ShortFileSystem(LocalFileSystem):
    """A local disk that says the true size and gives less."""

    protocol = "short"
    limit = 0

    def open(self, path: str, mode: str = "rb", **kwargs: object) -> _ShortFile:
        return _ShortFile(super().open(path, mode), self.limit)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_fewer_bytes_than_the_object_holds_are_a_storage_error_and_no_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: int
) -> None:
    content = tar_bytes([("long/" * 50 + "x.mp4", b"1" * 600), *three_samples()], format=format)
    shard = tar_shard(tmp_path / "a.tar", content)
    whole = read(shard)
    last = whole[1].offset + BLOCK
    monkeypatch.setattr(
        backends.fsspec.core, "url_to_fs", lambda url, **_: (_ShortFileSystem(), url)
    )
    monkeypatch.setattr(backends, "RETRY_SECONDS", ())
    buffers = RangeBuffers(4 * BLOCK, BLOCK)
    for limit in [*range(0, last, BLOCK), *range(100, last, 700)]:
        monkeypatch.setattr(_ShortFileSystem, "limit", limit)
        with pytest.raises(StorageError, match="bytes came at byte"):
            read(shard, buffers=buffers)
    monkeypatch.setattr(_ShortFileSystem, "limit", len(content))
    assert read(shard, buffers=buffers) == whole
    assert fsspec.core.url_to_fs is backends.fsspec.core.url_to_fs
