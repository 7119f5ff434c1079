"""Shards are listed on real folders and on S3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from jobs.drill.proxy import Fault, FaultProxy
from pipeline.errors import ConfigError, StorageRefused
from pipeline.inputs import list_folder, list_tars, sources_of
from pipeline.reader import source_of
from pipeline.shards import ShardKind
from tests.pipeline.tars import read, tar_bytes, three_samples

VIDEOS = frozenset({"mp4", "webm"})


def urls(*patterns: str) -> list[str]:
    return [shard.url for shard in list_tars(patterns, {})]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_local_glob_is_sorted_and_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "b.tar", "a.tar", "c.txt", "sub/d.tar")
    expected = [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert urls(f"{tmp_path}/*.tar") == urls(f"file://{tmp_path}/*.tar") == expected
    monkeypatch.chdir(tmp_path)
    assert urls("*.tar") == expected
    assert urls(f"{tmp_path}/**/*.tar")[-1] == f"{tmp_path}/sub/d.tar"


def test_names_of_shards_do_not_depend_on_how_they_were_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.tar")
    monkeypatch.chdir(tmp_path)
    patterns = ("a.tar", "./a.tar", f"{tmp_path}/*.tar", f"file://{tmp_path}/a.tar", "{a,a}.tar")
    assert len({shard.name for pattern in patterns for shard in list_tars([pattern], {})}) == 1


def test_a_list_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# mine\n{tmp_path}/x-{{0..1}}.tar\n")
    assert urls(f"@{tmp_path}/list.txt") == [f"{tmp_path}/x-0.tar", f"{tmp_path}/x-1.tar"]


def test_a_list_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the list .*/list\.txt"):
        urls(f"@{tmp_path}/list.txt")


def test_a_list_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read the list"):
        urls(f"@{tmp_path}/list.txt")


def test_a_glob_without_matches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing matches"):
        urls(f"{tmp_path}/*.tar")


def put(bucket: str, name: str, content: bytes = b"x") -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key=name, Body=content)


def test_globs_and_lists_on_s3(bucket: str) -> None:
    for name in ("d/b.tar", "d/a.tar", "d/sub/c.tar"):
        put(bucket, name)
    put(bucket, "list.txt", f"s3://{bucket}/d/*.tar".encode())
    expected = [f"s3://{bucket}/d/a.tar", f"s3://{bucket}/d/b.tar"]
    assert urls(f"s3://{bucket}/d/*.tar") == expected
    assert urls(f"@s3://{bucket}/list.txt") == expected


def test_a_glob_in_a_bucket_that_is_not_there_is_refused(s3_endpoint: str) -> None:
    with pytest.raises((StorageRefused, ConfigError), match=r"bucket|nothing matches"):
        urls("s3://no-such-bucket-here/*.tar")


def test_a_tar_on_s3_is_read_like_a_local_one(bucket: str, tmp_path: Path) -> None:
    content = tar_bytes(three_samples())
    put(bucket, "a.tar", content)
    (tmp_path / "a.tar").write_bytes(content)
    (remote,) = list_tars([f"s3://{bucket}/a.tar"], {})
    (local,) = list_tars([f"{tmp_path}/a.tar"], {})
    assert read(remote) == read(local)
    assert source_of(remote, {}).size_bytes == len(content)


def test_a_replaced_tar_on_s3_is_another_source(bucket: str) -> None:
    put(bucket, "a.tar", b"1")
    (shard,) = list_tars([f"s3://{bucket}/a.tar"], {})
    before = source_of(shard, {})
    put(bucket, "a.tar", b"2")
    assert source_of(shard, {}) != before


def test_videos_of_a_folder_are_found_in_depth(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b.MP4", "sub/deep/c.webm", "a.txt", "a.json", "noext")
    shards = list_folder(str(tmp_path), VIDEOS, num_buckets=2, options={})
    assert sorted(m for shard in shards for m in shard.members) == [
        "a.mp4", "sub/b.MP4", "sub/deep/c.webm",
    ]  # fmt: skip
    assert {shard.kind for shard in shards} == {ShardKind.folder}
    assert {shard.url for shard in shards} == {str(tmp_path)}
    assert sum(len(read(shard)[0]) for shard in shards) == 3


def test_videos_of_a_folder_on_s3_are_found(bucket: str) -> None:
    for name in ("d/a.mp4", "d/sub/b.mp4", "d/a.txt", "e/c.mp4"):
        put(bucket, name)
    (shard,) = list_folder(f"s3://{bucket}/d/", VIDEOS, num_buckets=1, options={})
    assert shard.members == ("a.mp4", "sub/b.mp4")
    assert [(s.key, s.caption) for s in read(shard)[0]] == [("a.mp4", "x"), ("sub/b.mp4", None)]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        list_folder(f"{tmp_path}/nowhere", VIDEOS, num_buckets=2, options={})


def test_a_folder_without_videos_is_refused_with_the_endings(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(ConfigError, match=r"no video there \(endings looked for: mp4, webm\)"):
        list_folder(str(tmp_path), VIDEOS, num_buckets=2, options={})


def test_sources_are_told_from_what_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.tar")
    here, gone = list_tars([f"{tmp_path}/{{a,b}}.tar"], {})
    found, missing = sources_of([here, gone], {})
    assert list(found) == [here.name]
    assert "is not there" in missing[gone.name]


def test_a_missing_shard_on_s3_is_missing_and_not_the_end(bucket: str) -> None:
    shards = list_tars([f"s3://{bucket}/x.tar"], {})
    found, missing = sources_of(shards, {})
    assert found == {}
    assert "is not there" in missing[shards[0].name]


def listed(proxy: FaultProxy, bucket: str, pattern: str) -> tuple[int, int]:
    """Shards found and missing, looked for through a proxy."""
    options = {"client_kwargs": {"endpoint_url": proxy.url}}
    proxy.reset()
    shards = list_tars([f"s3://{bucket}/{pattern}"], options)
    found, missing = sources_of(shards, options)
    assert all(source_of(one, {}) == found[one.name] for one in shards[:3] if one.name in found)
    return len(found), len(missing)


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint) as running:
        yield running


def test_shards_of_one_folder_on_s3_are_listed_not_asked_for_one_by_one(
    proxy: FaultProxy, bucket: str
) -> None:
    for number in range(20):
        put(bucket, f"d/{number:03d}.tar", b"x" * number)
    put(bucket, "d/other.tar")
    put(bucket, "d/00/deeper.tar")
    assert listed(proxy, bucket, "d/{000..029}.tar") == (20, 10)
    assert proxy.requests == {"LIST": 1}
    assert listed(proxy, bucket, "d/{000..004}.tar") == (5, 0)
    assert proxy.requests == {"HEAD": 5}, "a few are asked for: the folder may hold millions"


def test_the_buckets_of_a_folder_on_s3_are_one_listing(proxy: FaultProxy, bucket: str) -> None:
    for number in range(12):
        put(bucket, f"d/{number}/a.mp4")
    options = {"client_kwargs": {"endpoint_url": proxy.url}}
    shards = list_folder(f"s3://{bucket}/d", VIDEOS, num_buckets=4, options=options)
    proxy.reset()
    found, missing = sources_of(shards, options)
    assert (len(found), missing) == (len(shards), {})
    assert sum(source.size_bytes for source in found.values()) == 12
    assert proxy.requests == {"LIST": 1}
    assert sum(len(read(shard, options=options)[0]) for shard in shards) == 12
    assert proxy.requests == {"LIST": 1 + len(shards), "GET": 12}


@pytest.mark.slow
def test_a_listing_on_s3_is_one_request_per_thousand_objects(
    proxy: FaultProxy, bucket: str
) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: put(bucket, f"d/{number:04d}.tar"), range(1010)))
    assert listed(proxy, bucket, "d/{0000..1009}.tar") == (1010, 0)
    assert proxy.requests == {"LIST": 2}


def test_a_listing_that_storage_refuses_at_first_is_asked_for_again(
    proxy: FaultProxy, bucket: str, hurried: None
) -> None:
    for number in range(10):
        put(bucket, f"d/{number}.tar")
    options = {"client_kwargs": {"endpoint_url": proxy.url}}
    shards = list_tars([f"s3://{bucket}/d/{{0..9}}.tar"], options)
    proxy.force(Fault.slow_down, Fault.cut, Fault.drop)
    assert len(sources_of(shards, options)[0]) == 10
    assert sum(proxy.faults.values()) == 3


@pytest.mark.slow
def test_a_hundred_thousand_local_shards_are_looked_at_in_seconds(tmp_path: Path) -> None:
    names = [f"{number:05d}.tar" for number in range(100_000)]
    touch(tmp_path, *names)
    shards = list_tars([f"{tmp_path}/{{00000..99999}}.tar"], {})
    began = time.process_time()
    found, missing = sources_of(shards, {})
    assert time.process_time() - began < 15
    assert (len(found), missing) == (100_000, {})
