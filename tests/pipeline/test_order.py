"""The order of an epoch: a permutation, the same everywhere, and how far from uniform."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from pipeline.loading import order
from pipeline.loading.hashing import derived_key
from pipeline.loading.order import Order, count_streams, permutation


def rows_of(layout: Order, counts: list[int]) -> list[tuple[int, int]]:
    """Group and row of every sample."""
    places = layout.places(np.arange(layout.num_samples))
    rows = {group: layout.rows(group, count) for group, count in enumerate(counts)}
    return [
        (group, int(rows[group][offset]))
        for group, offset in zip(places.groups.tolist(), places.offsets.tolist(), strict=True)
    ]


def test_the_examples_hold() -> None:
    assert doctest.testmod(order).failed == 0


def test_golden_values_never_change() -> None:
    """A state that somebody keeps means these: another library version must not move them."""
    assert derived_key(0, 1, "rows") == 6406201984139124122
    assert permutation(10, derived_key(7, 3, "groups")).tolist() == [3, 4, 9, 7, 5, 2, 8, 6, 0, 1]
    assert rows_of(Order([2, 3, 2], num_streams=2, key=5), [2, 3, 2]) == [
        (0, 1), (1, 1), (0, 0), (1, 2), (2, 1), (1, 0), (2, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("num_streams", [1, 2, 3, 8, 96])
@pytest.mark.parametrize("counts", [[1], [5, 1, 7], [4] * 12, [0, 3, 0, 2], [100, 1, 1, 1, 50]])
def test_every_row_comes_exactly_once(counts: list[int], num_streams: int) -> None:
    layout = Order(counts, num_streams=num_streams, key=3)
    every = [(group, row) for group, count in enumerate(counts) for row in range(count)]
    assert sorted(rows_of(layout, counts)) == every


def test_without_a_key_the_order_is_that_of_the_list() -> None:
    counts = [2, 0, 3]
    assert rows_of(Order(counts, num_streams=8, key=None), counts) == [
        (0, 0), (0, 1), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip


def test_neighbours_come_from_all_streams() -> None:
    layout = Order([10] * 30, num_streams=12, key=9)
    streams = layout.places(np.arange(layout.num_samples)).streams
    for first in range(layout.num_samples - 12):
        assert sorted(streams[first : first + 12].tolist()) == list(range(12))


@pytest.mark.parametrize("num_streams", [2, 3, 12])
def test_a_row_group_that_a_border_cuts_is_due_on_both_sides_at_one_time(num_streams: int) -> None:
    layout = Order([10] * 31, num_streams=num_streams, key=9)
    places = layout.places(np.arange(layout.num_samples))
    for border in range(num_streams - 1):
        sides = [
            places.groups[places.streams == stream].tolist() for stream in (border, border + 1)
        ]
        shared = set(sides[0]) & set(sides[1])
        ends = {(side[0], side[-1])[border % 2 == 0] for side in sides}
        assert not shared or ends == shared, "both begin with it, or both end with it"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_a_rank_reads_its_streams_only_where_their_number_divides(world_size: int) -> None:
    """Row groups read by all ranks: each once, and one more for each border of a stream."""
    layout = Order([10] * 60, num_streams=12, key=9)
    samples = np.arange(layout.num_samples)
    reads = sum(
        len(set(layout.places(samples[rank::world_size]).groups.tolist()))
        for rank in range(world_size)
    )
    assert 60 <= reads <= 60 + 12


def test_ranks_that_share_streams_read_them_again() -> None:
    layout = Order([10] * 60, num_streams=12, key=9)
    samples = np.arange(layout.num_samples)
    reads = sum(len(set(layout.places(samples[rank::8]).groups.tolist())) for rank in range(8))
    assert reads <= 2 * 60 + 12, "8 / gcd(8, 12) = 2"


def test_every_place_is_equally_likely_for_a_row() -> None:
    """Chi-square over seeds of where the first row of the first group comes."""
    counts, bins, seeds = [4] * 15, 10, 2000
    seen = np.zeros(bins)
    for seed in range(seeds):
        found = rows_of(Order(counts, num_streams=6, key=derived_key(seed)), counts).index((0, 0))
        seen[found * bins // 60] += 1
    expected = seeds / bins
    assert ((seen - expected) ** 2 / expected).sum() < 27.9, "p = 0.001 with 9 degrees of freedom"


def test_two_of_a_batch_share_a_row_group_as_often_as_there_are_streams() -> None:
    """Stated: with C streams, about 1/C of pairs inside a batch instead of 1/60."""
    counts, batch = [32] * 60, 64
    shared = []
    for seed in range(20):
        layout = Order(counts, num_streams=12, key=derived_key(seed))
        groups = layout.places(np.arange(batch)).groups
        same = (groups[:, None] == groups[None, :]).sum() - batch
        shared.append(same / (batch * (batch - 1)))
    assert 0.5 / 12 < np.mean(shared) < 1.5 / 12


@pytest.mark.parametrize(
    ("num_groups", "group_bytes", "expected"),
    [(0, 1, 1), (1, 1, 1), (5, 1, 4), (96, 1, 24), (400, 1, 96), (10**6, 1, 96),
     (1000, 64 << 20, 4), (100, 1 << 30, 1)],
)  # fmt: skip
def test_streams_are_as_many_as_memory_and_row_groups_allow(
    num_groups: int, group_bytes: int, expected: int
) -> None:
    assert count_streams(num_groups, group_bytes) == expected


@pytest.mark.parametrize("num_streams", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_samples", [8, 9, 23, 64])
def test_streams_are_equal_pieces_of_a_line_and_every_second_one_runs_backwards(
    num_samples: int, num_streams: int
) -> None:
    layout = Order([1] * num_samples, num_streams=num_streams, key=11)
    line = permutation(num_samples, 11).tolist()
    length, longer = divmod(num_samples, num_streams)
    expected = []
    for stream in range(num_streams):
        start = stream * length + min(stream, longer)
        piece = line[start : start + length + (stream < longer)]
        expected.append(piece[::-1] if stream % 2 else piece)
    places = layout.places(np.arange(num_samples))
    assert places.groups.tolist() == [
        expected[sample % num_streams][sample // num_streams] for sample in range(num_samples)
    ]
