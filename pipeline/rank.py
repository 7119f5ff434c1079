"""Which of several processes this is (``cluster=array``), and which shards are its share. Pure.

Who started the processes says it in the environment. The share of a rank is made of hashes of shard
names alone, so that nobody needs to talk to anybody; receipts say what is done, so another number
of ranks may continue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.segments import ShardTask

VARIABLES = {
    "SLURM_ARRAY_TASK_ID": "SLURM_ARRAY_TASK_COUNT",
    "JOB_COMPLETION_INDEX": None,
    "SKYPILOT_NODE_RANK": "SKYPILOT_NUM_NODES",
}
"""What holds the rank -> what holds the number of ranks; Kubernetes does not tell that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One of several processes that share the shards of a run."""

    number: int
    """From 0 on."""
    ranks: int
    """How many there are."""

    def owns(self, shard: str) -> bool:
        """Whether a shard is of this rank's share."""
        return _hash(shard) % self.ranks == self.number

    def share_of(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """The tasks of this rank's share."""
        return [task for task in tasks if self.owns(task.shard.name)]

    def to_steal(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """What may be done for others, what is best to take first.

        Shards that nobody has begun are before those that somebody may be at; among them every rank
        has an order of its own, so that two seldom take the same. What is tried again (``retry``)
        stays with its rank: that it was tried is not to be seen where nothing came of it.
        """
        return sorted(
            (task for task in tasks if not task.is_retry),
            key=lambda task: (task.next_segment > 0, _hash(f"{self.number}/{task.shard.name}")),
        )

    def __str__(self) -> str:
        """Its number and the number of ranks.

        >>> str(Rank(number=1, ranks=4))
        'rank 1 of 4'
        """
        return f"rank {self.number} of {self.ranks}"


def find_rank(rank: int | None, ranks: int | None, environment: Mapping[str, str]) -> Rank:
    """This process's rank.

    Args:
        rank: ``cluster.rank``; null: what the environment says.
        ranks: ``cluster.ranks``; null: what the environment says.
        environment: of this process.

    Raises:
        ConfigError: one of the two is not known, or they do not fit.
    """
    source, ranks_source = "cluster.rank", "cluster.ranks"
    if rank is None:
        source = _rank_variable(environment)
        rank = _number(environment, source)
        if source == "SLURM_ARRAY_TASK_ID":
            rank -= _first_of_slurm(environment)
    if ranks is None:
        ranks_source = _ranks_variable(source, environment)
        ranks = _number(environment, ranks_source)
    if not 0 <= rank < ranks:
        raise ConfigError(
            f"rank {rank} ({source}) must be from 0 to {ranks - 1}, as there are {ranks} ranks "
            f"({ranks_source})"
        )
    return Rank(number=rank, ranks=ranks)


def _rank_variable(environment: Mapping[str, str]) -> str:
    found = [name for name in VARIABLES if name in environment]
    if not found:
        raise ConfigError(
            f"cluster=array does not know which rank this is: none of {', '.join(VARIABLES)} is "
            "set; give cluster.rank=N cluster.ranks=COUNT"
        )
    if len(found) > 1:
        raise ConfigError(
            f"cluster=array does not know which rank this is: {' and '.join(found)} are set; "
            "give cluster.rank=N cluster.ranks=COUNT"
        )
    return found[0]


def _ranks_variable(source: str, environment: Mapping[str, str]) -> str:
    name = VARIABLES.get(source)
    if name is None or name not in environment:
        missing = f", and {name} is not set" if name else ""
        raise ConfigError(
            f"the rank is known ({source}), the number of ranks is not{missing}: give "
            "cluster.ranks=COUNT, the same for every rank"
        )
    return name


def _first_of_slurm(environment: Mapping[str, str]) -> int:
    """The array's first index, as ``--array=1-4`` counts from 1.

    Raises:
        ConfigError: its indices have gaps.
    """
    name = "SLURM_ARRAY_TASK_MIN"
    first = _number(environment, name) if name in environment else 0
    bounds = ("SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    if all(bound in environment for bound in bounds):
        last, count = (_number(environment, bound) for bound in bounds)
        if last - first + 1 != count:
            raise ConfigError(
                f"the Slurm array has {count} indices between {first} and {last}: its ranks need "
                f"indices without gaps, such as --array=0-{max(0, count - 1)}"
            )
    return first


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"the environment variable {name} must be a number, got {text!r}")
    return int(text)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
