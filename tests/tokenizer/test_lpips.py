"""LPIPS: published distances, shipped weights, and files that are something else."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.close import assert_close_network
from tests.tokenizer.formulas import pattern, unit
from tokenizer import DtypeError, MissingNetwork, ShapeError, UnknownName, UnreadableCheckpoint
from tokenizer.metrics.lpips import LPIPS, SHIPPED

PUBLISHED = {
    "alex": [0.017806, 0.018664, 0.019983, 0.019592],
    "vgg": [0.017661, 0.019718, 0.016794, 0.020082],
}


def noisy_pair() -> tuple[torch.Tensor, torch.Tensor]:
    a = pattern(1, 4, 64, 64)[0].transpose(0, 1)
    noise = torch.from_numpy(unit("noise", a.numel()).reshape(a.shape)).float()
    return a, (a + 0.2 * noise).clamp(-1, 1)


def vgg_shaped(path: Path) -> Path:
    """A file of VGG's layout, its values from the formula."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    tensors = {}
    for number, (before, width) in enumerate(pairwise(widths)):
        values = torch.from_numpy(unit(f"conv{number}", width * before * 9)).float()
        kernel = values.view(width, before, 3, 3) * (6 / (before * 9)) ** 0.5
        tensors |= {f"conv{number}.weight": kernel.half(), f"conv{number}.bias": torch.zeros(width)}
    for number, width in enumerate([64, 128, 256, 512, 512]):
        tensors[f"head{number}.weight"] = torch.ones(1, width, 1, 1)
    save_file(tensors, path)
    return path


def test_the_shipped_network_gives_the_published_distances() -> None:
    assert_close_network(LPIPS()(*noisy_pair()), PUBLISHED["alex"])


@pytest.mark.weights
def test_vgg_gives_the_published_distances() -> None:
    """LPIPS_VGG is the path of its file."""
    assert_close_network(LPIPS("vgg", os.environ["LPIPS_VGG"])(*noisy_pair()), PUBLISHED["vgg"])


def test_the_shipped_file_is_small_and_says_where_it_is_from() -> None:
    path = SHIPPED["alex"]
    assert path.stat().st_size < 5_000_000
    assert "BSD-2-Clause" in (path.parent / "README.md").read_text()


def test_equal_frames_have_no_distance_and_a_finite_gradient() -> None:
    a, _ = noisy_pair()
    b = a.clone().requires_grad_()
    distance = LPIPS()(a, b)
    assert distance.tolist() == [0, 0, 0, 0]
    distance.sum().backward()
    assert b.grad is not None
    assert bool(b.grad.isfinite().all())


def test_more_noise_is_further_away_and_order_does_not_matter() -> None:
    lpips, (a, b) = LPIPS(), noisy_pair()
    further = a + 2 * (b - a)
    assert bool((lpips(a, further) > lpips(a, b)).all())
    torch.testing.assert_close(lpips(a, b), lpips(b, a))


def test_the_gradient_leads_back_to_the_original() -> None:
    lpips, (a, b) = LPIPS(), noisy_pair()
    b.requires_grad_()
    distance = lpips(a, b).sum()
    (gradient,) = torch.autograd.grad(distance, b)
    nearer = lpips(a, b - 0.1 * gradient / gradient.norm()).sum()
    assert float(nearer.detach()) < float(distance.detach())


def test_black_frames_have_a_finite_gradient() -> None:
    black = torch.zeros(1, 3, 64, 64, requires_grad=True)
    LPIPS()(black, torch.ones(1, 3, 64, 64)).sum().backward()
    assert black.grad is not None
    assert bool(black.grad.isfinite().all())


def test_vgg_comes_by_path(tmp_path: Path) -> None:
    lpips = LPIPS("vgg", vgg_shaped(tmp_path / "vgg.safetensors"))
    a, b = (x[:1, :, :32, :32] for x in noisy_pair())
    assert float(lpips(a, b)) > 0
    assert float(lpips(a, a)) == 0


def test_no_weights_are_learned_or_saved() -> None:
    lpips = LPIPS()
    assert lpips.state_dict() == {}
    assert list(lpips.parameters()) == []
    assert lpips.to(torch.float64).get_buffer("conv0_weight").dtype == torch.float64


def test_vgg_without_a_path_says_what_to_fetch() -> None:
    with pytest.raises(MissingNetwork, match=r"weights=PATH.*torchvision's VGG16"):
        LPIPS("vgg")


def test_other_networks_are_refused() -> None:
    with pytest.raises(UnknownName, match="squeeze"):
        LPIPS("squeeze")


def test_weights_of_the_other_network_are_refused() -> None:
    with pytest.raises(UnreadableCheckpoint, match=r"it is not LPIPS vgg: .*conv0\.weight"):
        LPIPS("vgg", SHIPPED["alex"])


def test_a_file_without_one_head_is_refused(tmp_path: Path) -> None:
    tensors = load_file(SHIPPED["alex"])
    del tensors["head4.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(UnreadableCheckpoint, match=r"another shape: head4\.weight"):
        LPIPS("alex", tmp_path / "cut.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpoint, match=r"none\.safetensors: no such file"):
        LPIPS("alex", tmp_path / "none.safetensors")


def test_frames_that_cannot_be_compared_are_refused() -> None:
    a, b = noisy_pair()
    with pytest.raises(ShapeError, match="two of one shape"):
        LPIPS()(a, b[:2])
    with pytest.raises(DtypeError, match="uint8"):
        LPIPS()(a.to(torch.uint8), b.to(torch.uint8))
