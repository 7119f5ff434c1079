"""What a person reads before and after a training."""

from __future__ import annotations

from pathlib import Path

from jobs.training.checkpoints import latest_checkpoint
from jobs.training.config import TrainConfig
from jobs.training.plan import TrainingPlan


def describe(config: TrainConfig, plan: TrainingPlan) -> str:
    """What will be done, in a few lines."""
    recipe, stage = plan.feed.recipe, plan.stage
    rates = ", ".join(f"{rate:g}" for rate in recipe.fps)
    fixed = ", encoder fixed" if stage.encoder_fixed else ""
    parts = f" in {stage.accumulate} parts" if stage.accumulate > 1 else ""
    where = f"{plan.workers} worker{'s' * (plan.workers != 1)} on {plan.device}"
    return "\n".join(
        [
            f"tokenizer {plan.tokenizer.name}, stage {config.train.stage}{fixed}: {plan.steps:,} "
            f"steps of {plan.batch} clips{parts}, {where}{' (dry run)' if config.dry_run else ''}",
            f"clips: {recipe.clip_frames} x {recipe.resolution} x {recipe.resolution} at {rates} "
            f"frames/s out of {len(plan.feed.shards)} shards of {config.dataset.name}",
            f"{beginning(plan)} -> {plan.run}",
        ]
    )


def beginning(plan: TrainingPlan) -> str:
    """Where the training starts or goes on."""
    checkpoint = latest_checkpoint(plan.run)
    if checkpoint is not None:
        return f"continuing behind {step_of(checkpoint):,} steps"
    return f"from {plan.start or f'random weights (seed {plan.seed})'}"


def step_of(checkpoint: Path) -> int:
    """Steps of a checkpoint's folder.

    >>> step_of(Path("run/checkpoints/step-00001000"))
    1000
    """
    return int(checkpoint.name.removeprefix("step-"))


def conclusion(plan: TrainingPlan) -> str:
    """The last lines."""
    checkpoint = latest_checkpoint(plan.run)
    assert checkpoint is not None  # the last step is saved
    files = ", ".join(sorted(path.name for path in checkpoint.glob("*.safetensors")))
    return (
        f"{step_of(checkpoint):,} steps are done; {checkpoint}: {files}\n"
        f"use: tokenizer.checkpoint={checkpoint}/weights.safetensors; "
        f"curve: {plan.run}/curve.jsonl; pictures: {plan.run}/pictures"
    )
