"""What is left to do in an OUT: shards against receipts. Runs at the start of every command."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.attempts import joint
from pipeline.books import Book, Books
from pipeline.errors import ConfigError
from pipeline.inputs import sources_of
from pipeline.ledger import Ledger, task_of
from pipeline.reader import Source
from pipeline.receipts import list_receipts
from pipeline.records import Retry
from pipeline.segments import ShardTask, joined
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tally import OutputTally, Tally


@dataclass(slots=True)
class Plan:
    """What is left to do in an OUT."""

    shards: list[Shard]
    sources: dict[str, Source]
    missing: dict[str, str]
    """Shards that are not where they should be, and why."""
    changed: list[str]
    """Shards whose source is not what their receipts say."""
    storage: Storage
    """OUT."""
    ledger: Ledger
    """What is committed in OUT, also of shards that this run does not name."""
    tasks: list[ShardTask]

    def final_shards(self) -> set[str]:
        """Names of its shards that are final by now."""
        names = (shard.name for shard in self.shards)
        return {name for name in names if self.ledger.state(name).is_final}

    @property
    def amending(self) -> list[ShardTask]:
        """Tasks that try quarantined videos again."""
        return [task for task in self.tasks if task.amends]

    @property
    def continuing(self) -> list[ShardTask]:
        """Tasks that begin at a cut."""
        return [task for task in self.tasks if task.continues_cut]


def make_plan(
    shards: list[Shard],
    storage: Storage,
    *,
    options: Mapping[str, Any],
    redo_changed: bool,
    retry: Retry | None = None,
    found: tuple[dict[str, Source], dict[str, str]] | None = None,
) -> Plan:
    """What is committed of the shards, and what is left.

    Args:
        shards: of the data set.
        storage: OUT.
        options: fsspec options for reading the shards.
        redo_changed: forget what was made of sources that have changed since.
        retry: what of the committed part is tried again.
        found: sources of shards, and of missing ones why; None: to be looked for.

    Raises:
        ConfigError: no shard is there.
        RunError: receipts that cannot be trusted.
    """
    sources, missing = found or sources_of(shards, options)
    if not sources:
        reason = next(iter(missing.values()), "the data set is empty")
        raise ConfigError(f"none of {len(shards)} shards is there: {reason}")
    ledger = Ledger.open(storage)
    changed = [
        shard.name
        for shard in shards
        if shard.name in sources
        and ledger.state(shard.name).source not in (None, sources[shard.name])
        # another source is what a cut shard waits for
        and not (retry is Retry.incomplete and ledger.state(shard.name).cut_reason is not None)
    ]
    if changed and redo_changed:
        forget(storage, set(changed))
        ledger, changed = Ledger.open(storage), []
    left_alone = set(changed) | set(missing)
    tasks = []
    for shard in shards:
        if shard.name not in left_alone:
            size = len(shard.members) or sources[shard.name].size_bytes
            task = task_of(shard, ledger.state(shard.name), retry, size_bytes=size)
            tasks += [task] if task is not None else []
    return Plan(shards, sources, missing, changed, storage, ledger, tasks)


def forget(storage: Storage, shards: Collection[str]) -> None:
    """Remove receipts of changed sources, last ones first, and the manifests that hold them."""
    for name in storage.entries("manifests"):
        storage.delete(f"manifests/{name}")
    for receipt in reversed(list_receipts(storage)):
        if receipt.shard in shards:
            storage.delete(f"receipts/{receipt}")


def tally_of(plan: Plan) -> Tally:
    """How the run stands before it begins."""
    counts = plan.ledger.counts(shard.name for shard in plan.shards)
    # what is tried again is counted again by the workers
    again = sum(plan.ledger.state(task.shard.name).num_retriable for task in plan.amending)
    stale = "its source has changed since it was begun (changed_inputs=redo does it anew)"
    return Tally(
        num_shards=len(plan.shards),
        done_shards=counts.final_shards
        - sum(plan.ledger.state(task.shard.name).is_final for task in plan.tasks),
        failed=plan.missing
        | {name: stale for name in plan.changed if not plan.ledger.state(name).is_final},
        to_cover=sum(task.remaining for task in plan.tasks),
        before={
            "videos": counts.videos - again,
            "clips": counts.clips,
            "quarantined": counts.quarantined.total() - again,
            "filtered": counts.filtered.total(),
        },
    )


def tasks_of(plans: Sequence[Plan]) -> list[ShardTask]:
    """One task for every shard of which something is left in any output.

    Args:
        plans: by output, of the same shards.
    """
    left = [{task.shard.name: task for task in plan.tasks} for plan in plans]
    found = (joined([tasks.get(shard.name) for tasks in left]) for shard in plans[0].shards)
    return [task for task in found if task is not None]


def books_of(plans: Sequence[Plan], fingerprints: Sequence[str]) -> Books:
    """The books of the outputs of these plans."""
    return Books(
        Book(plan.storage, plan.ledger, fingerprint)
        for plan, fingerprint in zip(plans, fingerprints, strict=True)
    )


def joint_tally(plans: Sequence[Plan]) -> Tally:
    """How a run with these outputs stands before it begins."""
    tallies = [tally_of(plan) for plan in plans]
    if len(plans) == 1:
        return tallies[0]
    todo = {task.shard.name for task in tasks_of(plans)}
    return Tally(
        num_shards=len(plans[0].shards),
        done_shards=len(set.intersection(*(plan.final_shards() for plan in plans)) - todo),
        failed={name: why for tally in tallies for name, why in tally.failed.items()},
        to_cover=max(tally.to_cover for tally in tallies),
        before=joint([tally.before for tally in tallies]),
        outputs=[OutputTally(before=one.before, to_cover=one.to_cover) for one in tallies],
    )
