"""Storage on S3: a real server (moto), a lossy line to it, servers that refuse, and none at all."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.errors import StorageError, StorageRefused
from pipeline.receipts import commit
from pipeline.storage import Storage
from tests.pipeline.receipts import receipt

SECRETS = ("a-secret-of-the-test", "other-secret")


def impatient(endpoint: str, **more: Any) -> dict[str, Any]:
    """Options of a client that gives up soon."""
    retries = {"max_attempts": 1, "mode": "standard"}
    config = {"connect_timeout": 1, "read_timeout": 2, "retries": retries}
    return {"client_kwargs": {"endpoint_url": endpoint}, "config_kwargs": config, **more}


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
    content = os.urandom(1 << 20) * 60
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


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request alike."""

    protocol_version = "HTTP/1.1"
    status, code = 403, "InvalidAccessKeyId"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"<Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_bad_credentials_are_refused_in_one_line(s3_endpoint: str, code: str) -> None:
    with serving(type("H", (_Answers,), {"code": code})) as endpoint:
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
    with serving(type("H", (_Answers,), {"status": status, "code": code})) as endpoint:
        storage = Storage("s3://b/out", impatient(endpoint))
        storage._filesystem.retries = 1  # s3fs tries again by itself, beside botocore
        with pytest.raises(StorageError):
            storage.put_if_absent("receipts/a", b"1")
        with pytest.raises(StorageError):
            storage.read("receipts/a")


def test_a_dead_endpoint_is_a_storage_error_in_finite_time(s3_endpoint: str) -> None:
    storage = Storage("s3://b/out", impatient("http://127.0.0.1:9"))
    storage._filesystem.retries = 2  # of s3fs, beside botocore's
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


class _LosesAnswers(http.server.BaseHTTPRequestHandler):
    """Hands requests on, and hangs up instead of answering the first PUT that was carried out."""

    protocol_version = "HTTP/1.1"
    behind, lost = "", threading.Event()

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        behind = http.client.HTTPConnection(urlsplit(self.behind).netloc, timeout=10)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        if self.command == "PUT" and answer.status == 200 and not self.lost.is_set():
            self.lost.set()
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _hand_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_a_commit_whose_answer_was_lost_is_still_mine(bucket: str, s3_endpoint: str) -> None:
    lost = threading.Event()
    handler = type("H", (_LosesAnswers,), {"behind": s3_endpoint, "lost": lost})
    mine = receipt()
    with serving(handler) as endpoint:
        options = impatient(endpoint)
        options["config_kwargs"]["retries"]["max_attempts"] = 3
        holds = commit(Storage(f"s3://{bucket}/out", options), mine)
    assert lost.is_set()
    assert holds == mine
