"""Packs: every sequence once, little waste, the same packs wherever one begins."""

from __future__ import annotations

import bisect
import doctest
import math
import time

import numpy as np
import pytest
import torch

from pipeline.loading import lanes
from pipeline.loading.hashing import derived_key
from pipeline.loading.lanes import Lanes
from pipeline.loading.packs import (
    WINDOW_SAMPLES,
    PackedOrder,
    best_fit_decreasing,
    lay_out,
    lay_tokens,
)

IMAGE, CLIP = (1, 16, 16), (5, 16, 16)
BUCKETS = ((5, 12, 20), (5, 20, 12), (5, 16, 16), (1, 12, 20), (1, 20, 12), (1, 16, 16))


def drawn(shapes: list[tuple[int, int, int]], weights: list[float], number: int) -> np.ndarray:
    lengths = np.array([math.prod(shape) for shape in shapes])
    chances = np.array(weights) / sum(weights)
    return np.random.default_rng(5).choice(lengths, size=number, p=chances)


MIXES = {
    "images and clips": (drawn([IMAGE, CLIP], [0.5, 0.5], 20_000), 8192),
    "mostly clips": (drawn([IMAGE, CLIP], [0.2, 0.8], 20_000), 4096),
    "buckets with images": (drawn(list(BUCKETS), [2, 1, 3, 1, 1, 2], 20_000), 16384),
    "whole videos": (
        drawn([(t, 16, 16) for t in range(2, 33)], [1 / t for t in range(2, 33)], 9000),
        8192,
    ),
    "anything": (np.random.default_rng(1).integers(1, 4096, 9000), 8192),
}


