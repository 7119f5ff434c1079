"""What a dry run says beyond the plan: the fingerprint, and what of the shards would be done."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.planning import Plan
from pipeline.segments import ShardTask

MOST_NAMES = 8
"""Shards that are named on one line; of others the number is said."""


def describe_dry_run(plan: Plan, fingerprint: str, *, is_new: bool) -> str:
    """Lines: fingerprint, what would be skipped, what would go on and where, what would begin.

    Args:
        plan: of the run that would be.
        fingerprint: hex digest of the configuration; that of OUT, unless OUT is new.
        is_new: whether no run has written to OUT yet.
    """
    todo = {task.shard.name for task in plan.tasks}
    skipped = [
        shard.name
        for shard in plan.shards
        if shard.name not in todo and plan.ledger.state(shard.name).is_final
    ]
    begun = [task for task in plan.tasks if task.next_segment > 0]
    fresh = [task for task in plan.tasks if task.next_segment == 0]
    lines = [f"fingerprint {fingerprint} ({'OUT is new' if is_new else 'that of OUT'})"]
    if skipped:
        counts = plan.ledger.counts(skipped)
        what = f"final, {counts.videos:,} videos, {counts.clips:,} clips"
        lines.append(f"would skip {_shards(skipped)} ({what})")
    if begun:
        lines.append(f"would go on with {_shards([_place(task) for task in begun])}")
    if fresh:
        size = sum(plan.sources[task.shard.name].size_bytes for task in fresh)
        names = [task.shard.name for task in fresh]
        lines.append(f"would begin {_shards(names)} ({size / 1e6:,.1f} MB)")
    return "\n".join([*lines, "nothing was written"])


def _place(task: ShardTask) -> str:
    what = "quarantined videos again" if task.amends else f"segment {task.next_segment}"
    return f"{task.shard.name} ({what})"


def _shards(names: Sequence[str]) -> str:
    """Their number and the first of them."""
    shown = ", ".join(names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return f"{len(names):,} shard{'s' if len(names) != 1 else ''}: {shown}{more}"
