"""A training on Ray Train: one process a worker, started again where one dies.

Workers and driver tell each other two things by files in RUN, which all of them see: ``stop``, that
a checkpoint be written and all end, and ``failed``, the one line about what no new start will mend.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from jobs.training.launch import stopped_by_signals
from jobs.training.plan import TrainingPlan
from jobs.training.progress import TrainingLine
from jobs.training.session import train
from jobs.training.workers import Worker
from pipeline.errors import PipelineError, RunError
from tokenizer import TokenizerError

FOLLOW_SECONDS = 1.0
"""Between two looks at the curve, from which the driver's line is drawn."""
TAIL_BYTES = 1 << 16
STOP, FAILED = "stop", "failed"


def train_on_ray(plan: TrainingPlan, *, cpus_per_worker: float, max_failures: int) -> bool:
    """Train on the Ray that this process is connected to; whether all steps are done.

    Args:
        plan: of the training.
        cpus_per_worker: cores that Ray counts for one.
        max_failures: deaths of workers that are answered with a new start; -1: all.

    Raises:
        RunError: workers said why it cannot go on, or died too often.
    """
    plan.run.mkdir(parents=True, exist_ok=True)
    for name in (STOP, FAILED):
        (plan.run / name).unlink(missing_ok=True)
    resources = {"CPU": cpus_per_worker}
    if plan.device == "cuda":
        resources["GPU"] = 1.0
    trainer = TorchTrainer(
        worker_main,  # type: ignore[arg-type]  # what it gives is in return_value
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if plan.device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.device == "cuda",
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # Ray's own notes on this start; what a training continues from is in RUN.
            name=f"start-{time.time_ns()}",
            storage_path=str(plan.run / "ray"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    with followed(plan), stopped_by_signals((plan.run / STOP).touch):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            line = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
            raise RunError(f"workers failed more than {max_failures} times: {line}") from error
    failed = plan.run / FAILED
    if failed.exists():
        text = failed.read_text()
        failed.unlink()
        raise RunError(text)
    return bool(result.return_value)  # type: ignore[attr-defined]


def worker_main(config: dict[str, Any]) -> bool:
    """One worker, in a process of Ray Train."""
    plan: TrainingPlan = config["plan"]
    failed = plan.run / FAILED
    if failed.exists():  # a new start after it: end all, so that the driver can tell
        return False
    worker = Worker(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=get_device() if plan.device == "cuda" else torch.device("cpu"),
    )
    try:
        return train(plan, worker, is_stopping=(plan.run / STOP).exists)
    except (PipelineError, TokenizerError) as error:
        failed.write_text(f"worker {worker.rank}: {error}")
        traceback.print_exc()
        raise


@contextlib.contextmanager
def followed(plan: TrainingPlan) -> Iterator[None]:
    """Show the line of a training by looking at its curve, in a thread of the driver."""
    is_over = threading.Event()

    def follow(line: TrainingLine) -> None:
        seen = 0
        while not is_over.wait(FOLLOW_SECONDS):
            values = last_values(plan.run / "curve.jsonl")
            if values and values["step"] != seen:
                seen = int(values["step"])
                line.show(seen, values)

    with TrainingLine(plan.steps) as line:
        thread = threading.Thread(target=follow, args=(line,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def last_values(curve: Path) -> dict[str, float] | None:
    """The last whole line of a curve."""
    try:
        with curve.open("rb") as file:
            file.seek(max(0, curve.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    try:
        return dict(json.loads(lines[-1])) if lines else None
    except ValueError:  # cut by the window, or by a kill
        return None
