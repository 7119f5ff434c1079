"""What the driver and its workers say to each other: who is there, what is asked, how it ended.

An *owner* is one worker process at one time: a process that was restarted has another name, so that
nothing that was said to the one before can reach it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.receipts import Receipt
from pipeline.segments import ShardTask


class Wish(enum.Enum):
    """What a driver may ask of an attempt that is under way."""

    hand_back = "hand_back"
    """Commit what is done and end; somebody else goes on behind it."""
    abandon = "abandon"
    """End, and commit nothing more: somebody else has finished the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One attempt that came to an end."""

    task: ShardTask
    """What was attempted."""
    receipts: Sequence[Receipt] = ()
    """The segments that hold, when it succeeded: nothing is left of the shard."""
    error: BaseException | None = None
    """Why it did not; `HandedBack`: it was asked to end early."""
    counts_as_attempt: bool = True
    """False: the machine was taken away, which says nothing of the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A worker has loaded its model and takes attempts."""

    owner: str
    """Its name."""
    slots: int
    """Attempts that it may have open at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A worker takes no more attempts; those that it has end by a `Finished` each."""

    owner: str
    """Its name."""
    reason: str
    """Why, for a person."""


Event = Finished | Joined | Left


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker last said of itself."""

    counters: Mapping[str, float] = field(default_factory=dict)
    """``counters.Counters`` of all its outputs together; see `joint`."""
    outputs: tuple[Mapping[str, float], ...] = ()
    """The same of each output, where there are several; decoding is counted in the first."""
    covered: Mapping[str, int] = field(default_factory=dict)
    """Attempt -> bytes (members of a bucket) of its shard that it is done with."""

    @property
    def progress(self) -> float:
        """A number that changes whenever anything is done: time alone does not count."""
        return sum(n for key, n in self.counters.items() if not key.endswith("_seconds"))


class Workers(Protocol):
    """Where attempts run."""

    def events(self, timeout_seconds: float) -> list[Event]:
        """What happened since the last call; may be nothing.

        Raises:
            RunError: there is no worker and there will be none.
        """

    def submit(self, owner: str, task: ShardTask) -> None:
        """Begin an attempt."""

    def ask(self, owner: str, attempt: str, wish: Wish) -> None:
        """Ask something of an attempt; without effect when it has ended or its owner is gone."""

    def restart(self, owner: str) -> None:
        """End a worker that stands still; another takes its place where that is possible.

        Raises:
            RunError: it is not.
        """

    def expel(self, owner: str) -> None:
        """End a worker whose machine cannot be trusted; nothing takes its place there.

        Raises:
            RunError: no worker is left.
        """

    def reports(self, *, wait_seconds: float = 0.0) -> Mapping[str, WorkerReport]:
        """What each owner last said, also those that are gone; waits that long for fresh ones."""

    def close(self) -> None:
        """Stop everything that was started."""

    def stop_now(self) -> None:
        """The same without waiting for anybody, as this process ends; may be called by a signal."""


OF_ALL_OUTPUTS = ("videos", "quarantined", "filtered", "covered", "source_seconds")
"""Counters of videos, which are the same videos in every output."""


def joint(outputs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Counters of the outputs of one worker as those of one.

    They add up, but for those of videos: there the output counts that has most.

    >>> joint([{"videos": 3, "clips": 6}, {"videos": 2, "clips": 8}])
    {'videos': 3, 'clips': 14}
    """
    most = {
        key: max(output[key] for output in outputs)
        for key in OF_ALL_OUTPUTS
        if all(key in output for output in outputs)
    }
    return combined(outputs) | most


def combined(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Counters of several workers as those of one.

    They add up, but for ``peak_*`` and ``last_*`` (the largest) and ``first_*`` (the smallest that
    is not 0, which stands for "not yet").

    >>> combined([{"clips": 2, "peak_bytes": 5, "first_at": 0}, {"clips": 3, "first_at": 7}])
    {'clips': 5, 'peak_bytes': 5, 'first_at': 7}
    """
    total: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            if key.startswith(("peak_", "last_")):
                total[key] = max(total.get(key, 0), value)
            elif key.startswith("first_"):
                total[key] = min(filter(None, (total.get(key), value)), default=0)
            else:
                total[key] = total.get(key, 0) + value
    return total
