"""Each loss by itself: published numbers, and what the formula promises."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.close import assert_close_loss
from tests.tokenizer.formulas import GOLDEN, unit
from tokenizer.quantizers.gaussian import Gaussian
from tokenizer.training import losses

FIGURES = json.loads((GOLDEN / "training.json").read_text())
REAL = 2 * torch.from_numpy(unit("lr", 32)).float()
FAKE = 2 * torch.from_numpy(unit("lf", 32)).float()


def test_adversarial_losses_are_the_published_ones() -> None:
    gold = FIGURES["losses"]
    assert_close_loss(losses.hinge_loss(REAL, FAKE), gold["hinge"])
    assert_close_loss(losses.vanilla_loss(REAL, FAKE), gold["vanilla"])
    per_frame = losses.non_saturating_loss(FAKE.view(8, 4))
    assert_close_loss(per_frame, gold["non_saturate_gen(8x4)"])


def test_the_linear_loss_is_minus_the_mean_logit() -> None:
    assert float(losses.linear_loss(torch.tensor([1.0, 2.0, 6.0]))) == -3


def test_divergence_is_the_published_one() -> None:
    latents = torch.from_numpy(np.load(GOLDEN / "quantizers.npz")["kl.z"])
    assert_close_loss(
        losses.kl_loss(*Gaussian()(latents)), np.load(GOLDEN / "training.npz")["kl.loss"]
    )


def test_divergence_of_the_standard_normal_is_zero() -> None:
    zeros = torch.zeros(2, 4, 1, 2, 2)
    assert float(losses.kl_loss(zeros, zeros)) == 0


def test_likelihood_sums_over_a_frame_and_averages_over_frames() -> None:
    error = torch.full((5, 3, 4, 2), 0.5)
    nll = losses.negative_log_likelihood(error, torch.tensor(math.log(2.0)))
    assert float(nll) == pytest.approx(24 * (0.25 + math.log(2)))


def test_the_best_log_variance_is_the_logarithm_of_the_mean_error() -> None:
    error = torch.rand(2, 3, 8, 8)
    log_variance = error.mean().log().requires_grad_()
    losses.negative_log_likelihood(error, log_variance).backward()
    assert log_variance.grad is not None
    assert abs(float(log_variance.grad)) < 1e-3


def test_perceptual_distance_counts_for_every_value_of_its_frame() -> None:
    x = torch.zeros(2, 3, 2, 2)
    error = losses.reconstruction_error(x + 1, x, torch.tensor([0.0, 0.5]), 2.0)
    assert error.amin(dim=(1, 2, 3)).tolist() == error.amax(dim=(1, 2, 3)).tolist() == [1, 2]


def test_adaptive_weight_is_the_ratio_of_gradients_and_detached() -> None:
    weight = torch.ones(3, requires_grad=True)
    ratio = losses.adaptive_weight(6 * weight, 2 * weight)
    assert float(ratio) == pytest.approx(3, rel=1e-3)
    assert not ratio.requires_grad
    assert weight.grad is None


def test_adaptive_weight_has_a_ceiling() -> None:
    weight = torch.ones(3, requires_grad=True)
    ratio = losses.adaptive_weight(6 * weight, 0 * weight)
    assert float(ratio) == losses.MAX_ADAPTIVE_WEIGHT


def test_lecam_pulls_logits_to_the_other_sides_running_mean() -> None:
    lecam = losses.Lecam(decay=0.5)
    real, fake = torch.tensor([2.0, -4.0]), torch.tensor([3.0, 1.0])
    # Means move first: real -0.5, fake 1; what is on the right side of them costs nothing.
    assert float(lecam(real, fake)) == pytest.approx((1**2 + 0) / 2 + 0)
    assert {key: float(value) for key, value in lecam.state_dict().items()} == {
        "real_mean": -0.5,
        "fake_mean": 1.0,
    }


def test_lecam_can_go_on_before_an_earlier_penalty_goes_back() -> None:
    lecam, logits = losses.Lecam(), torch.randn(8, requires_grad=True)
    (lecam(logits, logits) + lecam(logits, logits)).backward()
    assert logits.grad is not None
    assert not lecam.real_mean.requires_grad
