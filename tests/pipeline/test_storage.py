"""Storage on a local disk; what holds for every backend, and what refuses."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import storage as storage_module
from pipeline.backends import storage_errors
from pipeline.errors import StorageError, StorageRefused
from pipeline.storage import Storage


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def test_put_if_absent_creates_once_and_never_replaces(local: Storage) -> None:
    assert local.put_if_absent("receipts/a", b"first")
    assert not local.put_if_absent("receipts/a", b"second")
    assert local.read("receipts/a") == b"first"


def test_put_replaces(local: Storage) -> None:
    local.put("a/b", b"old, and longer")
    local.put("a/b", b"new")
    assert local.read("a/b") == b"new"


def test_of_sixteen_threads_one_wins(local: Storage) -> None:
    barrier = threading.Barrier(16)

    def race(number: int) -> bool:
        barrier.wait()
        return local.put_if_absent("receipts/race", b"%d" % number * 1000)

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(race, range(16)))
    assert won.count(True) == 1
    assert local.read("receipts/race") == b"%d" % won.index(True) * 1000


def _race(root: str, number: int, go: str) -> None:
    while not Path(go).exists():
        time.sleep(0.001)
    won = [n for n in range(50) if Storage(root).put_if_absent(f"r/{n}", b"%d" % number)]
    Storage(root).put(f"won/{number}", json.dumps(won).encode())


def test_of_three_processes_one_wins_each_name(local: Storage, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    go = tmp_path / "go"
    racers = [
        context.Process(target=_race, args=(local.root, number, str(go))) for number in range(3)
    ]
    for racer in racers:
        racer.start()
    time.sleep(0.5)
    go.touch()
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
    won = [n for r in range(3) for n in json.loads(local.read(f"won/{r}"))]
    assert sorted(won) == list(range(50))


def test_a_failure_between_write_and_link_leaves_nothing(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EIO, "by the test")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(StorageError):
        local.put_if_absent("receipts/a", b"x")
    assert list(Path(local.path("receipts")).iterdir()) == []


def test_unfinished_files_are_not_listed(local: Storage) -> None:
    local.put("receipts/a", b"x")
    Path(local.path("receipts/.tmp-dead")).write_bytes(b"half")
    assert list(local.entries("receipts")) == ["a"]


def test_entries_give_sizes_versions_and_ages(local: Storage) -> None:
    local.put("a/one", b"12345")
    os.utime(local.path("a/one"), (1000, 1000))
    before = local.entries("a")["one"]
    assert (before.size_bytes, before.modified_seconds) == (5, 1000.0)
    assert local.entry("a/one") == before
    local.put("a/one", b"54321")
    assert local.entry("a/one").version != before.version


def test_entries_leave_folders_out_and_a_missing_folder_is_empty(local: Storage) -> None:
    local.put("a/b/c", b"x")
    assert local.entries("a") == {}
    assert local.entries("nowhere") == {}


def test_read_many_leaves_missing_ones_out(local: Storage) -> None:
    local.put("a", b"1")
    local.put("b", b"2")
    assert local.read_many(["a", "gone", "b"]) == {"a": b"1", "b": b"2"}
    assert local.read_many(["a"]) == {"a": b"1"}
    assert local.read_many([]) == {}


@pytest.mark.parametrize("name", ["web[vid]", "what?", "a*b", "a b", "ü", "bucket", "a#b"])
def test_any_folder_name_is_taken_literally(tmp_path: Path, name: str) -> None:
    local = Storage(str(tmp_path / name))
    local.check_safe_commits()
    assert local.put_if_absent("r/a", b"1")
    assert local.read_many(["r/a", "r/b"]) == {"r/a": b"1"}
    assert list(local.entries("r")) == ["a"]
    with pytest.raises(FileNotFoundError):
        local.read("r/b")


def test_reading_what_is_not_there_is_file_not_found(local: Storage) -> None:
    for verb in (local.read, local.open, local.entry):
        with pytest.raises(FileNotFoundError):
            verb("gone")


def test_delete_removes_and_is_no_failure_when_there_is_nothing(local: Storage) -> None:
    local.put("a", b"1")
    local.delete("a")
    local.delete("a")
    assert local.read_many(["a"]) == {}


def test_publish_moves_the_file(local: Storage, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"content")
    local.publish(tmp_path / "part", "parts/p")
    assert local.read("parts/p") == b"content"
    assert not (tmp_path / "part").exists()


def test_publish_from_another_disk_copies_whole(local: Storage) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == Path("/tmp").stat().st_dev:
        pytest.skip("needs a second file system")
    file = other / f"part-{os.getpid()}"
    file.write_bytes(b"content")
    local.publish(file, "parts/p")
    assert local.read("parts/p") == b"content"
    assert not file.exists()


def test_scratch_is_on_the_same_disk_and_is_no_part(local: Storage, tmp_path: Path) -> None:
    scratch = local.scratch(tmp_path / "unused")
    (scratch / "unfinished.parquet").write_bytes(b"x")
    assert scratch.is_relative_to(local.path("parts"))
    assert local.entries("parts") == {}


def test_a_local_folder_is_safe_and_the_probe_leaves_nothing(local: Storage) -> None:
    local.check_safe_commits()
    assert local.entries("progress") == {}


@pytest.mark.parametrize("root", ["memory://out", "https://example.org/out"])
def test_a_backend_without_conditional_writes_is_refused(root: str) -> None:
    with pytest.raises(StorageRefused, match="no safe commit on this storage"):
        Storage(root).check_safe_commits()


def test_a_conditional_create_that_does_not_hold_is_refused(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", os.replace)  # a disk where the second link succeeds
    with pytest.raises(StorageRefused, match="its conditional create does not hold"):
        local.check_safe_commits()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageRefused, match="cannot open nosuch://x"):
        Storage("nosuch://x")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(StorageRefused, match="cannot be written"):
        Storage(str(tmp_path / "out")).check_safe_commits()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 KiB, where this process may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_leaves_no_torn_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        local = Storage(str(tmp_path / "disk"))
        for put in (local.put_if_absent, local.put):
            with pytest.raises(StorageRefused, match="disk full"):
                put("receipts/a", bytes(1 << 20))
        assert list(Path(local.path("receipts")).iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_every_way_to_say_disk_full_stops_the_run(
    local: Storage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage_module, "_write_synced", full)
    with pytest.raises(StorageRefused, match="disk full"):
        local.put_if_absent("a", b"1")


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (OSError(errno.EIO, "I/O error"), StorageError),
        (TimeoutError("slow"), StorageError),
        (ConnectionResetError("gone"), StorageError),
        (PermissionError(errno.EACCES, "no"), StorageRefused),
        (FileNotFoundError("The specified bucket does not exist"), StorageRefused),
        (FileNotFoundError("my-bucket/receipts/a"), FileNotFoundError),
    ],
)
def test_an_error_of_a_backend_has_this_fate(error: Exception, fate: type[Exception]) -> None:
    with pytest.raises(fate), storage_errors("place"):
        raise error
