"""``cluster=array``: one of several processes that share a run and only meet in storage.

A rank does its own share first. Then it takes, a few at a time, what the others have left: a rank
that died or is slow holds nobody up. Nobody is asked; who creates a receipt first has made the
segment, and whoever is late goes on behind it.
"""

from __future__ import annotations

from pipeline.ledger import Ledger, task_of
from pipeline.planning import Plan
from pipeline.rank import Rank
from pipeline.receipts import list_receipts, read_receipts
from pipeline.schedule import Scheduler
from pipeline.segments import ShardTask
from pipeline.storage import Storage
from pipeline.tally import Tally


def work_as_rank(
    rank: Rank, scheduler: Scheduler, plan: Plan, tally: Tally, storage: Storage, *, at_once: int
) -> None:
    """Carry out this rank's share, then whatever is left.

    Args:
        rank: this process.
        scheduler: of its worker.
        plan: of all shards; its ledger grows by what all ranks commit.
        tally: of the same run.
        storage: OUT.
        at_once: shards that are taken over together.

    Raises:
        RunError: the run cannot go on; what is committed stays.
    """
    own = rank.share_of(plan.tasks)
    tally.to_cover = sum(task.remaining for task in own)
    scheduler.run(own, plan.ledger)
    tried = {task.shard.name for task in own}
    while not tally.is_interrupted:
        catch_up(plan.ledger, storage)
        left = rank.to_steal(_left(plan, tried))[:at_once]
        if not left:
            break
        tally.to_cover += sum(task.remaining for task in left)
        scheduler.run(left, plan.ledger)
        tried |= {task.shard.name for task in left}
    catch_up(plan.ledger, storage)
    _count_all(plan, tally)


def catch_up(ledger: Ledger, storage: Storage) -> None:
    """Take in what other ranks have committed since."""
    new = [name for name in list_receipts(storage) if not ledger.holds(name)]
    ledger.add(read_receipts(storage, new))


def _left(plan: Plan, tried: set[str]) -> list[ShardTask]:
    """What nobody has finished, and this rank has not tried."""
    tasks = (
        task_of(task.shard, plan.ledger.state(task.shard.name), size_bytes=_size(plan, task))
        for task in plan.tasks
        if task.retry is None and task.shard.name not in tried
    )
    return [task for task in tasks if task is not None]


def _size(plan: Plan, task: ShardTask) -> int:
    return len(task.shard.members) or plan.sources[task.shard.name].size_bytes


def _count_all(plan: Plan, tally: Tally) -> None:
    """What one rank gave up, another one may have finished."""
    states = {shard.name: plan.ledger.state(shard.name) for shard in plan.shards}
    planned = {task.shard.name for task in plan.tasks if task.retry is None}
    for name in planned & tally.failed.keys():
        if states[name].is_final:
            del tally.failed[name]
    tally.done_shards = sum(
        state.is_final and name not in tally.failed for name, state in states.items()
    )
