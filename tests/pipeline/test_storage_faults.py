"""S3 over a line that fails: calls are made again, writes are whole, commits are safe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.drill.proxy import Fault, FaultProxy
from pipeline.errors import StorageError, StorageRefused
from pipeline.receipts import commit
from pipeline.storage import Storage
from tests.pipeline.receipts import receipt
from tests.pipeline.refusals import impatient

pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint, stall_seconds=20) as running:
        yield running


def test_a_commit_whose_answer_was_lost_is_still_mine(bucket: str, proxy: FaultProxy) -> None:
    mine = receipt()
    storage = Storage(f"s3://{bucket}/out", impatient(proxy.url))
    proxy.force(Fault.lost_answer)
    assert commit(storage, mine) == mine
    assert proxy.faults == {Fault.lost_answer: 1}
    assert commit(storage, replace(mine, attempt="another")) == mine


def test_storage_that_ignores_conditions_is_refused_at_the_start(
    bucket: str, s3_endpoint: str
) -> None:
    with FaultProxy(s3_endpoint, ignores_conditions=True) as careless:
        storage = Storage(f"s3://{bucket}/out", impatient(careless.url))
        with pytest.raises(StorageRefused, match="its conditional create does not hold"):
            storage.check_safe_commits()
        assert storage.entries("progress") == {}


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault.slow_down, Fault.internal_error, Fault.drop, Fault.cut),
        pytest.param(Fault.stall, marks=pytest.mark.slow),
    ],
)
def test_every_call_is_made_again_when_it_fails_once(
    bucket: str, proxy: FaultProxy, fault: Fault
) -> None:
    storage = Storage(f"s3://{bucket}/out", impatient(proxy.url, read_timeout=0.5))
    verbs: dict[str, Callable[[], object]] = {
        "put": lambda: storage.put("a", b"1"),
        "read": lambda: storage.read("a"),
        "entries": lambda: list(storage.entries("")),
        "entry": lambda: storage.entry("a").size_bytes,
        "read_many": lambda: storage.read_many(["a"]),
        "put_if_absent": lambda: storage.put_if_absent("b", b"2"),
        "delete": lambda: storage.delete("a"),
    }
    found = {}
    for name, call in verbs.items():
        proxy.force(fault)
        found[name] = call()
    proxy.reset()
    expected = {"read": b"1", "entries": ["a"], "entry": 1, "read_many": {"a": b"1"}}
    # a write that is not answered was carried out: its repetition finds it there
    expected["put_if_absent"] = fault is not Fault.stall
    assert found == dict.fromkeys(verbs) | expected
    assert list(storage.entries("")) == ["b"]


@pytest.mark.parametrize("size", [1 << 20, 11 << 20], ids=["in one", "in parts"])
def test_a_part_is_published_whole_or_not_at_all(
    bucket: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("pipeline.storage.UPLOAD_BYTES", 5 << 20)
    storage = Storage(f"s3://{bucket}/out", impatient(proxy.url))
    content, file = os.urandom(size), tmp_path / "part"
    file.write_bytes(content)
    proxy.set_rates({Fault.internal_error: 0.5, Fault.drop: 0.5})
    with pytest.raises(StorageError):
        storage.publish(file, "parts/p")
    assert file.exists()
    proxy.reset()
    assert storage.entries("parts") == {}
    proxy.force(Fault.drop, Fault.slow_down)
    proxy.set_rates({Fault.lost_answer: 0.3})
    storage.publish(file, "parts/p")
    proxy.reset()
    assert storage.read("parts/p") == content
    assert not file.exists()


def test_the_last_answer_of_an_upload_in_parts_may_be_lost(
    bucket: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.UPLOAD_BYTES", 5 << 20)
    storage = Storage(f"s3://{bucket}/out", impatient(proxy.url))
    file = tmp_path / "part"
    file.write_bytes(bytes(11 << 20))
    upload = storage._filesystem._call_s3

    async def lose_the_last(method: str, *args: object, **kwargs: object) -> object:
        if method == "complete_multipart_upload":
            proxy.force(Fault.lost_answer)
        return await upload(method, *args, **kwargs)

    monkeypatch.setattr(storage._filesystem, "_call_s3", lose_the_last)
    storage.publish(file, "parts/p")
    assert proxy.faults == {Fault.lost_answer: 1}
    assert storage.entry("parts/p").size_bytes == 11 << 20


def test_timeouts_of_every_client_are_finite(bucket: str) -> None:
    storage = Storage(f"s3://{bucket}/out")
    storage.entries("receipts")
    config = storage._filesystem.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 60)
    assert config.retries["total_max_attempts"] == 4
    mine = Storage(f"s3://{bucket}/out", {"config_kwargs": {"read_timeout": 5}})
    mine.entries("receipts")
    config = mine._filesystem.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 5), "the rest stays"
