"""Which faults happen when: drawn from a seed, before anything is started. Pure."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

FAULTS_PER_MINUTE = 7.0
MIN_FAULTS = 8
"""Even in a short drill, all of different kinds."""


class Kind(enum.Enum):
    """What is done to a run. The value says it to a person."""

    decoder_killed = "SIGKILL of a decoder child"
    worker_killed = "SIGKILL of a worker"
    worker_stopped = "SIGSTOP of a worker for some seconds"
    worker_lies = "a worker's arithmetic is corrupted"
    driver_killed = "SIGKILL of the driver, then the same command"
    driver_interrupted = "Ctrl-C of the driver, then the same command"
    raylet_killed = "SIGKILL of a raylet, then a new node"
    node_killed = "SIGKILL of a whole node, then a new node"
    node_drained = "SIGTERM of a node's raylet, then a new node"
    storage_refuses = "S3 answers 503 and 500"
    storage_drops = "S3 drops connections"
    storage_cuts = "S3 cuts bodies"
    storage_delays = "S3 answers late"
    storage_stalls = "S3 falls silent in the middle of an answer"
    storage_loses_answers = "S3 carries writes out and loses the answer"


WEIGHTS = {
    Kind.decoder_killed: 6,
    Kind.worker_killed: 5,
    Kind.worker_stopped: 3,
    Kind.worker_lies: 0,
    Kind.driver_killed: 2,
    Kind.driver_interrupted: 1,
    Kind.raylet_killed: 1,
    Kind.node_killed: 1,
    Kind.node_drained: 1,
    Kind.storage_refuses: 3,
    Kind.storage_drops: 2,
    Kind.storage_cuts: 3,
    Kind.storage_delays: 1,
    Kind.storage_stalls: 1,
    Kind.storage_loses_answers: 3,
}
"""How often a kind is drawn beyond its first time; a lie is told once."""


@dataclass(frozen=True, slots=True, order=True)
class Planned:
    """A fault to come."""

    at_seconds: float
    """From the first commit of the run on."""
    kind: Kind


def schedule(*, minutes: float, seed: int) -> list[Planned]:
    """The faults of a drill, in order of time; every kind once before any comes again.

    A drill too short for all kinds leaves some out, never the lie.
    """
    dice = random.Random(seed)
    number = max(MIN_FAULTS, round(FAULTS_PER_MINUTE * minutes))
    first = [kind for kind in Kind if kind is not Kind.worker_lies]
    dice.shuffle(first)
    kinds = [Kind.worker_lies, *first][:number]
    kinds += dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=number - len(kinds))
    dice.shuffle(kinds)
    step = 60.0 * minutes / number
    return [
        Planned(at_seconds=round(step * (place + dice.random()), 1), kind=kind)
        for place, kind in enumerate(kinds)
    ]
