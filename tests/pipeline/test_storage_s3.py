"""Storage on S3: a real server (moto), a lossy line to it, servers that refuse, and none at all."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import StorageError, StorageRefused
from pipeline.storage import Storage
from tests.pipeline.refusals import impatient, refusing

pytestmark = pytest.mark.usefixtures("hurried")

SECRETS = ("a-secret-of-the-test", "other-secret")


@pytest.fixture
def s3(bucket: str) -> Storage:
    return Storage(f"s3://{bucket}/some/prefix")


def test_put_if_absent_creates_once_and_never_replaces(s3: Storage) -> None:
    assert s3.put_if_absent("receipts/a", b"first")
    assert not s3.put_if_absent("receipts/a", b"second")
    assert s3.read("receipts/a") == b"first"


def test_of_sixteen_threads_one_wins(s3: Storage) -> None:
    barrier = threading.Barrier(16)

    def race(number: int) -> bool:
        barrier.wait()
        return s3.put_if_absent("receipts/race", b"%d" % number)

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(race, range(16)))
    assert won.count(True) == 1
    assert s3.read("receipts/race") == b"%d" % won.index(True)


def test_the_safety_probe_passes_and_leaves_nothing(s3: Storage) -> None:
    s3.check_safe_commits()
    assert s3.entries("progress") == {}


def test_entries_read_and_delete(s3: Storage) -> None:
    s3.put("a/one", b"12345")
    s3.put("a/folder/two", b"1")
    entry = s3.entries("a")["one"]
    assert list(s3.entries("a")) == ["one"]
    assert entry.size_bytes == 5
    assert abs(entry.modified_seconds - time.time()) < 60
    assert s3.entry("a/one") == entry
    assert s3.entries("nowhere") == {}
    s3.delete("a/one")
    s3.delete("a/one")
    assert s3.entries("a") == {}


def test_a_listing_sees_what_another_client_wrote_a_moment_ago(s3: Storage) -> None:
    assert s3.entries("receipts") == {}
    Storage(s3.root, {"skip_instance_cache": True}).put("receipts/a", b"1")
    assert list(s3.entries("receipts")) == ["a"]


def test_a_replaced_object_has_another_version(s3: Storage) -> None:
    s3.put("a", b"1")
    before = s3.entry("a").version
    s3.put("a", b"2")
    assert s3.entry("a").version != before


def test_read_many_leaves_missing_ones_out(s3: Storage) -> None:
    s3.put("a[1]", b"1")
    s3.put("b", b"2")
    assert s3.read_many(["a[1]", "gone", "b"]) == {"a[1]": b"1", "b": b"2"}
    assert s3.read_many(["a[1]", "gone", "b"], max_bytes=9) == {"a[1]": b"1", "b": b"2"}


def test_no_more_is_read_than_asked_for(s3: Storage) -> None:
    s3.put("a", b"12345")
    assert [s3.read("a", max_bytes=size) for size in (3, 5, 9)] == [b"123", b"12345", b"12345"]
    with pytest.raises(FileNotFoundError):
        s3.read("gone", max_bytes=9)


def test_reading_what_is_not_there_is_file_not_found(s3: Storage) -> None:
    for verb in (s3.read, s3.entry):
        with pytest.raises(FileNotFoundError):
            verb("gone")


def test_an_object_is_read_from_any_place(s3: Storage) -> None:
    s3.put("a", bytes(range(100)))
    with s3.open("a") as file:
        file.seek(90)
        assert file.read() == bytes(range(90, 100))


@pytest.mark.slow
def test_a_part_of_several_multipart_chunks_arrives_whole(s3: Storage, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 110
    (tmp_path / "part").write_bytes(content)
    s3.publish(tmp_path / "part", "parts/p")
    assert s3.entry("parts/p").size_bytes == len(content)
    assert s3.read("parts/p") == content
    assert not (tmp_path / "part").exists()
    assert not s3.put_if_absent("parts/p", content[:-1]), "also a multipart create is conditional"
    assert s3.put_if_absent("parts/q", content)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert not any(secret in text for secret in SECRETS)
    return text


def test_a_missing_bucket_is_refused_in_one_line(s3_endpoint: str) -> None:
    with pytest.raises(StorageRefused) as caught:
        Storage("s3://no-such-bucket-here/out").check_safe_commits()
    assert "bucket does not exist" in one_line(caught.value)


def test_no_credentials_are_refused_in_one_line(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    storage = Storage("s3://b/out", {"skip_instance_cache": True})
    with pytest.raises(StorageRefused, match="no credentials") as caught:
        storage.check_safe_commits()
    one_line(caught.value)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_bad_credentials_are_refused_in_one_line(s3_endpoint: str, code: str) -> None:
    with refusing(403, code) as endpoint:
        storage = Storage("s3://b/out", impatient(endpoint, key="k", secret="other-secret"))
        with pytest.raises(StorageRefused, match="access denied") as caught:
            storage.check_safe_commits()
        one_line(caught.value)
        with pytest.raises(StorageRefused):
            storage.entries("receipts")


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_a_server_in_trouble_is_an_error_to_be_retried(
    s3_endpoint: str, status: int, code: str
) -> None:
    with refusing(status, code) as endpoint:
        storage = Storage("s3://b/out", impatient(endpoint))
        with pytest.raises(StorageError):
            storage.put_if_absent("receipts/a", b"1")
        with pytest.raises(StorageError):
            storage.read("receipts/a")


def test_a_dead_endpoint_is_a_storage_error_in_finite_time(s3_endpoint: str) -> None:
    storage = Storage("s3://b/out", impatient("http://127.0.0.1:9"))
    began = time.monotonic()
    for attempt in (
        lambda: storage.put_if_absent("a", b"1"),
        lambda: storage.entries("receipts"),
        lambda: storage.read_many(["a", "b"]),
    ):
        with pytest.raises(StorageError) as caught:
            attempt()
        one_line(caught.value)
    assert time.monotonic() - began < 20


def test_a_dead_endpoint_at_the_start_refuses_the_run(s3_endpoint: str) -> None:
    with pytest.raises(StorageRefused, match="cannot be written"):
        Storage("s3://b/out", impatient("http://127.0.0.1:9")).check_safe_commits()
