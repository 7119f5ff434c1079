"""One worker's part of a training: from the last checkpoint of RUN to its last step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from enum import Enum
from typing import Any, cast

import torch

from jobs.loss_curve import Curve
from jobs.ranks import take_lock
from jobs.training.album import Album
from jobs.training.beginning import begin, make_training
from jobs.training.checkpoints import Checkpoints, latest_checkpoint, read_state
from jobs.training.memory import keep_freed_memory
from jobs.training.plan import TrainingPlan
from jobs.training.scalars import Scalars
from jobs.training.workers import Worker
from pipeline.errors import RunError
from pipeline.training.clips import Batch, TrainingClips

_DETERMINISTIC: Any = torch.utils.deterministic

Show = Callable[[int, Mapping[str, float]], None]
"""Takes step and scalars for whoever watches."""


class Next(Enum):
    """What follows a step."""

    go_on = "go_on"
    save = "save"
    stop = "stop"


def train(
    plan: TrainingPlan,
    worker: Worker,
    *,
    is_stopping: Callable[[], bool] = lambda: False,
    show: Show = lambda step, values: None,
) -> bool:
    """Train what is left.

    Args:
        plan: the same for all workers.
        worker: this one.
        is_stopping: asked by the first worker after each step: save and end.
        show: called by the first worker after each step.

    Returns:
        Whether all steps are done.

    Raises:
        RunError: the RUN, its clips or its losses do not let it go on.
    """
    if worker.device.type == "cpu":
        keep_freed_memory()
    plan.run.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if worker.is_first:
            lock = held.enter_context((plan.run / "lock").open("w"))
            take_lock(lock, plan.run)
        return _Session(plan, worker, held).train(is_stopping, show)


class _Session:
    def __init__(self, plan: TrainingPlan, worker: Worker, held: ExitStack) -> None:
        self._plan, self._worker = plan, worker
        _prepare_arithmetic(plan)
        # The lock is held by now, and nobody else writes checkpoints.
        checkpoint = worker.decided(lambda: latest_checkpoint(plan.run))
        torch.manual_seed(plan.seed)
        self._training = make_training(plan, worker)
        self._feed = _open_feed(plan, worker)
        if checkpoint is None:
            begin(self._training, plan)
            torch.manual_seed(plan.seed + 1 + worker.rank)
        else:
            self._load(read_state(checkpoint))
        self._checkpoints = Checkpoints(plan.run, keep=plan.save.keep)
        self._saved_at = time.monotonic()
        self._curve: Curve | None = None
        if worker.is_first:
            self._curve = Curve(plan.run / "curve.jsonl", self._step)
            self._album = Album(plan.run / "pictures", plan.show, self._training)
            self._scalars = Scalars(
                plan.run / "tensorboard", self._step, wanted=plan.show.tensorboard
            )
            held.callback(self._scalars.close)

    @property
    def _step(self) -> int:
        return int(self._training.num_steps)

    def train(self, is_stopping: Callable[[], bool], show: Show) -> bool:
        """As the function of this name."""
        with closing(cast(Generator[Batch], iter(self._feed))) as batches:
            while self._step < self._plan.steps:
                self._train_step(next(batches), show)
                follows = self._worker.decided(lambda: self._follows(is_stopping))
                if follows is not Next.go_on:
                    self._save()
                if follows is Next.stop:
                    break
        return self._step >= self._plan.steps

    def _train_step(self, batch: Batch, show: Show) -> None:
        if self._curve is not None:
            self._album.open(batch[0], self._step)
        parts = torch.from_numpy(batch).chunk(self._plan.stage.accumulate)
        values = self._training.step([part.to(self._worker.device) for part in parts])
        _check(values, self._step, self._plan)
        if self._curve is not None:
            self._note(values, show)

    def _note(self, values: Mapping[str, float], show: Show) -> None:
        assert self._curve is not None
        feed = {"epoch": self._feed.epoch, "skipped_videos": self._feed.tally.num_bad}
        values = {**values, **feed}
        self._curve.add(step=self._step, **values)
        self._scalars.add(self._step, values)
        self._album.step(self._step)
        show(self._step, values)

    def _follows(self, is_stopping: Callable[[], bool]) -> Next:
        if is_stopping():
            return Next.stop
        rules, step = self._plan.save, self._step
        is_due = (
            step % rules.every_steps == 0
            or step == self._plan.steps
            or time.monotonic() - self._saved_at >= rules.every_seconds
        )
        return Next.save if is_due else Next.go_on

    def _save(self) -> None:
        """Write a checkpoint, by the first worker; the others tell it where they are."""
        own = {"feed": self._feed.state_dict(), "random": self._training.random_state()}
        ranks = self._worker.gathered(own)
        if self._curve is not None:
            self._curve.sync()
            training = self._training
            self._checkpoints.save(
                self._step,
                {"training": training.state_dict(), "ranks": ranks},
                training.published_state_dict(),
                ema=training.published_state_dict(ema=True) if training.has_ema else None,
                fp16=self._plan.save.fp16,
            )
        # All wait: a worker that goes on alone would be ahead of what is saved.
        self._worker.decided(lambda: None)
        self._saved_at = time.monotonic()

    def _load(self, state: dict[str, Any]) -> None:
        own = state["ranks"][self._worker.rank]
        self._training.load_state_dict(state["training"])
        self._training.load_random_state(own["random"])
        self._feed.load_state_dict(own["feed"])


def _open_feed(plan: TrainingPlan, worker: Worker) -> TrainingClips:
    feed = plan.feed
    return TrainingClips(
        feed.shards,
        feed.recipe,
        batch_clips=plan.worker_batch,
        rules=feed.read_rules,
        rank=worker.rank,
        world_size=worker.world_size,
        options=feed.options,
        limits=feed.limits,
        num_children=feed.decoders,
        prefetch_bytes=feed.prefetch_bytes,
        max_bad_fraction=feed.max_bad_fraction,
        min_videos=feed.min_videos,
    )


def _prepare_arithmetic(plan: TrainingPlan) -> None:
    torch.set_num_threads(plan.threads)
    if plan.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # A warning where a kernel has no such form: the run is then equal but for last bits.
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling memory that is about to be written would make no step the same that is not.
        _DETERMINISTIC.fill_uninitialized_memory = False


def _check(values: Mapping[str, float], step: int, plan: TrainingPlan) -> None:
    """Raises RunError when numbers have left the finite ones: nothing later would mean anything."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise RunError(
            f"step {step} gave {', '.join(f'{name}={values[name]}' for name in wrong)}; nothing of "
            f"it is saved in {plan.run}: go on in another train.run, with train.start={plan.run} "
            "and a lower train.learning_rate or train.precision=fp32"
        )
