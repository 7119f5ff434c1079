"""Clips of several shapes are packed side by side: each once, the same on any number of ranks."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.dataset import TokenDataset
from pipeline.errors import CorruptPart, RunError
from pipeline.loading import fetch, lanes, reader
from pipeline.loading.hashing import derived_key
from pipeline.loading.packed import PackedLayout
from pipeline.loading.passes import Share
from pipeline.loading.rows import load_group
from pipeline.parts import read_group
from tests.pipeline.fakes import latent_row, row, token_format
from tests.pipeline.test_dataset import out_of

SHAPES = ((5, 4, 4), (5, 2, 6), (1, 4, 4), (1, 2, 6))
CLIPS = 160
PACK_LENGTH = 320
GLOBAL_BATCH = 4
WORLDS = (1, 2, 4)


def shape_of(number: int) -> tuple[int, int, int]:
    return SHAPES[(number * 7 + number // 5) % len(SHAPES)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images and clips of two aspect ratios, in turns."""
    rows = [row(number, shape=shape_of(number)) for number in range(CLIPS)]
    return out_of(tmp_path_factory.mktemp("packs"), rows, token_format())


def ranks(root: str, world_size: int, **changes: Any) -> list[TokenDataset]:
    return [
        TokenDataset(
            root,
            **{"shuffle": True, "seed": 5, "columns": ["key"], "pack_length": PACK_LENGTH}
            | {"batch_size": GLOBAL_BATCH // world_size, "rank": rank, "world_size": world_size}
            | changes,
        )
        for rank in range(world_size)
    ]


def sequences(batch: dict[str, Any]) -> Iterator[tuple[int, slice]]:
    """Each real sequence: its pack, and where it lies in the flattened tokens."""
    borders = batch["cu_seqlens"].tolist()
    length = batch["tokens"].shape[1]
    for start, end, is_padding in zip(
        borders[:-1], borders[1:], batch["padding_sequences"].tolist(), strict=True
    ):
        if not is_padding:
            yield start // length, slice(start, end)


def packs_of(batch: dict[str, Any]) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(batch["tokens"].shape[0])]
    for key, (pack, _) in zip(batch["key"], sequences(batch), strict=True):
        found[pack].append(key)
    return found


def steps(sources: list[Any]) -> Iterator[list[list[str]]]:
    """Packs of each global batch in order, as the keys of their clips."""
    for batches in zip(*sources, strict=True):
        across = zip(*map(packs_of, batches), strict=True)
        yield [pack for of_ranks in across for pack in of_ranks]


