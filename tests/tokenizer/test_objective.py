"""The whole objective: published losses of four passes in a row, and who learns from what."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from tests.close import assert_close_loss
from tests.tokenizer.formulas import GOLDEN, pattern, weight
from tokenizer import ShapeError
from tokenizer.metrics.lpips import LPIPS
from tokenizer.training.losses import adaptive_weight, negative_log_likelihood
from tokenizer.training.objective import (
    DiscriminatorLoss,
    GeneratorLoss,
    Objective,
    ObjectiveConfig,
)

CASES = json.loads((GOLDEN / "training.json").read_text())["loss_cases"]
CONFIG = ObjectiveConfig(perceptual_weight=0, initial_log_variance=6.0, adversarial_start=3)
X = pattern(1, 3, 64, 64)
PENALTY = 0.3 + 1e-6 * 7.0


def objective_of(config: ObjectiveConfig = CONFIG, **changes: object) -> Objective:
    """With formula weights in its convolutions; fresh batch norms."""
    objective = Objective(dataclasses.replace(config, **changes))  # type: ignore[arg-type]
    for key, parameter in objective.discriminator.named_parameters():
        is_conv = key.rpartition(".")[0] in ("main.0", "main.11") or parameter.ndim > 1
        with torch.no_grad():
            if is_conv:
                parameter.copy_(torch.from_numpy(weight(f"disc.{key}", tuple(parameter.shape))))
            else:
                parameter.fill_(float(key.endswith("weight")))
    return objective


def reconstruct(last_weight: torch.Tensor) -> torch.Tensor:
    """A decoder of one 1 x 1 convolution."""
    return F.conv2d(X[0].transpose(0, 1), last_weight).transpose(0, 1)[None]


@pytest.fixture
def last_weight() -> torch.Tensor:
    return torch.from_numpy(weight("loss.lastw", (3, 3, 1, 1))).requires_grad_()


def test_four_passes_give_the_published_losses(last_weight: torch.Tensor) -> None:
    objective = objective_of()
    for batch in (0, 10):
        gold = CASES[f"step{batch}_opt0"]
        x_hat = reconstruct(last_weight)
        loss, logs = objective.autoencoder_loss(x_hat, X, PENALTY, batch, last_weight)
        assert_close_loss(loss, gold["loss"])
        assert ("g_loss" in logs) == (gold["t/disc_factor"] == 1)
        for name in logs.keys() - {"loss"}:
            assert_close_loss(logs[name], gold[f"t/{name}"])
        gold = CASES[f"step{batch}_opt1"]
        loss, logs = objective.discriminator_loss(x_hat, X, batch)
        assert_close_loss(loss, gold["loss"])
        for name in logs:
            assert_close_loss(logs[name], gold[f"t/{name}"])
    lecam = objective.lecam
    assert_close_loss(torch.stack((lecam.real_mean, lecam.fake_mean)), CASES["lecam"])


def test_the_adversarial_part_of_the_loss_is_the_published_one(last_weight: torch.Tensor) -> None:
    """Beside 73,741 it would not be seen."""
    objective = objective_of()
    _, logs = objective.autoencoder_loss(reconstruct(last_weight), X, 0.0, 10, last_weight)
    gold = CASES["step10_opt0"]
    expected = gold["t/d_weight"] * gold["t/g_loss"]
    assert float(logs["loss"] - logs["nll_loss"]) == pytest.approx(expected, abs=0.02)


def test_the_two_losses_teach_different_parameters(last_weight: torch.Tensor) -> None:
    objective = objective_of()
    x_hat = reconstruct(last_weight)
    objective.autoencoder_loss(x_hat, X, 0.0, 10, last_weight)[0].backward(retain_graph=True)
    assert last_weight.grad is not None
    assert objective.logvar.grad is not None
    discriminator = list(objective.discriminator.parameters())
    assert all(parameter.grad is None for parameter in discriminator)
    last_weight.grad = objective.logvar.grad = None
    objective.discriminator_loss(x_hat, X, 10)[0].backward()
    assert all(parameter.grad is not None for parameter in discriminator)
    assert last_weight.grad is objective.logvar.grad is None


def test_before_its_start_the_discriminator_costs_no_graph(last_weight: torch.Tensor) -> None:
    objective = objective_of()
    assert [objective.is_adversarial(batch) for batch in (0, 2, 3)] == [False, False, True]
    loss, _ = objective.discriminator_loss(reconstruct(last_weight), X, 0)
    assert not loss.requires_grad
    assert float(objective.lecam.real_mean) != 0


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_of_the_loss_are_those_of_its_weighted_parts(
    last_weight: torch.Tensor, dims: int
) -> None:
    objective, learned = objective_of(dims=dims), torch.tensor(0.7, requires_grad=True)
    parameters = (last_weight, objective.logvar, learned)
    x_hat = reconstruct(last_weight)
    loss, logs = objective.autoencoder_loss(x_hat, X, learned.square(), 10, last_weight)
    whole = torch.autograd.grad(loss, parameters)

    x_hat = reconstruct(last_weight)
    nll = negative_log_likelihood((X - x_hat).abs().transpose(1, 2)[0], objective.logvar)
    logits = objective.discriminator(x_hat[0].transpose(0, 1) if dims == 2 else x_hat)
    generator = F.softplus(-logits.flatten(1).mean(1)).mean()
    factor = 0.2 * adaptive_weight(
        *(torch.autograd.grad(part, last_weight, retain_graph=True)[0] for part in (nll, generator))
    )
    assert float(factor) == pytest.approx(float(logs["d_weight"]), rel=1e-4)
    straight = nll + factor * generator + learned.square()
    assert_close_loss(loss, straight)
    parts = torch.autograd.grad(straight, parameters)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": 3},
        {"discriminator_loss": DiscriminatorLoss.vanilla},
        {"generator_loss": GeneratorLoss.linear},
    ],
    ids=str,
)
def test_every_variant_gives_gradients(last_weight: torch.Tensor, changes: dict) -> None:
    objective = objective_of(**changes)
    loss, _ = objective.autoencoder_loss(reconstruct(last_weight), X, 0.0, 3, last_weight)
    loss.backward()
    assert last_weight.grad is not None
    assert bool(last_weight.grad.isfinite().all())
    _, logs = objective.discriminator_loss(reconstruct(last_weight), X, 3)
    assert float(logs["disc_loss"]) > 0


def test_the_perceptual_term_is_summed_over_the_values_of_a_frame(
    last_weight: torch.Tensor,
) -> None:
    lpips, x_hat = LPIPS("alex"), reconstruct(last_weight)
    objective = Objective(ObjectiveConfig(perceptual_weight=0.5), lpips)
    loss, logs = objective.autoencoder_loss(x_hat, X, 0.0, 0, last_weight)
    absolute = (x_hat - X).abs().sum() / 3
    expected = absolute + 0.5 * 3 * 64 * 64 * logs["p_loss"]
    assert_close_loss(loss, expected)


def test_the_state_has_published_names_and_no_perceptual_network() -> None:
    state = Objective(ObjectiveConfig(), LPIPS("alex")).state_dict()
    rest = {key for key in state if not key.startswith("discriminator.main.")}
    assert rest == {"logvar", "lecam.real_mean", "lecam.fake_mean"}


def test_a_perceptual_weight_without_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="lpips must be given"):
        Objective(ObjectiveConfig())


def test_videos_of_two_sizes_are_refused(last_weight: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="two of one shape"):
        objective_of().discriminator_loss(X, X[:, :, :2], 0)
