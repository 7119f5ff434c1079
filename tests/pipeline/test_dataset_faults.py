"""What a loader does when parts are harmed, storage moves on, or ranks must agree."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from pipeline.dataset import TokenDataset
from pipeline.errors import CorruptPart, RunError, StorageError
from pipeline.loading import fetch as fetching
from pipeline.loading.snapshot import UNPUBLISHED
from pipeline.manifest import Line
from pipeline.parts import group_range, read_group
from pipeline.storage import Storage
from tests.pipeline.fakes import make_out, video, write_shard
from tests.pipeline.receipts import all_receipts


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """48 clips, two in each row group."""
    return make_out(tmp_path / "out", shards=4, videos=12, max_clips=4)


def clip_ids(dataset: TokenDataset) -> list[str]:
    return [clip_id for batch in dataset for clip_id in batch["clip_id"]]


def harm(storage: Storage, receipt: Any, group: int) -> None:
    """Flip a bit in the middle of a row group."""
    start, end = group_range(receipt, group)
    content = bytearray(storage.read(f"parts/{receipt.part}"))
    content[(start + end) // 2] ^= 4
    storage.put(f"parts/{receipt.part}", bytes(content))


def test_an_error_of_a_thread_is_raised_where_its_batch_is_due(storage: Storage) -> None:
    """Read ahead, and yet what comes before it is handed out."""
    harmed = all_receipts(storage)[4]  # the fourth covers what had no clip
    harm(storage, harmed, 1)
    batches = iter(TokenDataset(storage.root, batch_size=2))
    for _ in range(7):
        next(batches)
    with pytest.raises(CorruptPart, match=f"part {harmed.part}.*row group 1"):
        next(batches)


def test_corrupt_rows_are_replaced_by_the_same_ones_on_all_ranks(storage: Storage) -> None:
    whole = list(TokenDataset(storage.root, batch_size=4, shuffle=True))
    harmed = all_receipts(storage)[4]  # the fourth covers what had no clip
    harm(storage, harmed, 1)

    def read(rank: int, world_size: int) -> TokenDataset:
        return TokenDataset(
            storage.root, batch_size=4 // world_size, shuffle=True, on_corrupt="replace",
            rank=rank, world_size=world_size,
        )  # fmt: skip

    one = read(0, 1)
    batches = list(one)
    assert len(batches) == len(whole)
    assert one.num_replaced == 2
    for batch, before in zip(batches, whole, strict=True):
        for now, then, replaced in zip(
            batch["clip_id"], before["clip_id"], batch["replaced"].tolist(), strict=True
        ):
            assert (now != then) == replaced
    both = [read(rank, 2) for rank in range(2)]
    halves = zip(*both, strict=True)
    for batch, (first, second) in zip(batches, halves, strict=True):
        assert batch["clip_id"] == [
            name for pair in zip(first["clip_id"], second["clip_id"], strict=True) for name in pair
        ]


def test_storage_that_does_not_answer_is_never_replaced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(storage: Storage, line: Line, group: int, *how: Any) -> bytes:
        raise StorageError(line.shard, "timed out")

    monkeypatch.setattr(fetching, "read_group", silent)
    with pytest.raises(StorageError, match="timed out"):
        clip_ids(TokenDataset(storage.root, batch_size=4, on_corrupt="replace"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Row groups that were read."""
    found: list[tuple[str, int]] = []

    def counted(storage: Storage, line: Line, group: int, *how: Any) -> bytes | memoryview:
        found.append((str(line.part), group))
        return read_group(storage, line, group, *how)

    monkeypatch.setattr(fetching, "read_group", counted)
    return found


@pytest.mark.parametrize("num_streams", [1, 2, 5, None])
def test_every_row_group_is_read_once(
    storage: Storage, reads: list[tuple[str, int]], num_streams: int | None
) -> None:
    """Also those that a border of streams cuts."""
    clip_ids(TokenDataset(storage.root, batch_size=4, shuffle=True, num_streams=num_streams))
    assert len(reads) == len(set(reads)) == 24


def test_reading_ahead_is_bounded(storage: Storage, reads: list[tuple[str, int]]) -> None:
    assert not reads, "nothing is read at open"
    next(iter(TokenDataset(storage.root, batch_size=2, prefetch_bytes=0)))
    assert len(reads) == 1
    reads.clear()
    iterator = iter(TokenDataset(storage.root, batch_size=2, prefetch_bytes=1 << 20))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert 1 <= len(reads) <= 4, "the first batch does not wait for more"


