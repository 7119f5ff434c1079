"""Which rank a process is, and what it does: the environment of three schedulers, and shares."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.errors import ConfigError
from pipeline.rank import Rank, find_rank
from pipeline.records import Retry
from pipeline.segments import ShardTask
from tests.pipeline.fakes import shard

SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
FROM_ONE = SLURM | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"}
GAPS = SLURM | {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "6"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "2"}
SKYPILOT = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2"}


def tasks(count: int) -> list[ShardTask]:
    return [ShardTask(shard=shard(f"{number:05d}"), source=None) for number in range(count)]


def names(found: list[ShardTask]) -> list[str]:
    return [task.shard.name for task in found]


@pytest.mark.parametrize(
    ("rank", "ranks", "environment", "found"),
    [
        (None, None, SLURM, (3, 4)),
        (None, None, FROM_ONE, (2, 4)),
        (None, 8, SLURM, (3, 8)),
        (None, 3, KUBERNETES, (2, 3)),
        (None, None, SKYPILOT, (0, 2)),
        (1, 2, {}, (1, 2)),
        (1, 2, SLURM | KUBERNETES, (1, 2)),
        (0, 1, {}, (0, 1)),
    ],
)
def test_the_rank_is_what_the_command_line_says_else_the_environment(
    rank: int | None, ranks: int | None, environment: dict[str, str], found: tuple[int, int]
) -> None:
    one = find_rank(rank, ranks, environment)
    assert (one.number, one.ranks) == found


@pytest.mark.parametrize(
    ("rank", "ranks", "environment", "text"),
    [
        (None, None, {}, "none of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX"),
        (None, 4, {}, "give cluster.rank=N cluster.ranks=COUNT"),
        (2, None, {}, "known (cluster.rank), the number of ranks is not: give cluster.ranks"),
        (2, None, SLURM, "known (cluster.rank), the number of ranks is not"),
        (None, None, KUBERNETES, "known (JOB_COMPLETION_INDEX), the number of ranks is not"),
        (
            None,
            None,
            {"SKYPILOT_NODE_RANK": "0"},
            "SKYPILOT_NUM_NODES is not set: give cluster.ranks",
        ),
        (None, None, SLURM | KUBERNETES, "SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are set"),
        (4, 4, {}, "rank 4 (cluster.rank) must be from 0 to 3, as there are 4 ranks"),
        (None, 2, KUBERNETES, "rank 2 (JOB_COMPLETION_INDEX) must be from 0 to 1"),
        (None, None, GAPS, "4 indices between 0 and 6: its ranks need indices without gaps"),
        (None, 4, {"JOB_COMPLETION_INDEX": "two"}, "JOB_COMPLETION_INDEX must be a number"),
        (None, 4, {"JOB_COMPLETION_INDEX": "-1"}, "must be a number, got '-1'"),
    ],
)
def test_a_rank_that_is_not_known_is_refused_in_one_line(
    rank: int | None, ranks: int | None, environment: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_rank(rank, ranks, environment)
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ranks", [1, 3, 4, 7])
def test_every_shard_is_of_exactly_one_share_and_shares_are_alike(ranks: int) -> None:
    everything = tasks(1000)
    shares = [Rank(number=number, ranks=ranks).share_of(everything) for number in range(ranks)]
    assert Counter(name for share in shares for name in names(share)) == Counter(names(everything))
    assert all(0.75 < len(share) * ranks / 1000 < 1.25 for share in shares)


def test_a_share_is_the_same_in_every_process() -> None:
    assert names(Rank(number=1, ranks=4).share_of(tasks(16))) == ["00005", "00012"]


def test_ranks_steal_in_orders_of_their_own_and_begun_shards_last() -> None:
    begun = ShardTask(shard=shard("begun"), source=None, start_offset=10, next_segment=1)
    again = ShardTask(shard=shard("again"), source=None, retry=Retry.quarantined)
    left = [begun, again, *tasks(40)]
    orders = [names(Rank(number=number, ranks=4).to_steal(left)) for number in range(4)]
    assert all(order[-1] == "begun" and "again" not in order for order in orders)
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({order[0] for order in orders}) == 4
