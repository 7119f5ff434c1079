"""Checkpoints by URL: fetched once, whole or not at all, checked; without a network, a way out."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import torch

from tokenizer import CheckpointUnavailable, MissingCheckpoint, WrongDigest, get_config
from tokenizer import checkpoint_digest as digest_of
from tokenizer import fetch as fetching
from tokenizer.config import WEIGHTS
from tokenizer.fetch import cache_path, fetch

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; a path in ``cut`` breaks off, and all are refused, so many times."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/a.ckpt": CONTENT}
        self.cut: dict[str, int] = {}
        self.busy = 0
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.server.busy > 0:
            self.server.busy -= 1
            self.send_error(503)
            return
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.end_headers()
            return
        content = self.server.files.get(self.path.split("?")[0])
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.cut.get(self.path, 0) > 0:
            self.server.cut[self.path] -= 1
            content = content[:1000]
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "RETRY_SECONDS", (0.0, 0.0))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def leftovers(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir() if other.suffix != ".lock")


def test_url_is_fetched_once_into_the_cache(server: Server) -> None:
    path = fetch(f"{server.url}/a.ckpt")
    assert path.read_bytes() == CONTENT
    assert fetch(f"{server.url}/a.ckpt") == path
    assert len(server.seen) == 1
    assert leftovers(path) == ["a.ckpt"]


def test_whoever_comes_at_the_same_time_waits_for_the_first(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch, [f"{server.url}/a.ckpt"] * 8))
    assert len(paths) == len(server.seen) == 1


def test_digest_is_checked_and_a_wrong_file_is_not_kept(server: Server) -> None:
    assert fetch(f"{server.url}/a.ckpt@sha256:{SHA256}").read_bytes() == CONTENT
    server.files["/b.ckpt"] = b"other"
    with pytest.raises(WrongDigest, match=rf"b\.ckpt has sha256 .*expected {SHA256}"):
        fetch(f"{server.url}/b.ckpt@sha256:{SHA256}")
    assert not cache_path(f"{server.url}/b.ckpt").exists()


def test_changed_cache_is_fetched_again(server: Server) -> None:
    path = fetch(f"{server.url}/a.ckpt")
    path.write_bytes(b"cut")
    fetch(f"{server.url}/a.ckpt@sha256:{SHA256}")
    assert path.read_bytes() == CONTENT


def test_digest_of_a_path_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(CONTENT)
    assert fetch(f"{tmp_path}/a.ckpt@sha256:{SHA256.upper()}") == tmp_path / "a.ckpt"
    assert fetch(f"file://{tmp_path}/a.ckpt") == tmp_path / "a.ckpt"
    with pytest.raises(WrongDigest):
        fetch(f"{tmp_path}/a.ckpt@sha256:{'0' * 64}")


def test_transfer_that_breaks_off_is_tried_again(server: Server) -> None:
    server.cut["/a.ckpt"] = 2
    assert fetch(f"{server.url}/a.ckpt").read_bytes() == CONTENT
    assert len(server.seen) == 3


def test_busy_server_is_asked_again(server: Server) -> None:
    server.busy = 2
    assert fetch(f"{server.url}/a.ckpt").read_bytes() == CONTENT
    assert len(server.seen) == 3


def test_partial_file_is_never_used(server: Server) -> None:
    server.cut["/a.ckpt"] = 99
    with pytest.raises(CheckpointUnavailable, match=r"1000 (of 1048576 )?bytes"):
        fetch(f"{server.url}/a.ckpt")
    assert leftovers(cache_path(f"{server.url}/a.ckpt")) == []


def test_missing_file_is_not_asked_for_again(server: Server) -> None:
    with pytest.raises(CheckpointUnavailable, match="HTTP 404"):
        fetch(f"{server.url}/none.ckpt")
    assert len(server.seen) == 1


def test_auto_takes_the_published_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a real one: it is fetched, and then found to be no checkpoint."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/moved")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    config = get_config("kl_2x8x8_8chn_v1_1")
    name = "vidtok_v1_1/vidtok_kl_causal_288_8chn_v1_1.ckpt"
    path = f"/microsoft/VidTok/resolve/main/checkpoints/{name}"
    server.files[path] = CONTENT
    with pytest.raises(ValueError, match="neither a torch checkpoint nor"):
        digest_of(config, "auto")
    assert server.seen == [(f"/moved{path}", "Bearer hf_secret"), (path, None)]


def test_auto_without_a_network_says_what_to_get_and_where_to_put_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    config = get_config("fsq_4x8x8", checkpoint_file="x.ckpt")
    with pytest.raises(CheckpointUnavailable, match="no connection") as caught:
        digest_of(config, "auto")
    message = str(pickle.loads(pickle.dumps(caught.value)))
    place = cache_path("hf://microsoft/VidTok/checkpoints/x.ckpt")
    assert f"get {endpoint}/microsoft/VidTok/resolve/main/checkpoints/x.ckpt and put" in message
    assert f"put it at {place} of this machine" in message
    torch.save({}, place)
    with pytest.raises(ValueError, match="holds no state dict"):
        digest_of(config, "auto")


def test_auto_needs_a_published_file() -> None:
    with pytest.raises(MissingCheckpoint, match="'demo' needs a checkpoint: give the path"):
        digest_of(get_config("demo", checkpoint_file=None), "auto")


def test_auto_of_the_demo_is_the_file_that_comes_with_the_project() -> None:
    config, file = get_config("demo"), WEIGHTS / "demo.safetensors"
    assert digest_of(config) == digest_of(config, "auto") == digest_of(config, file)
    assert file.stat().st_size < 12 << 20


def test_object_stores_are_read_through_fsspec(server: Server) -> None:
    with fsspec.open("memory://bucket/a.ckpt", "wb") as file:
        file.write(CONTENT)
    assert fetch(f"memory://bucket/a.ckpt@sha256:{SHA256}").read_bytes() == CONTENT
    with pytest.raises(CheckpointUnavailable, match="nonsense"):
        fetch("nonsense://bucket/a.ckpt")


def test_secrets_of_a_url_are_neither_shown_nor_stored(server: Server) -> None:
    url = server.url.replace("//", "//user:pass@") + "/none.ckpt?signature=abc"
    with pytest.raises(CheckpointUnavailable) as caught:
        fetch(url)
    for text in (str(caught.value), str(cache_path(url))):
        assert "pass" not in text
        assert "abc" not in text
    assert cache_path(url) != cache_path(url.replace("abc", "def"))
