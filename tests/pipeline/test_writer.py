"""Parts: Parquet files that say how to read them and that show damage."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import writer
from pipeline.errors import RunError, ShardError
from pipeline.parts import check_part, open_part, read_row_group
from pipeline.receipts import Receipt
from pipeline.schema import read_token_format
from pipeline.storage import Storage
from pipeline.writer import PartDigest, QuarantinedVideo, digest_part, quarantine_tar, write_part
from tests.pipeline.fakes import row, token_format
from tests.pipeline.receipts import receipt

ROWS = [row(number) for number in range(5)]
SHAPES = {"1,2,3": 5}


@pytest.fixture
def part(tmp_path: Path) -> Path:
    write_part(tmp_path / "part", ROWS, token_format(), row_group_rows=2)
    return tmp_path / "part"


def committed(tmp_path: Path, content: bytes, digest: PartDigest) -> tuple[Storage, Receipt]:
    """An OUT whose receipt was made for ``digest`` and whose part holds ``content``."""
    storage = Storage(str(tmp_path / "out"))
    storage.put("parts/p", content)
    return storage, receipt(
        part="p",
        rows=digest.rows,
        **digest.receipt_fields(),
        fingerprint=token_format().fingerprint,
    )


def test_plain_pyarrow_reads_a_part(part: Path) -> None:
    table = pq.read_table(part)
    assert table.column("clip_id").to_pylist() == [one.clip_id for one in ROWS]
    assert table.column("tokens").to_pylist() == [one.tokens for one in ROWS]
    assert table.column("caption").to_pylist() == [one.caption for one in ROWS]


def test_the_footer_says_how_to_read_the_tokens(part: Path) -> None:
    assert read_token_format(pq.read_schema(part).metadata) == token_format()


def test_row_groups_have_the_size_asked_for(part: Path) -> None:
    metadata = pq.ParquetFile(part).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("most_rows", "most_bytes", "sizes"),
    [
        (2, 1 << 20, [2, 2, 2]),
        (10, 1 << 20, [6]),
        (10, 1, [1, 1, 1, 1, 1, 1]),
        (10, 200, [2, 2, 1, 1]),
        (10, 1000, [4, 1, 1]),
        (3, 1000, [3, 1, 1, 1]),
    ],
)
def test_row_groups_are_limited_by_rows_and_by_bytes(
    tmp_path: Path, most_rows: int, most_bytes: int, sizes: list[int]
) -> None:
    rows = [row(n, caption="x" * 86) for n in range(4)]  # 100 bytes each, with 14 of tokens
    rows += [row(4, caption="x" * 986), row(5, metadata="x" * 986, caption=None)]
    digest = write_part(
        tmp_path / "part",
        rows,
        token_format(),
        row_group_rows=most_rows,
        row_group_bytes=most_bytes,
    )
    assert [group.rows for group in digest.row_groups] == sizes
    metadata = pq.read_metadata(tmp_path / "part")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == sizes


@pytest.mark.parametrize("shapes", [[(1, 2, 3)] * 2, [(1, 2, 3), (1, 4, 4)]])
def test_tokens_are_stored_plain_whatever_their_sizes(
    tmp_path: Path, shapes: list[tuple[int, ...]]
) -> None:
    rows = [row(number, shape=shape) for number, shape in enumerate(shapes)]
    write_part(tmp_path / "part", rows, token_format(), row_group_rows=10)
    group = pq.ParquetFile(tmp_path / "part").metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    tokens = columns["tokens"]
    expected = "FIXED_LEN_BYTE_ARRAY" if len(set(shapes)) == 1 else "BYTE_ARRAY"
    assert tokens.physical_type == expected
    assert tokens.compression == "UNCOMPRESSED"
    assert not tokens.is_stats_set
    assert not tokens.has_dictionary_page
    assert columns["shard"].has_dictionary_page
    assert columns["clip_id"].compression == "ZSTD"


def test_the_digest_is_that_of_the_file_and_its_footer(part: Path) -> None:
    content = part.read_bytes()
    digest = digest_part(content, SHAPES)
    footer_bytes = int.from_bytes(content[-8:-4], "little") + 8
    assert digest == PartDigest(
        rows=5,
        size_bytes=len(content),
        file_sha256=hashlib.sha256(content).hexdigest(),
        footer_sha256=hashlib.sha256(content[-footer_bytes:]).hexdigest(),
        row_groups=digest.row_groups,
        shapes=SHAPES,
    )
    assert [group.rows for group in digest.row_groups] == [2, 2, 1]
    assert digest.row_groups[-1].end_offset == len(content) - footer_bytes
    start = 0
    for group in digest.row_groups:
        found = hashlib.sha256(content[start : group.end_offset]).hexdigest()
        assert group.sha256 == found
        start = group.end_offset


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 10, b"\xff\xff\xff\x7fPAR1"])
def test_what_does_not_end_like_parquet_has_no_digest(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        digest_part(content, {})


def test_a_part_that_does_not_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table = writer.pq.ParquetWriter.write_table

    def write_less(file: pq.ParquetWriter, table: pa.Table, **options: Any) -> None:
        write_table(file, table.slice(1), **options)

    monkeypatch.setattr(writer.pq.ParquetWriter, "write_table", write_less)
    with pytest.raises(ShardError, match="does not read back as written"):
        write_part(tmp_path / "part", ROWS, token_format(), row_group_rows=2)


def test_every_flipped_byte_of_the_tokens_is_found_on_reading(part: Path, tmp_path: Path) -> None:
    content = part.read_bytes()
    digest = digest_part(content, SHAPES)
    for one in ROWS:
        at = content.index(one.tokens)
        for place in range(at, at + len(one.tokens)):
            flipped = content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
            opened = open_part(*committed(tmp_path, flipped, digest))
            with pytest.raises(RunError, match="part p of s, row group"):
                _ = [read_row_group(opened, n) for n in range(opened.file.num_row_groups)]


def test_every_flipped_byte_of_the_footer_is_found_on_opening(part: Path, tmp_path: Path) -> None:
    content = part.read_bytes()
    digest = digest_part(content, SHAPES)
    footer_bytes = int.from_bytes(content[-8:-4], "little") + 8
    dice = random.Random(0)
    for _ in range(300):
        place = len(content) - 1 - dice.randrange(footer_bytes)
        flipped = bytearray(content)
        flipped[place] ^= 1 << dice.randrange(8)
        with pytest.raises(RunError, match="cannot be trusted"):
            open_part(*committed(tmp_path, bytes(flipped), digest))


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_part_of_another_size_is_found_on_opening(part: Path, tmp_path: Path, size: int) -> None:
    content = part.read_bytes()
    with pytest.raises(RunError, match="its receipt says"):
        open_part(*committed(tmp_path, content[:size], digest_part(content, SHAPES)))


def test_a_missing_part_is_named(part: Path, tmp_path: Path) -> None:
    storage, record = committed(tmp_path, b"", digest_part(part.read_bytes(), SHAPES))
    storage.delete("parts/p")
    with pytest.raises(RunError, match="out/parts/p is missing"):
        open_part(storage, record)


def test_a_parquet_file_of_something_else_is_no_part(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    content = (tmp_path / "other").read_bytes()
    with pytest.raises(RunError, match="not a token part"):
        open_part(*committed(tmp_path, content, digest_part(content, {"1,2,3": 1})))


def test_a_sound_part_has_no_problems(part: Path, tmp_path: Path) -> None:
    content = part.read_bytes()
    opened = open_part(*committed(tmp_path, content, digest_part(content, SHAPES)))
    assert list(check_part(opened, fingerprint=token_format().fingerprint)) == []


BAD = QuarantinedVideo(key="a/b", reason="decode", message="no frame")


def members(content: bytes | None) -> dict[str, bytes]:
    assert content is not None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}


def test_quarantined_originals_stand_beside_their_reasons() -> None:
    found = members(quarantine_tar([(BAD, "mp4", b"12345")], max_bytes=100))
    assert list(found) == ["a/b.mp4", "a/b.reason.json"]
    assert found["a/b.mp4"] == b"12345"
    record = json.loads(found["a/b.reason.json"])
    assert record == {
        "key": "a/b",
        "reason": "decode",
        "message": "no frame",
        "original_bytes": 5,
        "original_kept": True,
    }


def test_originals_beyond_the_bound_are_left_out_and_smaller_ones_still_kept() -> None:
    videos = [
        (QuarantinedVideo(key=key, reason="decode", message=""), "mp4", bytes(size))
        for key, size in (("a", 60), ("b", 60), ("c", 40))
    ]
    found = members(quarantine_tar(videos, max_bytes=100))
    assert [name for name in found if name.endswith(".mp4")] == ["a.mp4", "c.mp4"]
    assert json.loads(found["b.reason.json"])["original_kept"] is False


def test_an_original_that_was_never_read_leaves_its_reason() -> None:
    assert list(members(quarantine_tar([(BAD, "bin", b"")], max_bytes=100))) == ["a/b.reason.json"]


def test_a_hostile_key_stays_inside_the_folder_it_is_unpacked_in() -> None:
    video = QuarantinedVideo(key="/../../etc/x", reason="decode", message="")
    for name in members(quarantine_tar([(video, "mp4", b"1")], max_bytes=100)):
        assert not name.startswith("/")
        assert ".." not in name


def test_nothing_quarantined_is_no_tar() -> None:
    assert quarantine_tar([], max_bytes=100) is None
