"""Rules of a training: where it begins, its files by path, its record, mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from jobs.training.beginning import begin, make_training
from jobs.training.plan import TrainingPlan
from jobs.training.resolve import training_plan
from jobs.training.workers import Worker
from tests.jobs.test_train_tokenizer import CHOSEN, TINY, composed


def plan_of(run: Path, *arguments: str) -> TrainingPlan:
    config = composed(*CHOSEN, *TINY, f"train.run={run}", *arguments)
    return training_plan(config, num_gpus=0, workers=1)


def test_a_start_without_lecams_means_still_brings_log_variance_and_discriminator(
    tmp_path: Path,
) -> None:
    worker = Worker(device=torch.device("cpu"))
    before = make_training(plan_of(tmp_path / "one"), worker)
    with torch.no_grad():
        before.objective.logvar.fill_(5)
        for parameter in before.objective.discriminator.parameters():
            parameter.add_(1)
    published = {
        name: value.contiguous()
        for name, value in before.published_state_dict().items()
        if "lecam" not in name
    }
    save_file(published, tmp_path / "published.safetensors")
    plan = plan_of(tmp_path / "two", f"train.start={tmp_path}/published.safetensors")
    after = make_training(plan, worker)
    begin(after, plan)
    assert float(after.objective.logvar) == 5
    assert float(after.objective.lecam.real_mean) == 0
    for name, value in before.objective.discriminator.state_dict().items():
        assert torch.equal(value, after.objective.discriminator.state_dict()[name]), name