@pytest.fixture(scope="module")
def whole_videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 clips of 200 lengths in 13 row groups."""
    numbers = np.random.default_rng(0).permutation(400).tolist()
    rows = [row(number, shape=(1 + number % 200, 2, 2)) for number in numbers]
    folder = tmp_path_factory.mktemp("lengths")
    return out_of(folder, rows, token_format(), row_group_rows=32)


def test_a_row_group_of_many_shapes_is_read_once_for_all_and_each_keeps_its_rows(
    whole_videos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset,) = ranks(whole_videos, 1, batch_size=1, pack_length=800, columns=[])
    reads: list[str] = []
    kept: list[Any] = []

    def read(*args: Any) -> Any:
        reads.append(str(args[1].part))
        return read_group(*args)

    def load(*args: Any, **how: Any) -> Any:
        loaded = load_group(*args, **how)
        kept.extend(loaded.blobs)
        assert loaded.row_bytes == 0 or loaded.blobs.flags.owndata
        return loaded

    monkeypatch.setattr(fetch, "read_group", read)
    monkeypatch.setattr(reader, "load_group", load)
    lengths = [one for batch in dataset for one in batch["cu_seqlens"].diff().tolist()]
    assert len(reads) == 13
    num_bytes = sum(token_format().clip_bytes((1 + number % 200, 2, 2)) for number in range(400))
    assert sum(blob.nbytes for blob in kept) == num_bytes, "no row is kept twice"
    assert sum(lengths) == 800 * len(dataset)


def test_packs_of_many_shapes_are_the_same_on_all_ranks_and_continue_exactly(
    whole_videos: str,
) -> None:
    def of(world_size: int) -> list[TokenDataset]:
        sizes = {"batch_size": 12 // world_size, "pack_length": 800}
        return ranks(whole_videos, world_size, **sizes)

    expected = list(steps(list(of(1))))
    assert list(steps(list(of(3)))) == expected
    first, second = of(2), of(3)
    assert list(islice(steps([iter(one) for one in first]), 5)) == expected[:5]
    for dataset in second:
        dataset.load_state_dict(first[0].state_dict())
    assert list(steps(list(second))) == expected[5:]


def test_shapes_of_a_row_group_are_neighbours_in_the_order_and_come_together() -> None:
    """Row groups of 16 shapes, 4 rows each: as many reads as if they were of one shape."""
    kinds, num_groups = range(16), 200
    counts = [np.full(num_groups, 4)] * 16
    for world_size in (1, 2, 3):
        layout = PackedLayout(
            counts, [16 * (1 + kind) for kind in kinds],
            [[(kind, at) for kind in kinds] for at in range(num_groups)],
            pack_length=1024, num_streams=24, global_batch=world_size, key=3, drop_last=True,
        )  # fmt: skip
        for rank in range(world_size):
            share = Share(rank=rank, world_size=world_size)
            works = layout.works(range(len(layout.plan)), share)
            fresh = [[slot.group for slot in work.fresh] for work in works]
            reads = [group for groups in fresh for group in set(groups)]
            assert len(reads) <= num_groups + 24, "but for those that a border of streams cuts"
            assert sum(map(len, fresh)) == 16 * len(reads), "all shapes at once"


def test_every_place_of_the_order_is_equally_likely_for_a_row_of_one_shape_of_many() -> None:
    """Chi-square over seeds of where the only row of a shape in a row group comes."""
    kinds, num_groups, bins, seeds = range(4), 15, 10, 600
    seen = np.zeros(bins)
    for seed in range(seeds):
        layout = PackedLayout(
            [np.full(num_groups, 1)] * 4, [1, 2, 3, 4],
            [[(kind, at) for kind in kinds] for at in range(num_groups)],
            pack_length=32, num_streams=6, global_batch=1, key=derived_key(seed), drop_last=True,
        )  # fmt: skip
        (place,) = [
            sample
            for work in layout.works(range(len(layout.plan)), Share())
            for sample, slot in zip(work.samples.tolist(), work.slots, strict=True)
            if (slot.kind, slot.group) == (1, 7)
        ]
        seen[place * bins // 60] += 1
    expected = seeds / bins
    assert ((seen - expected) ** 2 / expected).sum() < 27.9, "p = 0.001 with 9 degrees of freedom"


def test_a_batch_tells_where_everything_lies(root: str) -> None:
    (dataset,) = ranks(root, 1, columns=None)
    for batch in dataset:
        assert batch["tokens"].shape == batch["valid"].shape == (GLOBAL_BATCH, PACK_LENGTH)
        assert batch["positions"].shape == (GLOBAL_BATCH, PACK_LENGTH, 3)
        assert batch["tokens"].dtype == batch["positions"].dtype == torch.int32
        assert batch["cu_seqlens"].dtype == torch.int32
        assert batch["cu_seqlens"][-1] == GLOBAL_BATCH * PACK_LENGTH
        assert batch["max_seqlen"] == int(batch["cu_seqlens"].diff().max())
        num_clips = int((~batch["padding_sequences"]).sum())
        assert len(batch["caption"]) == len(batch["fps"]) == num_clips
        assert not batch["tokens"][~batch["valid"]].any()


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_clip_comes_at_most_once_with_its_own_tokens(root: str, shuffle: bool) -> None:
    plain = TokenDataset(root, batch_size=1, columns=["key"])
    expected = {batch["key"][0]: batch["tokens"][0] for batch in plain}
    (dataset,) = ranks(root, 1, shuffle=shuffle, batch_size=1)
    seen = []
    for batch in dataset:
        tokens, positions = batch["tokens"].flatten(), batch["positions"].flatten(0, 1)
        for key, (_, span) in zip(batch["key"], sequences(batch), strict=True):
            at = tuple(positions[span].long().T)
            assert torch.equal(expected[key][at], tokens[span])
            assert span.stop - span.start == expected[key].numel()
            seen.append(key)
    assert sorted(seen) == sorted(expected), "each is in one pack"


def test_ranks_share_the_packs_of_one(root: str) -> None:
    expected = list(steps(list(ranks(root, 1))))
    assert len(expected) == len(ranks(root, 1)[0]) > 3
    for world_size in WORLDS[1:]:
        assert list(steps(list(ranks(root, world_size)))) == expected


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_other_ranks_continue_exactly(root: str, before: int, after: int) -> None:
    (straight,) = ranks(root, 1)
    expected = list(steps([straight])) + list(steps([straight]))
    first = ranks(root, before)
    assert list(islice(steps([iter(one) for one in first]), 2)) == expected[:2]
    states = [one.state_dict() for one in first]
    assert all(state == states[0] for state in states)
    assert states[0]["samples"] == 2 * GLOBAL_BATCH, "packs are counted"
    assert states[0]["batching"] == f"pack_length={PACK_LENGTH}"
    second = ranks(root, after)
    for dataset in second:
        dataset.load_state_dict(json.loads(json.dumps(states[-1])))
    assert list(steps(list(second))) + list(steps(list(second))) == expected[2:]


def test_worker_processes_continue_exactly(root: str) -> None:
    expected = list(steps(list(ranks(root, 1))))
    (first,) = ranks(root, 1)
    batches = list(islice(DataLoader(first, batch_size=None, num_workers=2), 2))
    assert [packs_of(batch) for batch in batches] == expected[:2]
    (second,) = ranks(root, 1)
    second.load_state_dict(first.state_dict(after=batches[-1]))
    assert list(steps([DataLoader(second, batch_size=None, num_workers=2)])) == expected[2:]


def test_another_batch_size_goes_on_at_the_next_pack_when_it_is_meant(root: str) -> None:
    listed = [pack for step in steps(list(ranks(root, 1, batch_size=1))) for pack in step]
    (first,), (second,) = ranks(root, 1), ranks(root, 1, batch_size=3)
    next(iter(first))
    second.load_state_dict(first.state_dict(), convert_batch=True)
    seen = [pack for step in steps([second]) for pack in step]
    assert len(seen) == (len(listed) - 4) // 3 * 3
    assert seen == listed[4 : 4 + len(seen)]


def test_the_last_batch_is_filled_up_with_the_first_packs(root: str) -> None:
    listed = [pack for step in steps(list(ranks(root, 1, batch_size=1))) for pack in step]
    (filling,) = ranks(root, 1, batch_size=len(listed) - 2, drop_last=False)
    first, last = filling
    assert packs_of(first) + packs_of(last) == listed + listed[: len(listed) - 4]
    assert last["is_padding"].tolist() == [False] * 2 + [True] * (len(listed) - 4)


def test_epochs_are_packed_anew(root: str) -> None:
    (dataset,) = ranks(root, 1)
    assert list(steps([dataset])) != list(steps([dataset]))


@pytest.mark.parametrize(
    "changes", [{"pack_length": 640}, {"pack_length": None}, {"crop_latents": (1, 2, 4)}]
)
def test_a_state_of_other_packs_is_refused(root: str, changes: dict[str, Any]) -> None:
    (first,), (second,) = ranks(root, 1), ranks(root, 1, **changes)
    with pytest.raises(RunError, match=r"its batching is 'pack_length=320'.*crop_latents= of"):
        second.load_state_dict(first.state_dict())


def test_little_is_wasted_on_clips_and_images(tmp_path: Path) -> None:
    shapes = ((5, 16, 16), (5, 12, 20), (1, 16, 16))
    rows = [row(number, shape=shapes[number * 5 // 3 % 3]) for number in range(600)]
    root = out_of(tmp_path, rows, token_format(), row_group_rows=50)
    (dataset,) = ranks(root, 1, batch_size=1, pack_length=8192)
    assert 0 < dataset.waste <= 0.03
    filled = [float(batch["valid"].float().mean()) for batch in dataset]
    assert 1 - np.mean(filled) == pytest.approx(dataset.waste, abs=1e-6)
    (plain,) = ranks(root, 1, batch_size=1, pack_length=None)
    assert plain.waste == 0


def test_a_clip_longer_than_a_pack_is_refused_at_open(root: str) -> None:
    with pytest.raises(ValueError, match=r"shape \[5, 4, 4\], which has 80 tokens; choose"):
        ranks(root, 1, pack_length=79)
    with pytest.raises(ValueError, match="exclude each other"):
        ranks(root, 1, tokens_per_batch=512)


def test_cut_clips_are_as_long_as_the_cut(root: str) -> None:
    (dataset,) = ranks(root, 1, pack_length=64, crop_latents=(1, 2, 2))
    batch = next(iter(dataset))
    assert batch["cu_seqlens"].diff().tolist() == [4] * 16 * GLOBAL_BATCH
    assert batch["valid"].all()


def test_latents_are_laid_with_channels_last(tmp_path: Path) -> None:
    shapes = [(4, 1, 2, 3), (4, 2, 2, 2)]
    values = [
        np.arange(math.prod(shape), dtype=np.float32).reshape(shape) + 100 * n
        for n, shape in enumerate(shapes)
    ]
    rows = [latent_row(number, one, "fp32") for number, one in enumerate(values)]
    root = out_of(tmp_path, rows, token_format("fp32"))
    (batch,) = TokenDataset(root, batch_size=1, pack_length=16, columns=["key"])
    assert batch["tokens"].shape == batch["log_variance"].shape == (1, 16, 2)
    for key, (_, span) in zip(batch["key"], sequences(batch), strict=True):
        stored = values[int(key[-1])]
        np.testing.assert_array_equal(batch["tokens"][0, span].T, stored[:2].reshape(2, -1))
        np.testing.assert_array_equal(batch["log_variance"][0, span].T, stored[2:].reshape(2, -1))


def test_damaged_clips_are_replaced_by_others_of_their_shape(tmp_path: Path) -> None:
    rows = [row(number, shape=SHAPES[number // 10]) for number in range(40)]
    root = out_of(tmp_path, rows, token_format())
    (strict,) = ranks(root, 1, batch_size=1)
    (dataset,) = ranks(root, 1, on_corrupt="replace", batch_size=1, pack_length=80)
    part = tmp_path / "out" / "parts" / "p"  # damaged behind the open, which looks for shapes
    data = bytearray(part.read_bytes())
    data[40] ^= 1  # of the first row group, two clips of the first shape
    part.write_bytes(data)
    with pytest.raises(CorruptPart):
        list(strict)
    replaced = [
        span.stop - span.start
        for batch in dataset
        for (_, span), stands_in in zip(sequences(batch), batch["replaced"].tolist(), strict=True)
        if stands_in
    ]
    assert replaced == [80, 80]
    assert dataset.num_replaced == 2


def test_row_groups_are_read_once_and_let_go_behind_their_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "WINDOW_SAMPLES", 64)
    counts = [np.full(200, 8), np.full(100, 4)]
    units = [(kind, at) for kind, rows in enumerate(counts) for at in range(len(rows))]
    layout = PackedLayout(
        counts, [80, 16], [[unit] for unit in units],
        pack_length=320, num_streams=4, global_batch=1, key=7, drop_last=True,
    )  # fmt: skip
    fresh: list[tuple[int, int]] = []
    samples: list[int] = []
    alive: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
    most = 0
    for work in layout.works(range(len(layout.plan)), Share()):
        fresh += [(slot.kind, slot.group) for slot in work.fresh]
        samples += work.samples.tolist()
        alive.update(slot.loaded for slot in work.slots)
        most = max(most, len(alive))
    assert sorted(samples) == list(range(2000))
    assert set(fresh) == set(units)
    assert len(fresh) <= len(units) + 4, "but for those that a border of streams cuts"
    assert most < 60, "of 300 row groups; a window is of 64 clips"


@pytest.mark.parametrize(
    ("world_size", "batch_size", "most"), [(1, 1, 1.1), (2, 8, 0.75), (4, 1, 0.5), (8, 8, 0.4)]
)
def test_a_rank_reads_little_more_than_its_share(
    world_size: int, batch_size: int, most: float
) -> None:
    counts = [np.full(100, 64)] * 4
    units = [[(kind, at)] for at in range(100) for kind in range(4)]
    layout = PackedLayout(
        counts, [256, 576, 1024, 1280], units,
        pack_length=4096, num_streams=24, global_batch=world_size * batch_size, key=1,
        drop_last=True,
    )  # fmt: skip
    for rank in (0, world_size - 1):
        works = layout.works(range(len(layout.plan)), Share(rank=rank, world_size=world_size))
        assert sum(len(work.fresh) for work in works) <= most * 400
