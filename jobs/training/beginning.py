"""Where a training begins: random weights, those of an earlier stage, or published ones."""

from __future__ import annotations

import sys

from jobs.training.plan import TrainingPlan
from jobs.training.workers import Worker
from tokenizer import load_tokenizer
from tokenizer.checkpoint import AUTO, RANDOM, read_tensors
from tokenizer.fetch import fetch
from tokenizer.metrics.lpips import LPIPS
from tokenizer.training.loop import Training

LOSS = "loss."
"""What names begin with that belong to the objective, not to the model."""
_UNPUBLISHED = {"lecam.real_mean", "lecam.fake_mean"}
"""Running means that published files do not hold; without them both begin at 0."""


def make_training(plan: TrainingPlan, worker: Worker) -> Training:
    """Model and objective on the device of the worker, the model with its first weights."""
    model = load_tokenizer(
        plan.tokenizer, RANDOM if plan.start is None else plan.start, seed=plan.seed
    )
    model.requires_grad_(True)
    lpips = None
    if plan.lpips_net is not None:
        lpips = LPIPS(plan.lpips_net, plan.lpips_weights).to(worker.device)
    return Training(model.to(worker.device), plan.stage, lpips)


def begin(training: Training, plan: TrainingPlan) -> None:
    """Take over log-variance and discriminator where the file of the start has them."""
    if plan.start is None:
        return
    source = plan.tokenizer.checkpoint_url if plan.start == AUTO else plan.start
    assert source is not None  # load_tokenizer has refused it
    tensors = read_tensors(fetch(source))
    found = {
        name.removeprefix(LOSS): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if name.startswith(LOSS)
    }
    wanted = training.objective.state_dict()
    fitting = {
        name: found[name]
        for name, value in wanted.items()
        if name in found and found[name].shape == value.shape
    }
    missing = sorted(wanted.keys() - fitting.keys())
    if _UNPUBLISHED.issuperset(missing):
        training.objective.load_state_dict(fitting, strict=False)
    elif found:
        print(
            f"{plan.start}: its loss does not fit ({missing[0]} and {len(missing) - 1} others are "
            "missing or of another shape), so log-variance and discriminator begin anew",
            file=sys.stderr,
        )