def one_by_one(lengths: list[int], pack_length: int) -> list[int]:
    """Best fit decreasing as the textbook has it: free tokens of each pack at the end."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(free, length)
        left = (free.pop(at) if at < len(free) else pack_length) - length
        bisect.insort(free, left)
    return free


@pytest.mark.parametrize("mix", MIXES)
def test_counting_lengths_gives_the_packs_of_the_textbook(mix: str) -> None:
    lengths, pack_length = MIXES[mix]
    values, numbers = np.unique(lengths[:2000], return_counts=True)
    counts = tuple(zip(values.tolist(), numbers.tolist(), strict=True))
    patterns = best_fit_decreasing(counts, pack_length)
    free = sorted(one.free for one in patterns for _ in range(one.number))
    assert free == one_by_one(lengths[:2000].tolist(), pack_length)


@pytest.mark.parametrize("mix", MIXES)
def test_every_sample_is_in_one_pack_and_no_pack_is_too_long(mix: str) -> None:
    lengths, pack_length = MIXES[mix]
    order = PackedOrder(lengths, pack_length, key=derived_key(3, 0, "packs"))
    packs = [order[number] for number in range(len(order))]
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    assert max(int(lengths[pack].sum()) for pack in packs) <= pack_length


@pytest.mark.parametrize("mix", MIXES)
def test_realistic_mixes_waste_at_most_three_percent(mix: str) -> None:
    lengths, pack_length = MIXES[mix]
    order = PackedOrder(lengths, pack_length, key=derived_key(0, 0, "packs"))
    used = sum(int(lengths[order[number]].sum()) for number in range(len(order)))
    assert order.waste == pytest.approx(1 - used / (len(order) * pack_length))
    assert order.waste <= 0.03


@pytest.mark.parametrize("mix", MIXES)
def test_packs_in_lanes_hold_every_sample_once_and_waste_at_most_three_percent(mix: str) -> None:
    lengths, pack_length = MIXES[mix]
    packs = Lanes(lengths, pack_length, num_streams=24, key=derived_key(0, 0, "packs"))
    listed = [packs[number] for number in range(len(packs))]
    assert sorted(np.concatenate(listed).tolist()) == list(range(len(lengths)))
    assert max(int(lengths[pack].sum()) for pack in listed) <= pack_length
    assert packs.waste <= 0.03
    for number in range(0, len(packs), 37):
        assert set(listed[number].tolist()) <= set(packs.samples_of(packs.window_of(number)))
        if number < 0.9 * len(packs):
            assert set((listed[number] % 8).tolist()) == {number % 8}


def test_the_examples_of_lanes_hold() -> None:
    assert doctest.testmod(lanes).failed == 0


def test_lengths_that_leave_a_gap_in_every_pack_show_it_in_waste() -> None:
    order = PackedOrder(np.full(6 * 1000, 1280), 8192, key=derived_key(0, 0, "packs"))
    assert order.waste == pytest.approx(1 - 6 * 1280 / 8192, abs=2e-3)


def test_any_pack_is_found_from_its_number_alone() -> None:
    lengths, pack_length = MIXES["images and clips"]
    whole = PackedOrder(lengths, pack_length, key=derived_key(3, 2, "packs"))
    for number in (len(whole) - 1, 0, len(whole) // 2, 1):
        again = PackedOrder(lengths, pack_length, key=derived_key(3, 2, "packs"))
        assert again[number].tolist() == whole[number].tolist()


def test_seed_and_epoch_shuffle_the_packs_of_a_window_only() -> None:
    lengths, pack_length = MIXES["images and clips"]
    orders = [
        PackedOrder(lengths, pack_length, key=derived_key(seed, epoch, "packs"))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    listed = [[order[number].tolist() for number in range(len(order))] for order in orders]
    assert listed[0] != listed[1] != listed[2] != listed[0]
    assert sorted(listed[0]) == sorted(listed[1]) == sorted(listed[2])
    windows = [pack[0] // WINDOW_SAMPLES for pack in listed[0]]
    assert windows == sorted(windows)
    assert listed[0] != sorted(listed[0])


def test_packs_of_an_epoch_are_pinned_for_ever() -> None:
    order = PackedOrder(np.array([3, 5, 2, 8, 1, 5, 4]), 8, key=derived_key(7, 1, "packs"))
    assert [order[number].tolist() for number in range(len(order))] == [[0, 1], [3], [2, 4, 5], [6]]


@pytest.mark.parametrize("length", [9, 0])
def test_a_sample_that_no_pack_can_hold_is_refused_with_the_remedy(length: int) -> None:
    with pytest.raises(ValueError, match=r"pack_length=8 must hold the longest sample.*raise"):
        PackedOrder(np.array([4, length]), 8, key=derived_key(0, 0, "packs"))


def test_an_empty_order_has_no_pack() -> None:
    order = PackedOrder(np.zeros(0, dtype=np.int64), 8, key=derived_key(0, 0, "packs"))
    assert (len(order), order.waste) == (0, 0.0)
    with pytest.raises(IndexError, match="pack 0 of an epoch of 0"):
        order[0]


def test_a_million_samples_are_counted_in_seconds() -> None:
    lengths = np.random.default_rng(0).choice(MIXES["buckets with images"][0], 1_000_000)
    before = time.process_time()
    PackedOrder(lengths, 16384, key=derived_key(0, 0, "packs"))
    assert time.process_time() - before < 10


def test_layout_tells_sequences_positions_and_padding() -> None:
    layout = lay_out([[(1, 2, 2), (2, 1, 1)], [(2, 2, 2)]], 8)
    assert layout.cu_seqlens.tolist() == [0, 4, 6, 8, 16]
    assert layout.is_padding.tolist() == [False, False, True, False]
    assert layout.valid.tolist() == [[True] * 6 + [False] * 2, [True] * 8]
    assert layout.max_seqlen == 8
    assert layout.positions[0].tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0],
    ]  # fmt: skip
    assert (layout.positions.dtype, layout.cu_seqlens.dtype) == (np.int32, np.int32)


def test_a_pack_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in 7"):
        lay_out([[(2, 2, 2)]], 7)


def test_tokens_lie_where_the_positions_say() -> None:
    shapes = [[(1, 2, 2), (2, 1, 3)], [(2, 2, 2)]]
    samples = [
        [torch.from_numpy(np.random.default_rng(0).integers(1, 99, s)) for s in pack]
        for pack in shapes
    ]
    laid, layout = lay_tokens(samples, 12), lay_out(shapes, 12)
    assert laid.shape == (2, 12)
    for index, pack in enumerate(samples):
        flat = [int(sample[tuple(at)]) for sample in pack for at in np.ndindex(sample.shape)]
        assert laid[index][layout.valid[index]].tolist() == flat
        assert not laid[index][~layout.valid[index]].any()


def test_latents_are_laid_with_channels_last() -> None:
    sample = torch.arange(3 * 4, dtype=torch.float32).reshape(3, 1, 2, 2)
    laid = lay_tokens([[sample]], 5)
    assert laid.shape == (1, 5, 3)
    assert laid[0, 1].tolist() == sample[:, 0, 0, 1].tolist()
