"""Row groups that follow one another come with one request, and are the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.drill.proxy import FaultProxy
from pipeline.dataset import TokenDataset
from pipeline.errors import CorruptPart, StorageError
from pipeline.loading.fetch import Fetch
from pipeline.loading.neighbours import Neighbours
from pipeline.receipts import commit
from pipeline.storage import Storage
from pipeline.writer import write_part
from tests.pipeline.fakes import make_out, row, token_format
from tests.pipeline.receipts import receipt

DATA = bytes(range(256)) * 8


def groups(*ends: int, part: str = "p") -> list[Any]:
    """Row groups of a part that end there."""
    line = SimpleNamespace(
        part=part, row_groups=[SimpleNamespace(rows=1, end_offset=end, sha256="") for end in ends]
    )
    return [SimpleNamespace(line=line, index=index) for index in range(len(ends))]


class Asked:
    def __init__(self) -> None:
        self.ranges: list[tuple[str, int, int]] = []

    def __call__(self, line: Any, start: int, end: int) -> bytes:
        self.ranges.append((line.part, start, end))
        return DATA[start:end]


def contents(neighbours: Neighbours, number: int) -> list[bytes]:
    return [bytes(neighbours.content(index)) for index in range(number)]


@pytest.mark.parametrize(
    ("limit", "ranges"),
    [
        (1000, [("p", 0, 90)]),
        (40, [("p", 0, 40), ("p", 40, 60), ("p", 60, 90)]),
        (50, [("p", 0, 40), ("p", 40, 90)]),
        (1, [("p", 0, 10), ("p", 10, 40), ("p", 40, 60), ("p", 60, 90)]),
    ],
)
def test_requests_are_as_large_as_they_may_be(
    limit: int, ranges: list[tuple[str, int, int]]
) -> None:
    asked = Asked()
    found = contents(Neighbours(groups(10, 40, 60, 90), asked, limit), 4)
    assert found == [DATA[0:10], DATA[10:40], DATA[40:60], DATA[60:90]]
    assert asked.ranges == ranges


def test_parts_are_asked_for_one_by_one_and_small_gaps_are_read() -> None:
    asked = Asked()
    first, second = groups(10, 40, 60), groups(30, part="q")
    found = contents(Neighbours([first[0], first[2], *second], asked, 1000), 3)
    assert found == [DATA[0:10], DATA[40:60], DATA[0:30]]
    assert asked.ranges == [("p", 0, 60), ("q", 0, 30)]


def test_what_is_passed_over_is_forgotten() -> None:
    asked = Asked()
    listed = [one for number in range(20) for one in groups(10, 20, part=str(number))]
    neighbours = Neighbours(listed, asked, 1000)
    for index in range(0, 40, 2):
        neighbours.content(index)
    assert len(neighbours._runs) <= 4


def test_threads_that_want_neighbours_share_a_request() -> None:
    asked, asking, go_on = Asked(), threading.Event(), threading.Event()

    def read(line: Any, start: int, end: int) -> bytes:
        asking.set()
        assert go_on.wait(20)
        return asked(line, start, end)

    neighbours = Neighbours(groups(10, 40, 60), read, 1000)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(neighbours.content, 0)
        assert asking.wait(20)
        others = [pool.submit(neighbours.content, index) for index in (1, 2)]
        go_on.set()
        found = [bytes(one.result(20)) for one in (first, *others)]
    assert found == [DATA[0:10], DATA[10:40], DATA[40:60]]
    assert len(asked.ranges) == 1


def test_after_an_error_the_next_one_asks_anew() -> None:
    answers: Iterator[bytes | Exception] = iter([StorageError("s3://x", "503"), DATA[10:40]])

    def read(line: Any, start: int, end: int) -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    neighbours = Neighbours(groups(10, 40), read, 1000)
    with pytest.raises(StorageError, match="503"):
        neighbours.content(0)
    assert bytes(neighbours.content(1)) == DATA[10:40]


def out_of_small_groups(storage: Storage, folder: Path) -> None:
    """One part of eight row groups."""
    rows = [row(number) for number in range(16)]
    digest = write_part(folder / "part", rows, token_format(), row_group_rows=2)
    storage.publish(folder / "part", "parts/p")
    facts = receipt(part="p", rows=digest.rows, **digest.receipt_fields(), final=True)
    commit(storage, facts)


def test_on_s3_a_part_in_order_is_one_request_and_equal_to_the_local_one(
    bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = make_out(tmp_path / "out", shards=0)
    distant = make_out(f"s3://{bucket}/out", shards=0)
    for storage in (local, distant):
        out_of_small_groups(storage, tmp_path)

    def read(root: str, options: dict[str, Any] | None = None) -> list[Any]:
        dataset = TokenDataset(root, batch_size=4, storage_options=options)
        return [(batch["clip_id"], batch["tokens"].tolist()) for batch in dataset]

    with FaultProxy(s3_endpoint) as proxy:
        options = {"endpoint_url": proxy.url}

        def num_requests() -> int:
            before = proxy.requests.get("GET", 0)
            assert read(distant.root, options) == read(local.root)
            return proxy.requests.get("GET", 0) - before

        together = num_requests()
        monkeypatch.setattr(Fetch, "asks_often", False)
        one_by_one = num_requests()
    assert one_by_one - together == 7


def test_a_flipped_byte_among_neighbours_is_told_with_its_row_group(
    bucket: str, tmp_path: Path
) -> None:
    distant = make_out(f"s3://{bucket}/out", shards=0)
    out_of_small_groups(distant, tmp_path)
    content = bytearray(distant.read("parts/p"))
    content[len(content) // 3] ^= 1
    distant.delete("parts/p")
    (tmp_path / "bad").write_bytes(content)
    distant.publish(tmp_path / "bad", "parts/p")
    with pytest.raises(CorruptPart, match=r"part p .*row group \d"):
        list(TokenDataset(distant.root, batch_size=4))
