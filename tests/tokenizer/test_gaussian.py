"""The continuous bottleneck: mean by default, reproducible samples on request."""

from __future__ import annotations

import numpy as np
import torch

from tests.close import assert_exact
from tests.tokenizer.formulas import GOLDEN, formula_model, pattern
from tokenizer.quantizers.gaussian import Gaussian

GOLD = np.load(GOLDEN / "quantizers.npz")


def test_mean_is_the_first_half_of_the_channels() -> None:
    mean, log_variance = Gaussian()(torch.from_numpy(GOLD["kl.z"]))
    assert_exact(mean, GOLD["kl.out"])
    assert log_variance.min() == -30
    assert log_variance.max() == 20


def test_encode_gives_the_mean_unless_asked_to_sample() -> None:
    model, x_BCTHW = formula_model("kl_4x8x8_4chn", ch=16), pattern(1, 5, 16, 16)
    encoded = model.encode(x_BCTHW)
    assert encoded.mean is not None
    assert encoded.log_variance is not None
    assert encoded.log_variance.shape == encoded.mean.shape == (1, 4, 2, 2, 2)
    assert_exact(encoded.latents, encoded.mean)
    sampled = model.encode(x_BCTHW, sample=True)
    assert_exact(sampled.mean, encoded.mean)
    assert not torch.equal(sampled.latents, encoded.latents)


def test_sample_follows_the_generator_and_the_posterior() -> None:
    mean, log_variance = torch.full((1, 1, 1, 100, 100), 3.0), torch.full((1, 1, 1, 100, 100), -2.0)

    def draw() -> torch.Tensor:
        return Gaussian().sample(mean, log_variance, torch.Generator().manual_seed(1))

    assert_exact(draw(), draw())
    assert abs(float(draw().mean()) - 3) < 0.02
    assert abs(float(draw().std()) - np.exp(-1)) < 0.02
