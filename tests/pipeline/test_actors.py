"""What the driver is told when a process or its answer is gone, without a cluster."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import NodeDiedError, ObjectLostError, OwnerDiedError

from pipeline.actors import EncoderActor
from pipeline.driver import RayWorkers
from pipeline.errors import WorkerLost
from pipeline.schedule import Finished
from pipeline.segments import ShardTask
from tests.pipeline.fakes import shard

REMOTE: Any = EncoderActor
ACTOR = REMOTE.__ray_metadata__.modified_class
"""The class as it is written, without a cluster around it."""


def called_without_start(method: str) -> None:
    getattr(ACTOR(None), method)(*{"run_shard": [None], "ask": ["a", None]}.get(method, []))


@pytest.mark.parametrize(
    ("method", "code"), [("run_shard", 1), ("ask", 1), ("report", 1), ("close", 0)]
)
def test_a_process_that_took_a_dead_ones_place_unheard_dies_when_it_is_asked(
    method: str, code: int
) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=called_without_start, args=[method]
    )
    process.start()
    process.join(30)
    assert process.exitcode == code


@pytest.mark.parametrize(
    "error",
    [
        ObjectLostError("00", None, ""),
        OwnerDiedError("00", None, ""),
        NodeDiedError("the node has gone"),
    ],
)
def test_an_answer_that_went_with_its_node_is_a_lost_attempt(error: Exception) -> None:
    task = ShardTask(shard=shard("s"), source=None)
    answer: Future[Any] = Future()
    answer.set_exception(error)
    workers: Any = SimpleNamespace()
    actor: Any = SimpleNamespace(attempts={task.attempt})
    ended = RayWorkers._collect(workers, actor, "worker-0.0", task, answer)
    assert isinstance(ended, Finished)
    assert isinstance(ended.error, WorkerLost)
    assert "its answer is lost" in str(ended.error)
    assert actor.attempts == set()
