"""The local cache: right bytes whatever happens to it, never more of them than allowed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.loading import cache as cache_module
from pipeline.loading.cache import RangeCache


def content(number: int, size_bytes: int = 1000) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (size_bytes // 32) + b"x" * (
        size_bytes % 32
    )


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def got(cache: RangeCache, number: int, size_bytes: int = 1000) -> bytes:
    data = content(number, size_bytes)
    return cache.get(digest(data), lambda: data)


def must_not_fetch() -> bytes:
    raise AssertionError("fetched")


def held_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def test_what_was_fetched_once_is_not_fetched_again(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "new" / "folder", 10_000)
    data = got(cache, 1)
    assert cache.get(digest(data), must_not_fetch) == data
    again = RangeCache(tmp_path / "new" / "folder", 10_000)
    assert again.get(digest(data), must_not_fetch) == data
    assert (cache.num_hits, cache.num_misses, again.num_hits) == (1, 1, 1)


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 5_000)
    for number in range(5):
        got(cache, number)
        os.utime(cache._path(digest(content(number))), (number, number))
    cache.get(digest(content(0)), must_not_fetch)
    got(cache, 5)
    for number in (0, 3, 4, 5):
        cache.get(digest(content(number)), must_not_fetch)
    misses = cache.num_misses
    got(cache, 1)
    assert cache.num_misses == misses + 1
    assert held_bytes(tmp_path) == cache.size_bytes <= 5_000


def test_the_limit_holds_at_every_moment(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 5_000)
    for number in range(60):
        got(cache, number, 300 + 37 * number % 900)
        assert held_bytes(tmp_path) == cache.size_bytes <= 5_000
    assert held_bytes(tmp_path) > 3_000


def test_a_range_larger_than_the_cache_is_passed_through(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 5_000)
    got(cache, 1)
    assert len(got(cache, 2, 6_000)) == 6_000
    assert cache.size_bytes == 1_000


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_entry_is_fetched_again(tmp_path: Path, damage: str) -> None:
    cache = RangeCache(tmp_path, 10_000)
    data = got(cache, 1)
    path = cache._path(digest(data))
    damaged = bytearray(data)
    damaged[500] ^= 1
    path.write_bytes({"flip": damaged, "truncate": data[:400], "empty": b""}[damage])
    assert got(cache, 1) == data
    assert (cache.num_damaged, cache.num_misses) == (1, 2)
    assert cache.get(digest(data), must_not_fetch) == data


def test_what_was_fetched_wrong_is_neither_given_nor_kept(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10_000)
    with pytest.raises(ValueError, match="1,000 bytes with SHA-256"):
        cache.get(digest(content(1)), lambda: content(2))
    assert held_bytes(tmp_path) == cache.size_bytes == 0


def test_an_error_of_the_fetch_goes_through(tmp_path: Path) -> None:
    def fails() -> bytes:
        raise RunError("part p of s is missing")

    with pytest.raises(RunError, match="is missing"):
        RangeCache(tmp_path, 10).get("0" * 64, fails)


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "ab", ""])
def test_only_digests_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        RangeCache(tmp_path, 10).get(name, must_not_fetch)


def test_a_folder_that_cannot_be_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cache_dir=.*file cannot be written.*name another"):
        RangeCache(tmp_path / "file", 10)
    with pytest.raises(ValueError, match="at least 1 byte, got 0"):
        RangeCache(tmp_path, 0)


def test_a_full_disk_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = RangeCache(tmp_path, 10_000)

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert [got(cache, number) for number in (1, 2)] == [content(1), content(2)]
    assert cache.num_unwritten == 2
    assert len(caplog.messages) == 1
    assert "No space left" in caplog.text


def test_a_wrong_count_is_put_right_when_room_is_made(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 5_000)
    got(cache, 1)
    (tmp_path / "size").write_bytes(b"nonsense")
    got(cache, 2)
    assert cache.size_bytes == held_bytes(tmp_path) == 2_000


def test_a_smaller_limit_and_a_lost_count_are_met_when_the_cache_is_opened(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10_000)
    for number in range(8):
        got(cache, number)
    assert RangeCache(tmp_path, 3_000).size_bytes == held_bytes(tmp_path) == 2_000
    (tmp_path / "size").unlink()
    assert RangeCache(tmp_path, 3_000).size_bytes == 2_000


def test_files_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 2_000)
    got(cache, 1)
    folder = cache._path(digest(content(1))).parent
    old, new = folder / f"{cache_module._TEMPORARY}old", folder / f"{cache_module._TEMPORARY}new"
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (time.time() - 2 * cache_module.STALE_SECONDS,) * 2)
    got(cache, 2)
    got(cache, 3)
    assert not old.exists()
    assert new.exists()


def use(folder: str, first: int, rounds: int) -> None:
    cache = RangeCache(folder, 20_000)
    for number in range(first, first + rounds):
        assert got(cache, number % 40) == content(number % 40)


def test_processes_share_one_folder_and_one_limit(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    users = [
        spawn.Process(target=use, args=(str(tmp_path), first, 150)) for first in (0, 0, 13, 29)
    ]
    for user in users:
        user.start()
    highest = 0
    while any(user.is_alive() for user in users):
        highest = max(highest, RangeCache(tmp_path, 20_000).size_bytes)
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0] * 4
    assert highest <= 20_000
    finished = [path for path in tmp_path.glob("??/*") if not path.name.startswith(".tmp-")]
    assert sum(path.stat().st_size for path in finished) == RangeCache(tmp_path, 20_000).size_bytes


def test_a_killed_process_leaves_a_cache_that_works(tmp_path: Path) -> None:
    user = multiprocessing.get_context("spawn").Process(
        target=use, args=(str(tmp_path), 0, 1_000_000)
    )
    user.start()
    while not list(tmp_path.glob("??/*")):
        time.sleep(0.01)
    time.sleep(0.1)
    assert user.pid is not None
    os.kill(user.pid, signal.SIGKILL)
    user.join()
    use(str(tmp_path), 0, 80)
    assert RangeCache(tmp_path, 20_000).size_bytes <= 20_000
    assert held_bytes(tmp_path) <= 20_000 + 1_000  # one unfinished file
