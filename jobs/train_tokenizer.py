"""Trains a tokenizer, in stages, on videos of tars or folders.

    python -m jobs.train_tokenizer +dataset=tars dataset.shards=/d/{00..99}.tar \
        +tokenizer=demo +stage=one train.run=runs/one
    python -m jobs.train_tokenizer ... +stage=two train.start=runs/one train.run=runs/two

Tells the story of a training; every step of it lives in ``jobs/training``. Nothing that crosses a
process boundary is defined here, where it would belong to ``__main__``.
"""

from __future__ import annotations

import logging
import sys

import hydra
from omegaconf import DictConfig

from jobs.training import compose
from jobs.training.config import TrainConfig
from pipeline.command_line import carry_out
from pipeline.config import ClusterKind
from pipeline.errors import Interrupted, PipelineError
from tokenizer import TokenizerError

logger = logging.getLogger(__name__)


def main() -> None:
    """Check the command line, then let Hydra run it."""
    compose.register_schema()
    try:
        compose.check_command(compose.arguments())
    except (PipelineError, TokenizerError) as error:
        sys.exit(f"error: {error}")
    run_composed()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
def run_composed(config: DictConfig) -> None:
    """Carry out one composed configuration."""
    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)  # the plan says it
    try:
        execute(compose.to_train_config(config))
    except (Interrupted, KeyboardInterrupt):
        sys.exit("interrupted; the same command continues at the last checkpoint")
    except (PipelineError, TokenizerError, OSError) as error:
        logger.debug("stopped", exc_info=True)
        sys.exit(f"error: {error}")


def execute(config: TrainConfig) -> None:
    """Train what is left of RUN.

    Raises:
        Interrupted: it was asked to stop, and has saved where it is.
        PipelineError, TokenizerError: it cannot begin or go on.
    """
    import torch

    from jobs.training import resolve
    from jobs.training.record import check_record, write_record
    from jobs.training.summary import conclusion, describe

    num_gpus = torch.cuda.device_count() if config.train.device != "cpu" else 0
    kind = resolve.cluster_kind(config, num_gpus)
    if kind is not ClusterKind.inline:
        from pipeline.driver import start_ray

        # Ray Train asks Ray's dashboard how its controller is, and complains every second without.
        address = config.cluster.address if kind is ClusterKind.ray else None
        found = start_ray(address, dashboard=True)
        num_gpus = int(found.num_gpus)
    workers = config.cluster.workers or (max(1, num_gpus) if kind is not ClusterKind.inline else 1)
    plan = resolve.training_plan(config, num_gpus=num_gpus, workers=workers)
    material = resolve.material(config, plan)
    check_record(plan.run, material)
    print(describe(config, plan), flush=True)
    if config.dry_run:
        return
    plan.run.mkdir(parents=True, exist_ok=True)
    write_record(plan.run, material, resolve.extra(plan))
    if kind is ClusterKind.inline:
        from jobs.training.launch import train_inline

        is_done = train_inline(plan)
    else:
        from jobs.training.on_ray import train_on_ray

        is_done = train_on_ray(
            plan,
            cpus_per_worker=config.cluster.cpus_per_worker,
            max_failures=config.cluster.max_failures,
        )
    if not is_done:
        raise Interrupted(f"{plan.run} has steps left")
    print(conclusion(plan), flush=True)


if __name__ == "__main__":
    carry_out(main)
