"""Row groups of a part that lie side by side and are wanted together are one request."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset import TokenDataset
from pipeline.loading import requests as module
from pipeline.loading.requests import Range, requests
from pipeline.parts import group_range
from pipeline.storage import Storage
from tests.pipeline.fakes import make_out, row, token_format
from tests.pipeline.receipts import all_receipts
from tests.pipeline.test_dataset import out_of
from tests.pipeline.test_dataset_faults import harm


def test_the_examples_hold() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], []),
        ([("a", 0, 4)], [[0]]),
        ([("a", 0, 4), ("a", 4, 8), ("a", 8, 12)], [[0, 1], [2]]),
        ([("a", 8, 12), ("a", 0, 4), ("a", 4, 8)], [[0], [1, 2]]),
        ([("a", 0, 3), ("a", 5, 8)], [[0, 1]]),
        ([("a", 0, 3), ("a", 6, 9)], [[0], [1]]),
        ([("b", 0, 4), ("a", 4, 8)], [[0], [1]]),
        ([("a", 0, 4), ("a", 0, 4), ("a", 4, 9)], [[0, 1, 2]]),
        ([("a", 0, 99), ("a", 99, 100)], [[0], [1]]),
    ],
    ids="none one bounded by_due gap far_gap parts twice large".split(),
)
def test_requests_are_bounded_by_bytes_and_gaps(
    wanted: list[tuple[str, int, int]], found: list[list[int]]
) -> None:
    assert requests([Range(*one) for one in wanted], request_bytes=9, gap_bytes=2) == found


@pytest.fixture
def gets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Range of every GET of a part's row groups."""
    import s3fs

    seen: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **options: Any) -> Any:
        if method == "get_object" and "/parts/" in str(options.get("Key")):
            seen.append(str(options.get("Range")))
        return await call(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return seen


def copied(here: Storage, url: str) -> Storage:
    """An OUT on S3."""
    there = Storage(url)
    for path in sorted(Path(here.root).rglob("*")):
        if path.is_file():
            there.put(str(path.relative_to(here.root)), path.read_bytes())
    return there


def clips(storage: Storage, **changes: Any) -> list[str]:
    dataset = TokenDataset(storage.root, batch_size=4, columns=["clip_id"], **changes)
    return [clip_id for batch in dataset for clip_id in batch["clip_id"]]


@pytest.fixture
def part(tmp_path: Path) -> Storage:
    """80 clips in 40 row groups of one part."""
    return Storage(out_of(tmp_path, [row(number) for number in range(80)], token_format()))


@pytest.mark.parametrize("shuffle", [False, True])
def test_small_row_groups_of_a_part_on_s3_take_few_requests(
    part: Storage, bucket: str, gets: list[str], shuffle: bool
) -> None:
    there = copied(part, f"s3://{bucket}/out")
    expected = clips(part, shuffle=shuffle)
    assert clips(there, shuffle=shuffle) == expected
    # the footer, the row groups of the first four steps, those of the other sixteen
    assert len(gets) <= 4, gets


def test_a_request_is_no_larger_than_it_may_be(
    part: Storage, bucket: str, gets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = copied(part, f"s3://{bucket}/out")
    (receipt,) = all_receipts(part)
    sizes = [end - start for start, end in (group_range(receipt, at) for at in range(40))]
    largest = 3 * max(sizes)
    monkeypatch.setattr(requests, "__kwdefaults__", {"request_bytes": largest, "gap_bytes": 0})
    assert clips(there) == clips(part)
    asked = [end - start + 1 for start, end in (map(int, one[6:].split("-")) for one in gets)]
    assert 40 / 3 <= len(gets) < 40 / 2
    assert max(asked) > largest / 2
    assert all(size <= largest for size in asked if size != receipt.part_bytes - sum(sizes))


def test_prefetching_little_still_reads_all(part: Storage, bucket: str) -> None:
    there = copied(part, f"s3://{bucket}/out")
    assert clips(there, prefetch_bytes=1, threads=1) == clips(part)


def test_a_cache_takes_what_one_request_brought(
    part: Storage, bucket: str, gets: list[str], tmp_path: Path
) -> None:
    there = copied(part, f"s3://{bucket}/out")
    cache = str(tmp_path / "cache")
    first = clips(there, cache_dir=cache)
    few = len(gets)
    assert few <= 4
    assert clips(there, cache_dir=cache) == first == clips(part)
    assert len(gets) == few + 1, "the footer, at open; reading finds it in the cache"


@pytest.mark.parametrize("with_cache", [False, True])
def test_of_row_groups_that_came_together_only_the_damaged_one_is_replaced(
    bucket: str, tmp_path: Path, with_cache: bool
) -> None:
    here = make_out(tmp_path / "small", shards=1, videos=12, max_clips=12)
    (receipt,) = [one for one in all_receipts(here) if one.part]
    harm(here, receipt, 1)
    there = copied(here, f"s3://{bucket}/out")
    wishes: dict[str, Any] = {"on_corrupt": "replace"}
    expected = clips(here, **wishes)
    if with_cache:
        wishes["cache_dir"] = str(tmp_path / "cache")
    assert clips(there, **wishes) == expected
    assert len(set(expected)) == 10