def test_row_groups_are_kept_in_a_cache(
    storage: Storage, reads: list[tuple[str, int]], tmp_path: Path
) -> None:
    def read() -> list[str]:
        return clip_ids(TokenDataset(storage.root, batch_size=4, cache_dir=str(tmp_path / "cache")))

    first = read()
    assert len(reads) == 24
    assert read() == first
    assert len(reads) == 24


def test_footers_of_more_parts_than_memory_holds_are_kept_in_the_cache(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read_range = Storage.read_range

    def counted(self: Storage, name: str, start: int, end: int) -> bytes:
        asked.append(name)
        return read_range(self, name, start, end)

    monkeypatch.setattr(fetching, "MAX_FOOTERS", 2)
    monkeypatch.setattr(Storage, "read_range", counted)
    dataset = TokenDataset(storage.root, batch_size=4, cache_dir=tmp_path / "cache")
    asked.clear()
    first = clip_ids(dataset)
    assert len(set(asked)) == 12, "parts, of which memory holds two"
    asked.clear()
    assert clip_ids(dataset) == first
    assert not asked


def test_a_newer_manifest_is_taken_between_epochs_only(storage: Storage) -> None:
    dataset = TokenDataset(storage.root, batch_size=6)
    assert dataset.refresh() is False
    assert len(clip_ids(dataset)) == 48
    write_shard(storage, "shard9", [video(n) for n in range(12)])
    assert dataset.num_clips == 48
    iterator = iter(dataset)
    next(iterator)
    with pytest.raises(RunError, match="amid one"):
        dataset.refresh()
    for _ in iterator:
        pass
    before = dataset.manifest
    assert dataset.refresh() is True
    assert dataset.manifest != before
    assert len(clip_ids(dataset)) == 60


def test_a_state_names_the_manifest_to_open(storage: Storage) -> None:
    state = TokenDataset(storage.root, batch_size=6).state_dict()
    write_shard(storage, "shard9", [video(n) for n in range(12)])
    with pytest.raises(RunError, match=r"manifest=state\['manifest'\]"):
        TokenDataset(storage.root, batch_size=6).load_state_dict(state)
    TokenDataset(storage.root, batch_size=6, manifest=state["manifest"]).load_state_dict(state)


def test_an_out_that_cannot_be_written_is_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import StorageRefused

    def refused(*_: Any) -> bool:
        raise StorageRefused("read-only")

    monkeypatch.setattr(Storage, "put_if_absent", refused)
    for name in list(storage.entries("manifests")):
        storage.delete(f"manifests/{name}")
    dataset = TokenDataset(storage.root, batch_size=4)
    assert dataset.manifest.startswith(UNPUBLISHED)
    assert len(clip_ids(dataset)) == 48
    TokenDataset(storage.root, batch_size=4, manifest=dataset.manifest)


@pytest.mark.parametrize(
    "filters",
    [
        [("key", "in", {"video_1", "video_7"})],
        [["key", "in", ["video_1", "video_7"]]],
        ((("key", "==", "video_1"),), (("key", "==", "video_7"), ("fps", "==", 8.0))),
        [[["key", "==", "video_1"]], [["key", "==", "video_7"]]],
        pc.field("key").isin(["video_1", "video_7"]),
    ],
)
def test_filters_select_rows(storage: Storage, filters: Any) -> None:
    dataset = TokenDataset(storage.root, batch_size=1, filters=filters)
    assert clip_ids(dataset) == [f"shard{s}/video_{v}@8fps#0" for s in range(4) for v in (1, 7)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"filters": [("colour", "==", 1)]}, ValueError, "colour"),
        ({"filters": [["colour", "==", 1]]}, ValueError, "colour"),
        ({"filters": {"fps": 8.0}}, ValueError, "must be tuples such as"),
        ({"crop_latents": (1, 2)}, ValueError, "must be three numbers"),
        ({"crop_latents": 2}, ValueError, "must be three numbers"),
        ({"crop_latents": (1, 0, 2)}, ValueError, "must be three numbers"),
        ({"crop_latents": (1, 3, 3)}, ValueError, r"inside the token grid \[1, 2, 3\]"),
        ({"filters": [("key", "==", "nobody")]}, RunError, "select no clip"),
        ({"filters": [("fps", "==", "slow")]}, ValueError, "do not fit"),
        ({"columns": ["colour"]}, ValueError, "columns has colour"),
        ({"rank": 2, "world_size": 2}, ValueError, "got 2 of 2"),
        ({"rank": 0}, ValueError, "belong together"),
        ({"on_corrupt": "ignore"}, ValueError, "'ignore'"),
        ({"num_streams": 0}, ValueError, "num_streams must be at least 1"),
        ({"batch_size": 49}, RunError, "48 clips do not fill one step of 49"),
        ({"latents": "sample"}, ValueError, "discrete"),
        ({"normalize": True}, ValueError, "normalize is for latents"),
    ],
)
def test_what_cannot_be_had_is_refused_at_open(
    storage: Storage, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TokenDataset(storage.root, **{"batch_size": 4} | arguments)


def test_columns_and_dtypes_are_a_choice(storage: Storage) -> None:
    def first(**arguments: Any) -> dict[str, Any]:
        batch: dict[str, Any] = next(iter(TokenDataset(storage.root, batch_size=4, **arguments)))
        return batch

    assert first(columns=()).keys() == {"tokens", "epoch", "samples"}
    assert first(columns=("fps",)).keys() == {"tokens", "fps", "epoch", "samples"}
    assert str(first(tokens_dtype="int64")["tokens"].dtype) == "torch.int64"
    codes = first(tokens_dtype="codes")["tokens"]
    assert codes.shape == (4, 6, 1, 2, 3)
    assert codes.abs().max() <= 1
    assert first(crop_latents=(1, 1, 2))["tokens"].shape == (4, 1, 1, 2)
    assert first(transform=lambda batch: len(batch["key"])) == 4


FILTERS = [("key", "!=", "video_3")]


def spoil_footer(storage: Storage, receipt: Any) -> None:
    content = bytearray(storage.read(f"parts/{receipt.part}"))
    content[-20] ^= 4
    storage.put(f"parts/{receipt.part}", bytes(content))


@pytest.mark.parametrize(("is_footer", "rows"), [(False, 2), (True, 4)])
def test_what_cannot_be_looked_into_at_open_is_left_out_and_counted(
    storage: Storage, caplog: pytest.LogCaptureFixture, is_footer: bool, rows: int
) -> None:
    whole = TokenDataset(storage.root, batch_size=1, filters=FILTERS)
    before = clip_ids(whole)
    receipt = all_receipts(storage)[4]
    spoil_footer(storage, receipt) if is_footer else harm(storage, receipt, 1)
    with pytest.raises(CorruptPart, match=str(receipt.part)):
        TokenDataset(storage.root, batch_size=1, filters=FILTERS)

    def read(rank: int = 0, world_size: int = 1) -> TokenDataset:
        return TokenDataset(
            storage.root, batch_size=2 // world_size, filters=FILTERS, on_corrupt="replace",
            rank=rank, world_size=world_size, shuffle=True, drop_last=False,
        )  # fmt: skip

    one = read()
    assert one.num_left_out == rows
    assert f"part {receipt.part}" in caplog.text
    assert set(clip_ids(one)) < set(before)
    assert one.num_clips >= len(before) - rows
    assert one.num_replaced == 0, "what is left is sound"
    across = zip(*(clip_ids(read(rank, 2)) for rank in range(2)), strict=True)
    assert [clip_id for pair in across for clip_id in pair] == clip_ids(read())
    with pytest.raises(RunError, match="selection"):
        one.load_state_dict(whole.state_dict() | {"shuffle": True, "drop_last": False})


def test_nothing_that_can_be_looked_into_is_an_error(storage: Storage) -> None:
    for receipt in all_receipts(storage):
        if receipt.part:
            spoil_footer(storage, receipt)
    with pytest.raises(RunError, match=r"select no clip.*24 row groups are corrupt"):
        TokenDataset(storage.root, batch_size=1, filters=FILTERS, on_corrupt="replace")


def test_it_travels_as_a_pickle(storage: Storage) -> None:
    dataset = TokenDataset(storage.root, batch_size=4, shuffle=True)
    copy: Callable[[], TokenDataset] = pickle.loads(pickle.dumps(dataset))
    assert clip_ids(copy) == clip_ids(dataset)  # type: ignore[arg-type]


def test_the_same_batches_come_from_s3(storage: Storage, bucket: str) -> None:
    there = Storage(f"s3://{bucket}/out")
    for folder in ("parts", "receipts"):
        for name in storage.entries(folder):
            there.put(f"{folder}/{name}", storage.read(f"{folder}/{name}"))
    local, remote = (TokenDataset(one.root, batch_size=6, shuffle=True) for one in (storage, there))
    for here, far in zip(local, remote, strict=True):
        assert here["clip_id"] == far["clip_id"]
        assert here["tokens"].equal(far["tokens"])
    assert local.state_dict() == remote.state_dict()
