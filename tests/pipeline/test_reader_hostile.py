"""Tars made to harm: bombs, names that climb, sizes that lie. Each costs a bounded amount."""

from __future__ import annotations

import re
import resource
import tarfile
import tracemalloc
from pathlib import Path

import boto3
import pytest

from jobs.drill.proxy import FaultProxy
from pipeline import intake
from pipeline.ranges import RangeBuffers
from pipeline.reader import Sample, ShardEnd, read_shard
from pipeline.shards import Shard, ShardKind
from tests.pipeline import runs
from tests.pipeline.tars import RULES, Member, read, reason, tar_bytes, tar_shard

MIB = 1 << 20
GIB = 1 << 30
BLOCK = tarfile.BLOCKSIZE


def giant(name: str, size: int) -> bytes:
    """The header of a file of any size, without its content."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def read_counting_memory(shard: Shard) -> tuple[list[Sample], ShardEnd, int]:
    """As ``read``, and the bytes that Python had allocated at most meanwhile."""
    tracemalloc.start()
    try:
        samples, end = read(shard)
        return samples, end, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def sparse_tar(path: Path, name: str, size: int) -> Shard:
    """A tar whose first member really has that many bytes, all holes, and then a healthy one."""
    with path.open("wb") as file:
        file.write(giant(name, size))
        file.seek(size, 1)
        file.write(tar_bytes([("z.mp4", b"healthy")]))
    return Shard(name="big", url=str(path), kind=ShardKind.tar)


def test_a_video_of_ten_gigabytes_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    shard = sparse_tar(tmp_path / "a.tar", "a.mp4", 10 * GIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    samples, end, peak = read_counting_memory(shard)
    assert [(s.key, reason(s), s.video) for s in samples] == [
        ("a", "too_large", b""),
        ("z", None, b"healthy"),
    ]
    assert "10,737,418,240 bytes" in str(samples[0].defect)
    assert end.cut is None
    assert peak < 16 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before < 1 << 16


def test_a_size_beyond_the_end_of_the_archive_is_a_cut(tmp_path: Path) -> None:
    shard = tar_shard(tmp_path / "a.tar", giant("a.mp4", 10 * GIB) + bytes(4 * BLOCK))
    samples, end = read(shard)
    assert samples == []
    assert "10,737,418,240 bytes, the archive ends before that" in str(end.cut)


def test_a_video_of_gigabytes_on_s3_is_not_downloaded(
    bucket: str, s3_endpoint: str, tmp_path: Path
) -> None:
    content = sparse_tar(tmp_path / "a.tar", "a.mp4", 16 << 20)
    boto3.client("s3").upload_file(content.url, bucket, "a.tar")
    shard = Shard(name="big", url=f"s3://{bucket}/a.tar", kind=ShardKind.tar)
    with FaultProxy(s3_endpoint) as proxy:
        options = {"client_kwargs": {"endpoint_url": proxy.url}}
        samples, _ = read(shard, options=options, buffers=RangeBuffers(1 << 20, 1 << 18))
        assert [reason(s) for s in samples] == ["too_large", None]
        assert proxy.requests["GET"] <= 8, "of 65 ranges"


def gnu_sparse_bomb() -> bytes:
    """A sparse file that says a terabyte in one block."""
    info = tarfile.TarInfo("bomb.mp4")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, BLOCK
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % BLOCK
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(BLOCK)


def pax_sparse_bomb() -> bytes:
    """The same in POSIX headers."""
    info = tarfile.TarInfo("bomb.mp4")
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"}
    return info.tobuf(tarfile.PAX_FORMAT)


def pax_header_bomb() -> bytes:
    """Ten thousand records before a file of one byte."""
    info = tarfile.TarInfo("bomb.mp4")
    info.pax_headers = {f"record.{number}": "x" * 50 for number in range(10_000)}
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize("bomb", [gnu_sparse_bomb, pax_sparse_bomb, pax_header_bomb])
def test_a_header_that_unpacks_to_much_is_passed_over(tmp_path: Path, bomb) -> None:
    content = tar_bytes([("a.mp4", b"1")])[: 2 * BLOCK] + bomb() + tar_bytes([("z.mp4", b"2")])
    shard = tar_shard(tmp_path / "a.tar", content)
    samples, end, peak = read_counting_memory(shard)
    assert [s.video for s in samples if s.defect is None and s.key != "bomb"] == [b"1", b"2"]
    assert sum(len(s.video) for s in samples) <= 3
    assert end.cut is None
    assert peak < 16 << 20


def test_endings_of_a_megabyte_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for number in range(100):
            file.write(
                tarfile.TarInfo(f"a.{number:03d}" + "x" * 1_000_000).tobuf(tarfile.GNU_FORMAT)
            )
        file.write(tar_bytes([("b.mp4", b"healthy")]))
    shard = Shard(name="long", url=str(path), kind=ShardKind.tar)
    samples, end, peak = read_counting_memory(shard)
    assert [(s.key, reason(s)) for s in samples] == [("a", "name_too_long"), ("b", None)]
    assert "an extension of 1,000,003 characters" in str(samples[0].defect)
    assert end.cut is None
    assert peak < 32 * MIB


@pytest.mark.parametrize("count", [4_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_million_tiny_members_cost_a_digest_each(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for number in range(count):
            file.write(tarfile.TarInfo(f"{number}.txt").tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(2 * BLOCK))
    shard = Shard(name="many", url=str(path), kind=ShardKind.tar)
    tracemalloc.start()
    try:
        found = sum(1 for _ in read_shard(shard, rules=RULES, options={}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == count + 1
    assert peak < 200 * count + (2 << 20)


def test_a_name_of_a_megabyte_is_quarantined_under_a_short_one(tmp_path: Path) -> None:
    names = [f"{letter * 100_000}{end}.mp4" for letter in "ab" for end in "12"]
    shard = tar_shard(tmp_path / "a.tar", tar_bytes([(name, b"1") for name in names]))
    samples, end = read(shard)
    assert [reason(s) for s in samples] == ["name_too_long"] * 4
    assert len({s.key for s in samples}) == 4
    assert max(len(s.key) for s in samples) < 200
    assert end.cut is None


def test_a_sample_of_very_many_files_is_quarantined_and_not_held(tmp_path: Path) -> None:
    members: list[Member] = [(f"a.{number}", b"") for number in range(3000)]
    shard = tar_shard(tmp_path / "a.tar", tar_bytes([*members, ("a.mp4", b"1"), ("b.mp4", b"2")]))
    samples, _ = read(shard)
    assert [(s.key, reason(s)) for s in samples] == [("a", "too_many_members"), ("b", None)]


def test_global_headers_do_not_pile_up(tmp_path: Path) -> None:
    def record(number: int) -> bytes:
        """A global header, and a file that it holds for."""
        header = tarfile.TarInfo.create_pax_global_header({f"key{number}": "x" * 100})
        return header + tarfile.TarInfo("README").tobuf()

    few = b"".join(record(number % 10) for number in range(300))
    many = b"".join(record(number) for number in range(300))
    end = tar_bytes([("a.mp4", b"1")])
    assert [s.video for s in read(tar_shard(tmp_path / "few.tar", few + end))[0]] == [b"1"]
    samples, cut = read(tar_shard(tmp_path / "many.tar", many + end))
    assert (samples, "global header records" in str(cut.cut)) == ([], True)


def test_bad_samples_behind_a_slow_video_wait_and_do_not_block_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_VIDEOS_AHEAD", 8)
    monkeypatch.setattr("pipeline.committer.MAX_SEGMENT_VIDEOS", 16)
    bad = [(f"bad{number:03d}.txt", b"no video") for number in range(24)]
    content = runs.tar_bytes([("a.mp4", runs.video(1)), *bad, ("z.mp4", runs.video(2))])
    (tmp_path / "00000.tar").write_bytes(content)
    out = tmp_path / "out"
    more = ("encoder.batch_clips=4", "limits.max_bad_fraction=1")
    assert runs.run_inline(tmp_path / "00000.tar", out, *more) == 0
    assert len(runs.tokens(out)) == 4
    assert len(runs.quarantined(out)) == 24
    assert max(receipt["videos"] for receipt in runs.receipts(out)) <= 16


HOSTILE_NAMES = ["../../x.mp4", "/etc/x.mp4", "a/../../b.mp4", "b\\c.mp4", "~/d.mp4", "\n.mp4"]


def test_names_are_keys_and_never_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards, out = tmp_path / "in", tmp_path / "deep/deeper/out"
    shards.mkdir()
    (shards / "0.tar").write_bytes(tar_bytes([(name, b"not a video") for name in HOSTILE_NAMES]))
    assert runs.run_inline(shards / "0.tar", out, "limits.max_bad_fraction=1") == 0
    assert len(runs.quarantined(out)) == len(HOSTILE_NAMES)
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"in", "deep"}
    names = []
    for path in (out / "quarantine").iterdir():
        with tarfile.open(path) as archive:
            names += archive.getnames()
    assert len(names) == 2 * len(HOSTILE_NAMES)
    for name in names:
        assert not name.startswith("/"), name
        assert ".." not in re.split(r"[/\\]", name), name
    assert not [record for record in caplog.records if "\n" in record.getMessage()]
