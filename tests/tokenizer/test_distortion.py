"""PSNR and SSIM: published numbers, ceilings, and where the frames are."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tokenizer.formulas import pattern, unit
from tokenizer import ShapeError
from tokenizer.metrics.distortion import psnr, ssim

PUBLISHED = {
    (3, 40, 48): (30.81739616394043, 0.9825485348701477),
    (2, 512, 520): (30.839570999145508, 0.9975765943527222),
}


def noisy_pair(T: int, H: int, W: int) -> tuple[torch.Tensor, torch.Tensor]:
    a = (pattern(1, T, H, W) + 1) / 2
    noise = torch.from_numpy(unit("noise", a.numel()).reshape(a.shape)).float()
    return 2 * (a + 0.05 * noise).clamp(0, 1) - 1, 2 * a - 1


@pytest.mark.parametrize("size", PUBLISHED)
def test_values_are_those_of_the_published_evaluation(size: tuple[int, int, int]) -> None:
    noisy, clean = noisy_pair(*size)
    assert float(psnr(noisy, clean).mean()) == pytest.approx(PUBLISHED[size][0], abs=1e-4)
    assert float(ssim(noisy, clean).mean()) == pytest.approx(PUBLISHED[size][1], abs=1e-5)


def test_equal_videos_reach_the_ceiling() -> None:
    x_BCTHW = pattern(2, 3, 16, 16)
    assert torch.allclose(psnr(x_BCTHW, x_BCTHW), torch.full((2, 3), 80.0))
    assert torch.allclose(ssim(x_BCTHW, x_BCTHW), torch.ones(2, 3))


def test_each_frame_has_its_own_value() -> None:
    x_BCTHW = pattern(2, 3, 16, 16) * 0.5
    changed = x_BCTHW.clone()
    changed[1, :, 2] += 0.2
    values = psnr(changed, x_BCTHW)
    assert values[1, 2] == pytest.approx(-10 * math.log10(0.1**2 + 1e-8), abs=1e-3)
    assert int((values < 79).sum()) == 1
    assert (ssim(changed, x_BCTHW) < 0.999).nonzero().tolist() == [[1, 2]]


def test_values_outside_the_range_are_clamped() -> None:
    x_BCTHW = torch.ones(1, 3, 1, 16, 16)
    assert float(psnr(3 * x_BCTHW, x_BCTHW)) == pytest.approx(80)


def test_videos_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ShapeError, match="two of one shape"):
        psnr(pattern(1, 3, 16, 16), pattern(1, 2, 16, 16))
    with pytest.raises(ShapeError, match="at least 11 rows"):
        ssim(pattern(1, 1, 8, 16), pattern(1, 1, 8, 16))
