"""``cluster=array``: one of several processes that share a run and only meet in storage.

A rank does its own share first. Then it takes, a few at a time, what the others have left: a rank
that died or is slow holds nobody up. Nobody is asked; who creates a receipt first has made the
segment, and whoever is late goes on behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.books import Books
from pipeline.planning import Plan, tasks_of
from pipeline.rank import Rank
from pipeline.schedule import Scheduler
from pipeline.segments import ShardTask
from pipeline.tally import Tally


def work_as_rank(
    rank: Rank,
    scheduler: Scheduler,
    plans: Sequence[Plan],
    books: Books,
    tally: Tally,
    *,
    at_once: int,
) -> None:
    """Carry out this rank's share, then whatever is left.

    Args:
        rank: this process.
        scheduler: of its worker.
        plans: of all shards, by output.
        books: of the same outputs; they grow by what all ranks commit.
        tally: of the same run.
        at_once: shards that are taken over together.

    Raises:
        RunError: the run cannot go on; what is committed stays.
    """
    planned = tasks_of(plans)
    own = rank.share_of(planned)
    _cover(tally, own)
    scheduler.run(own, books)
    tried = {task.shard.name for task in own}
    while not tally.is_interrupted:
        books.catch_up()
        left = rank.to_steal(_left(planned, books, tried))[:at_once]
        if not left:
            break
        _cover(tally, left, further=True)
        scheduler.run(left, books)
        tried |= {task.shard.name for task in left}
    books.catch_up()
    _count_all(plans, planned, tally)


def _cover(tally: Tally, tasks: Sequence[ShardTask], *, further: bool = False) -> None:
    """These tasks are what is to be covered, beside what was already or not."""
    tally.to_cover = tally.to_cover * further + sum(task.remaining for task in tasks)
    for number, output in enumerate(tally.outputs):
        own = [one.remaining for task in tasks for one in task.each() if one.output == number]
        output.to_cover = output.to_cover * further + sum(own)


def _left(planned: Sequence[ShardTask], books: Books, tried: set[str]) -> list[ShardTask]:
    """What nobody has finished, and this rank has not tried."""
    tasks = (
        books.left_of(task)
        for task in planned
        if not task.is_retry and task.shard.name not in tried
    )
    return [task for task in tasks if task is not None]


def _count_all(plans: Sequence[Plan], planned: Sequence[ShardTask], tally: Tally) -> None:
    """What one rank gave up, another one may have finished."""
    final = set.intersection(*(plan.final_shards() for plan in plans))
    for task in planned:
        if not task.is_retry and task.shard.name in final:
            tally.failed.pop(task.shard.name, None)
    tally.done_shards = sum(name not in tally.failed for name in final)
