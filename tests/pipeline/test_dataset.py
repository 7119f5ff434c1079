"""Training reads tokens back: committed segments only, in order or shuffled."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.dataset import TokenDataset
from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.receipts import commit
from pipeline.schema import TokenFormat, TokenRow
from pipeline.storage import Storage
from pipeline.writer import write_part
from tests.pipeline.fakes import (
    SHAPE,
    indices_of,
    latent_row,
    make_out,
    place_of_tokens,
    row,
    token_format,
    video,
    write_shard,
)
from tests.pipeline.receipts import all_receipts, receipt


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return make_out(tmp_path / "out", shards=3, videos=5)


ORDER = [f"shard{s}/video_{v}@8fps#0" for s in range(3) for v in range(5)]


def clip_ids(dataset: TokenDataset) -> list[str]:
    return [clip_id for batch in dataset for clip_id in batch["clip_id"]]


def dataset_of(storage: Storage, **changes: Any) -> TokenDataset:
    """One clip a batch, so that every clip is in the epoch."""
    return TokenDataset(storage.root, **{"batch_size": 1} | changes)


def out_of(
    tmp_path: Path, rows: list[TokenRow], record: TokenFormat, *, row_group_rows: int = 2
) -> str:
    """An OUT with one part of these rows."""
    storage = Storage(str(tmp_path / "out"))
    digest = write_part(tmp_path / "part", rows, record, row_group_rows=row_group_rows)
    storage.publish(tmp_path / "part", "parts/p")
    commit(
        storage,
        receipt(
            part="p",
            rows=digest.rows,
            **digest.receipt_fields(),
            final=True,
        ),
    )
    return storage.root


def test_clips_come_in_the_order_of_shards_and_videos(storage: Storage) -> None:
    dataset = dataset_of(storage)
    assert clip_ids(dataset) == ORDER
    assert dataset.num_clips == len(ORDER)
    assert clip_ids(dataset) == ORDER, "a second pass is like the first"


def test_batches_are_full(storage: Storage) -> None:
    dataset = TokenDataset(storage.root, batch_size=4)
    assert [tuple(batch["tokens"].shape) for batch in dataset] == [(4, *SHAPE)] * 3
    assert len(dataset) == 3
    assert clip_ids(dataset) == ORDER[:12], "what fills no batch is left out"


def test_the_last_batch_is_filled_up_from_the_start_on_request(storage: Storage) -> None:
    batches = list(TokenDataset(storage.root, batch_size=4, drop_last=False))
    assert [batch["clip_id"] for batch in batches][3] == [*ORDER[12:], ORDER[0]]
    assert [batch["is_padding"].tolist() for batch in batches] == [
        [False] * 4, [False] * 4, [False] * 4, [False, False, False, True],
    ]  # fmt: skip


def test_a_batch_holds_tokens_numbers_and_texts(tmp_path: Path) -> None:
    batch = next(
        iter(TokenDataset(out_of(tmp_path, [row(0), row(1)], token_format()), batch_size=2))
    )
    assert batch["tokens"].dtype == torch.int32
    np.testing.assert_array_equal(batch["tokens"][1].numpy(), indices_of(1))
    assert batch["clip_index"].dtype == torch.int64
    assert batch["fps"].tolist() == [8.0, 8.0]
    assert batch["caption"] == ["caption 0 ü", None]
    assert batch["key"] == ["video_0", "video_1"]
    assert batch["frame_seconds"] == [[0.0, 0.125]] * 2
    assert "token_shape" not in batch


@pytest.mark.parametrize("packing", ["fp32", "fp16", "bf16"])
def test_latents_are_split_into_mean_and_log_variance(tmp_path: Path, packing: str) -> None:
    values = np.arange(4 * 6, dtype=np.float32).reshape(4, 1, 2, 3)
    rows = [latent_row(0, values, packing)]
    (batch,) = TokenDataset(out_of(tmp_path, rows, token_format(packing)), batch_size=1)
    assert batch["tokens"].dtype == batch["log_variance"].dtype == torch.float32
    np.testing.assert_array_equal(batch["tokens"][0].numpy(), values[:2])
    np.testing.assert_array_equal(batch["log_variance"][0].numpy(), values[2:])


def test_clips_of_different_shapes_are_never_in_one_batch(tmp_path: Path) -> None:
    rows = [row(n, shape=SHAPE if n % 2 else (1, 4, 4)) for n in range(5)]
    root = out_of(tmp_path, rows, token_format())
    batches = list(TokenDataset(root, batch_size=2))
    assert [batch["key"] for batch in batches] == [["video_0", "video_2"], ["video_1", "video_3"]]
    padded = [batch["key"] for batch in TokenDataset(root, batch_size=2, drop_last=False)]
    assert padded == [["video_0", "video_2"], ["video_4", "video_0"], ["video_1", "video_3"]]


def test_shuffling_is_a_permutation(storage: Storage) -> None:
    shuffled = clip_ids(dataset_of(storage, shuffle=True))
    assert shuffled != ORDER
    assert sorted(shuffled) == sorted(ORDER)


def test_shuffling_depends_on_the_seed_alone(storage: Storage) -> None:
    def order(seed: int, batch_size: int) -> list[str]:
        return clip_ids(TokenDataset(storage.root, batch_size=batch_size, shuffle=True, seed=seed))

    assert order(1, 5) == order(1, 3)
    assert order(1, 5) != order(2, 5)


def test_tokens_stay_with_their_clips_when_shuffled(storage: Storage) -> None:
    for batch in TokenDataset(storage.root, batch_size=1, shuffle=True):
        number = int(batch["key"][0].removeprefix("video_"))
        np.testing.assert_array_equal(batch["tokens"][0].numpy(), indices_of(100 * number))


@pytest.fixture
def few_open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_open_files")
@pytest.mark.parametrize("shuffle", [False, True])
def test_more_parts_than_open_files_are_read(tmp_path: Path, shuffle: bool) -> None:
    storage = make_out(tmp_path / "out", shards=1, videos=300, max_clips=1)
    assert len(clip_ids(TokenDataset(storage.root, batch_size=5, shuffle=shuffle))) == 300


def test_a_part_without_a_receipt_does_not_exist(storage: Storage) -> None:
    part = all_receipts(storage)[0].part
    storage.put("parts/orphan.parquet", storage.read(f"parts/{part}"))
    assert clip_ids(dataset_of(storage)) == ORDER


def test_a_pinned_manifest_leaves_out_what_came_later(storage: Storage) -> None:
    digest = Ledger.open(storage).publish(storage)
    write_shard(storage, "shard3", [video(0)])
    assert clip_ids(dataset_of(storage, manifest=digest)) == ORDER
    assert len(clip_ids(dataset_of(storage))) == len(ORDER) + 1


def test_committed_segments_without_clips_are_no_error(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    write_shard(storage, "s", [video(0, clips=0)])
    assert list(TokenDataset(storage.root, batch_size=4)) == []


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_part_is_an_error_that_names_it(
    storage: Storage, damage: str, shuffle: bool
) -> None:
    part = all_receipts(storage)[3].part
    content = storage.read(f"parts/{part}")
    at = place_of_tokens(storage, str(part))
    changed = {
        "flip": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "cut": content[:-1],
        "gone": b"",
    }
    storage.put(f"parts/{part}", changed[damage])
    if damage == "gone":
        storage.delete(f"parts/{part}")
    with pytest.raises(RunError, match=str(part)):
        clip_ids(TokenDataset(storage.root, batch_size=4, shuffle=shuffle))


def test_a_place_without_receipts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing is committed"):
        TokenDataset(str(tmp_path / "nowhere"), batch_size=4)


def test_a_batch_size_below_one_is_refused(storage: Storage) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        TokenDataset(storage.root, batch_size=0)


def test_a_data_loader_hands_batches_on(storage: Storage) -> None:
    loader: DataLoader[Any] = DataLoader(TokenDataset(storage.root, batch_size=4), batch_size=None)
    assert [len(batch["clip_id"]) for batch in loader] == [4, 4, 4]
