"""What is left to do in an OUT: shards against receipts. Runs at the start of every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.inputs import sources_of
from pipeline.manifest import Receipt, ShardState, by_shard, load_receipts
from pipeline.reader import Source
from pipeline.schedule import task_of
from pipeline.segments import ShardTask
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tally import Tally


@dataclass(slots=True)
class Plan:
    """What is left to do in an OUT."""

    shards: list[Shard]
    sources: dict[str, Source]
    missing: dict[str, str]
    """Shards that are not where they should be, and why."""
    states: dict[str, ShardState]
    """Of the shards of this run."""
    changed: list[str]
    """Shards whose source is not what their receipts say."""
    receipts: list[Receipt]
    """All receipts of OUT, also of shards that this run does not name."""
    tasks: list[ShardTask]


def make_plan(
    shards: list[Shard], storage: Storage, *, options: Mapping[str, Any], redo_changed: bool
) -> Plan:
    """What is committed of the shards, and what is left.

    Args:
        shards: of the data set.
        storage: OUT.
        options: fsspec options for reading the shards.
        redo_changed: forget what was made of sources that have changed since.

    Raises:
        ConfigError: no shard is there.
        RunError: receipts that cannot be trusted.
    """
    sources, missing = sources_of(shards, options)
    if not sources:
        reason = next(iter(missing.values()), "the data set is empty")
        raise ConfigError(f"none of {len(shards)} shards is there: {reason}")
    receipts = load_receipts(storage)
    all_states = by_shard(receipts)
    states = {shard.name: all_states.get(shard.name, ShardState()) for shard in shards}
    changed = [
        shard.name
        for shard in shards
        if states[shard.name].receipts
        and shard.name in sources
        and task_of(shard, states[shard.name]).source != sources[shard.name]
    ]
    if changed and redo_changed:
        forget(storage, [states[name] for name in changed])
        receipts = [receipt for receipt in receipts if receipt.shard not in set(changed)]
        states |= {name: ShardState() for name in changed}
        changed = []
    left_alone = set(changed) | set(missing)
    tasks = [
        task_of(
            shard,
            states[shard.name],
            size_bytes=len(shard.members) or sources[shard.name].size_bytes,
        )
        for shard in shards
        if not states[shard.name].is_final and shard.name not in left_alone
    ]
    return Plan(shards, sources, missing, states, changed, receipts, tasks)


def forget(storage: Storage, states: Sequence[ShardState]) -> None:
    """Remove receipts of changed sources, last ones first, and the manifests that hold them."""
    for name in storage.entries("manifests"):
        storage.delete(f"manifests/{name}")
    for state in states:
        for receipt in reversed(state.receipts):
            storage.delete(f"receipts/{receipt.name}")


def tally_of(plan: Plan) -> Tally:
    """How the run stands before it begins."""
    receipts = [receipt for state in plan.states.values() for receipt in state.receipts]
    stale = "its source has changed since it was begun (changed_inputs=redo does it anew)"
    return Tally(
        num_shards=len(plan.shards),
        done_shards=sum(state.is_final for state in plan.states.values()),
        failed=plan.missing
        | {name: stale for name in plan.changed if not plan.states[name].is_final},
        to_cover=sum(task.remaining for task in plan.tasks),
        before={
            "videos": sum(receipt.videos for receipt in receipts),
            "clips": sum(receipt.rows for receipt in receipts),
            "quarantined": sum(len(receipt.quarantined) for receipt in receipts),
            "filtered": sum(sum(receipt.filtered.values()) for receipt in receipts),
        },
    )
