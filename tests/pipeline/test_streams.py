"""Whole videos in pieces, and clips of several sizes: samplers, batchers and a whole worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset import TokenDataset
from pipeline.records import ClipPlan, SamplingMode, TailPolicy
from pipeline.run_record import write_run_record
from pipeline.sampling import clip_ticks, tail_frames
from pipeline.schema import TokenFormat
from pipeline.transforms import nearest_bucket
from tests.pipeline.fakes import MATERIAL, FakeEncoder, token_format
from tests.pipeline.media import (
    SIZE,
    decoded,
    encode,
    expected_picks,
    numbered,
    plan_of,
    read_numbers,
)
from tests.pipeline.test_worker import Run, rows, shard_of, start, task

__all__ = ["start"]

LONG = encode(range(180))  # 48 ticks at 8 fps
SHORT = encode(range(20))  # 6 ticks
IMAGE = encode(range(1))


def whole(
    *fps: float, pieces: int = 4, tail: TailPolicy = TailPolicy.drop, **more: Any
) -> ClipPlan:
    return plan_of(
        *fps, clip_frames=pieces, mode=SamplingMode.whole, time_factor=2, tail=tail, **more
    )


def shown(num_frames: int, fps: float = 8.0) -> list[int]:
    """The numbers shown at each tick of a 30 fps video of so many frames."""
    ticks = int((num_frames / 30 - 1e-9) * fps) + 1
    return expected_picks([k / 30 for k in range(num_frames)], fps, ticks)


def test_first_piece_is_one_frame_and_the_others_follow_without_a_gap() -> None:
    plan = whole(8.0)
    ticks = [clip_ticks(index, plan) for index in range(4)]
    assert [list(one) for one in ticks] == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("num_ticks", "drop", "pad"),
    [(1, None, None), (2, None, 2), (3, 2, 2), (4, 2, 4), (5, None, None)],
)
def test_length_becomes_one_and_a_multiple_of_the_time_factor(
    num_ticks: int, drop: int | None, pad: int | None
) -> None:
    num_pieces = 1 + (num_ticks - 1) // 4
    assert tail_frames(num_ticks, num_pieces, whole(8.0)) == drop
    assert tail_frames(num_ticks, num_pieces, whole(8.0, tail=TailPolicy.pad)) == pad


def test_pieces_together_are_the_ticks_of_the_video() -> None:
    pieces, summary = decoded(LONG, whole(8.0, pieces=16))
    assert [piece.frames.shape[0] for piece in pieces] == [1, 16, 16, 16]
    real = [n for piece in pieces for n in read_numbers(piece)[: piece.num_real_frames]]
    assert real == shown(180)[: len(real)]
    assert len(real) == 47
    assert summary.num_clips == {8.0: 4}
    assert all(len(piece.frame_seconds) == piece.num_real_frames for piece in pieces)


def start_whole(start: Run, encoder: FakeEncoder, *fps: float, **more: Any) -> Any:
    return start(encoder, plan=whole(*fps, **more))


def tokens_of(row: dict[str, Any], form: TokenFormat) -> list[int]:
    blob = np.frombuffer(row["tokens"], dtype=np.uint8)
    return form.unpack(blob[None], row["token_shape"])[0].reshape(-1).tolist()


def test_each_video_is_one_row_whatever_its_length(tmp_path: Path, start: Run) -> None:
    encoder = FakeEncoder()
    worker = start_whole(start, encoder, 8.0)
    receipts = worker.run_shard(task(shard_of(tmp_path, LONG, SHORT, IMAGE, LONG)))
    found = rows(worker, receipts)
    assert [(row["key"], row["clip_index"]) for row in found] == [
        ("v0", 0), ("v1", 0), ("v2", 0), ("v3", 0)]  # fmt: skip
    expected = [shown(180)[:47:2], shown(20)[:5:2], [0], shown(180)[:47:2]]
    assert [tokens_of(row, token_format()) for row in found] == expected
    assert [row["token_shape"] for row in found] == [[24, 1, 1], [3, 1, 1], [1, 1, 1], [24, 1, 1]]
    assert [len(row["frame_seconds"]) for row in found] == [47, 5, 1, 47]
    assert found[0]["end_seconds"] == pytest.approx(47 / 8)


def test_batches_have_two_shapes_and_no_state_is_of_another_stream(
    tmp_path: Path, start: Run
) -> None:
    encoder = FakeEncoder()
    worker = start_whole(start, encoder, 8.0)
    worker.run_shard(task(shard_of(tmp_path, LONG, LONG, SHORT)))
    assert {shape for shape, _ in encoder.batches} == {(2, 1, SIZE, SIZE, 3), (2, 4, SIZE, SIZE, 3)}
    for shape, states in encoder.batches:
        is_first = shape[1] == 1
        assert all((state is None) == is_first for state in states)


def test_several_rates_of_one_video_are_streams_of_their_own(tmp_path: Path, start: Run) -> None:
    worker = start_whole(start, FakeEncoder(), 8.0, 4.0, tail=TailPolicy.pad)
    found = rows(worker, worker.run_shard(task(shard_of(tmp_path, SHORT))))
    assert [row["fps"] for row in found] == [4.0, 8.0]
    last = shown(20)[-1]
    assert tokens_of(found[0], token_format()) == shown(20, 4.0)[:3:2]
    assert tokens_of(found[1], token_format()) == [*shown(20)[:6:2], last]


def test_a_video_that_breaks_half_way_leaves_nothing_behind(tmp_path: Path, start: Run) -> None:
    encoder = FakeEncoder(seconds=0.01)
    broken = bytearray(encode(range(240), options={"g": "10"}))
    middle = len(broken) // 2
    broken[middle : middle + 400] = bytes(400)
    worker = start_whole(start, encoder, 8.0)
    (receipt,) = worker.run_shard(task(shard_of(tmp_path, bytes(broken), SHORT, LONG)))
    assert [one["key"] for one in receipt.quarantined] == ["v0"]
    assert [row["key"] for row in rows(worker, [receipt])] == ["v1", "v2"]


def test_rows_of_different_lengths_are_read_back(tmp_path: Path, start: Run) -> None:
    worker = start_whole(start, FakeEncoder(), 8.0)
    write_run_record(
        worker.storage,
        material=MATERIAL,
        config={},
        random_weights=False,
        batch_clips=2,
        device="cpu",
    )
    worker.run_shard(task(shard_of(tmp_path, LONG, SHORT, LONG)))
    batches = list(TokenDataset(worker.storage.root, batch_size=1))
    assert sorted(tuple(batch["tokens"].shape) for batch in batches) == [
        (1, 3, 1, 1),
        (1, 24, 1, 1),
        (1, 24, 1, 1),
    ]


@pytest.mark.parametrize(
    ("width", "height", "bucket"),
    [
        (1920, 1080, (192, 336)),
        (1080, 1920, (336, 192)),
        (500, 400, (256, 256)),
        (1000, 1000, (256, 256)),
        (10_000, 1, (192, 336)),
    ],
)
def test_nearest_aspect_ratio(width: int, height: int, bucket: tuple[int, int]) -> None:
    assert nearest_bucket(width, height, [(256, 256), (192, 336), (336, 192)]) == bucket


def test_each_video_takes_its_bucket_and_batches_keep_to_one(tmp_path: Path, start: Run) -> None:
    wide = encode(range(31), draw=lambda k: numbered(k, 128, 64))
    tall = encode(range(31), draw=lambda k: numbered(k, 64, 128))
    buckets = ((64, 64), (32, 64), (64, 32))
    worker = start(FakeEncoder(), plan=plan_of(8.0, buckets=buckets))
    shard = shard_of(tmp_path, wide, tall, encode(range(31)), wide)
    found = rows(worker, worker.run_shard(task(shard)))
    assert {(row["key"], row["bucket"]) for row in found} == {
        ("v0", "32x64"), ("v1", "64x32"), ("v2", "64x64"), ("v3", "32x64")}  # fmt: skip
