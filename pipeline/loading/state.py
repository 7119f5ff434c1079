"""The state of a loader: a few numbers and digests, whatever the size of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch

from pipeline.errors import RunError
from pipeline.loading.batching import Batching
from pipeline.loading.snapshot import Snapshot

STATE_VERSION = 5
"""Raised when an older state would continue elsewhere."""

OF_DATA_SET = frozenset({"version", "epoch", "samples", "manifest", "selection"})
"""What every state of a token data set has."""

_OF_WORKERS = frozenset({"next_step", "num_workers"})

_REMEDIES = {
    "version": "continue with the code that wrote the state",
    "manifest": "open the data set with manifest=state['manifest']",
    "selection": "open it with the filters of the run that wrote the state",
    "num_streams": "open it with num_streams= of the run that wrote the state",
    "batching": ("open it with tokens_per_batch= and pack_length= of the run that wrote the state"),
    "global_batch": (
        "choose batch_size and world_size with the same product, or "
        "load_state_dict(state, convert_batch=True)"
    ),
}


def identity(snapshot: Snapshot, batching: Batching) -> dict[str, Any]:
    """The state at the start of epoch 0: what a loader has in common with one that continues it."""
    classes = snapshot.classes
    batches = sorted(set(batching.global_batches(classes)))
    return {
        "version": STATE_VERSION,
        "epoch": 0,
        "samples": 0,
        "manifest": snapshot.manifest,
        "selection": snapshot.selection,
        "seed": batching.seed,
        "shuffle": batching.shuffle,
        "drop_last": batching.drop_last,
        "batching": batching.text,
        "num_streams": sum(batching.streams(classes)) if batching.shuffle else 0,
        "global_batch": batches[0] if len(batches) == 1 else batches,
    }


def next_step_of(state: Mapping[str, Any], data_set: str) -> int | None:
    """The step that this worker process makes next, where a state of the same worker says so.

    Raises:
        RunError: it is one of another number of workers.
    """
    worker = torch.utils.data.get_worker_info()
    if worker is None or "next_step" not in state:
        return None
    if state["num_workers"] != worker.num_workers:
        raise RunError(
            f"the state is one of {state['num_workers']} worker processes, here are "
            f"{worker.num_workers}; load {data_set}.state_of(state) into the data set"
        )
    return state["next_step"]  # type: ignore[no-any-return]


def portable(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without what is of a worker process."""
    return {name: value for name, value in state.items() if name not in _OF_WORKERS}


def check_state(state: Mapping[str, Any], mine: Mapping[str, Any], *, convert_batch: bool) -> None:
    """Refuse a state that this loader would not continue exactly.

    Args:
        state: to be loaded.
        mine: this loader's.
        convert_batch: another global batch is meant.

    Raises:
        RunError: no such state, or one of another order; names the key, both values, the remedy.
    """
    for name, value in mine.items():
        if name not in state:
            raise RunError(f"this is no state of a TokenDataset: it has no {name!r}")
        if name in ("epoch", "samples"):
            if type(state[name]) is not int or state[name] < 0:
                raise RunError(f"{name} of a state must be a number from 0 on: {state[name]!r}")
        elif state[name] != value and not (name == "global_batch" and convert_batch):
            remedy = _REMEDIES.get(name, f"open it with {name}= of the run that wrote the state")
            raise RunError(
                f"the state cannot be continued here: its {name} is {state[name]!r}, "
                f"this data set's {value!r}; {remedy}"
            )


def states_in(record: Any, keys: Set[str] = OF_DATA_SET) -> Iterator[dict[str, Any]]:
    """All states inside of nested records, such as a stateful loader's.

    Args:
        record: nested.
        keys: those of a state of the wanted kind.
    """
    if isinstance(record, Mapping):
        if keys <= record.keys():
            yield dict(record)
        else:
            for value in record.values():
                yield from states_in(value, keys)
    elif isinstance(record, (list, tuple)):
        for value in record:
            yield from states_in(value, keys)


def elastic_state(record: Any) -> dict[str, Any]:
    """The state that a stateful loader's record stands for, without its worker processes.

    Raises:
        RunError: there is none in it.
    """
    found = list(states_in(record))
    if not found:
        raise RunError("no state of a TokenDataset in there; was it taken before the first batch?")
    # every worker's state tells what it has handed over; what comes next is the last one's
    state = max(found, key=lambda one: (one["epoch"], one["samples"]))
    return portable(state)
