"""PSNR and SSIM: published numbers, ceilings, and what torchmetrics says."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics.functional.image

from tests.tokenizer.formulas import pattern, unit
from tokenizer import DtypeError, ShapeError
from tokenizer.metrics.distortion import frames, psnr, ssim

PUBLISHED = {
    (3, 40, 48): (30.81739616394043, 0.9825485348701477),
    (2, 512, 520): (30.839570999145508, 0.9975765943527222),
}


def noisy_pair(T: int, H: int, W: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [T, 3, H, W] in [0, 1]."""
    a = (pattern(1, T, H, W) + 1) / 2
    noise = torch.from_numpy(unit("noise", a.numel()).reshape(a.shape)).float()
    return (a + 0.05 * noise).clamp(0, 1)[0].transpose(0, 1), a[0].transpose(0, 1)


@pytest.mark.parametrize("size", PUBLISHED)
def test_values_are_those_of_the_published_evaluation(size: tuple[int, int, int]) -> None:
    noisy, clean = noisy_pair(*size)
    assert psnr(noisy, clean).shape == ssim(noisy, clean).shape == (size[0],)
    assert float(psnr(noisy, clean).mean()) == pytest.approx(PUBLISHED[size][0], abs=1e-4)
    assert float(ssim(noisy, clean).mean()) == pytest.approx(PUBLISHED[size][1], abs=1e-5)


def test_each_frame_agrees_with_torchmetrics() -> None:
    """Away from the edges: torchmetrics reflects there, the published figures leave them out."""
    noisy, clean = noisy_pair(3, 64, 80)
    values = psnr(noisy, clean), ssim(noisy, clean)
    for at in range(3):
        pair = noisy[at : at + 1], clean[at : at + 1]
        judge = torchmetrics.functional.image.peak_signal_noise_ratio(*pair, data_range=1.0)
        assert float(values[0][at]) == pytest.approx(float(judge), abs=1e-3)
        _, judges = torchmetrics.functional.image.structural_similarity_index_measure(
            *pair, data_range=1.0, return_full_image=True
        )
        judge = judges[..., 5:-5, 5:-5].mean()
        assert float(values[1][at]) == pytest.approx(float(judge), abs=1e-5)


def test_equal_frames_reach_the_ceiling() -> None:
    clean = noisy_pair(3, 16, 16)[1]
    assert torch.allclose(psnr(clean, clean), torch.full((3,), 80.0))
    assert torch.allclose(ssim(clean, clean), torch.ones(3))


def test_each_frame_has_its_own_value() -> None:
    x = frames(pattern(2, 3, 16, 16) * 0.5)
    changed = x.clone()
    changed[5] += 0.1
    values = psnr(changed, x)
    assert values[5] == pytest.approx(-10 * math.log10(0.1**2 + 1e-8), abs=1e-3)
    assert int((values < 79).sum()) == 1
    assert (ssim(changed, x) < 0.999).nonzero().tolist() == [[5]]


def test_frames_of_videos_are_clamped_and_in_order() -> None:
    x_BCTHW = pattern(2, 3, 4, 4)
    x_BCTHW[1, :, 2] = 3
    found = frames(x_BCTHW)
    assert found.shape == (6, 3, 4, 4)
    assert found[5].min() == found.max() == 1
    torch.testing.assert_close(found[1], (x_BCTHW[0, :, 1] + 1) / 2)


def test_what_cannot_be_compared_is_refused() -> None:
    a, b = noisy_pair(3, 16, 16)
    with pytest.raises(ShapeError, match="two of one shape"):
        psnr(a, b[:2])
    with pytest.raises(ShapeError, match="at least 11 rows"):
        ssim(a[..., :8, :], b[..., :8, :])
    with pytest.raises(DtypeError, match="uint8"):
        psnr(a.to(torch.uint8), b)
    with pytest.raises(ShapeError, match="B, C, T, H, W"):
        frames(a)
