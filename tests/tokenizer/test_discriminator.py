"""PatchGAN discriminators: published names, sizes, logits and running statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.close import assert_close_network
from tests.tokenizer.formulas import GOLDEN, pattern, unit, weight
from tokenizer import ShapeError
from tokenizer.training.discriminator import FrameDiscriminator, VideoDiscriminator

GOLD = np.load(GOLDEN / "training.npz")
FIGURES = json.loads((GOLDEN / "training.json").read_text())
FRAMES = pattern(1, 3, 64, 64)[0].transpose(0, 1)
VIDEOS = pattern(2, 9, 32, 48)
KINDS = {"disc2d": (FrameDiscriminator, FRAMES), "disc3d": (VideoDiscriminator, VIDEOS)}


def formula_value(key: str, tensor: torch.Tensor, *, norms: set[str]) -> torch.Tensor:
    """Like the tokenizer's weights, but that batch norms have statistics of their own."""
    if key.rpartition(".")[0] not in norms or not tensor.ndim:
        return torch.from_numpy(weight(f"disc.{key}", tuple(tensor.shape))).to(tensor.dtype)
    u = torch.from_numpy(unit(f"disc.{key}", tensor.numel())).view_as(tensor)
    name = key.rpartition(".")[2]
    value = {"weight": 1 + 0.2 * u, "bias": 0.2 * u, "running_mean": 0.1 * u}
    return value.get(name, 1 + 0.2 * u).float()


def formula_discriminator(name: str) -> nn.Module:
    network = KINDS[name][0]()
    norms = {key.rpartition(".")[0] for key in network.state_dict() if "running" in key}
    state = {
        key: formula_value(key, tensor, norms=norms) if tensor.is_floating_point() else tensor
        for key, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("name", KINDS)
def test_names_shapes_and_order_are_the_published_ones(name: str) -> None:
    state = KINDS[name][0]().state_dict()
    found = [[key, list(tensor.shape), str(tensor.dtype)] for key, tensor in state.items()]
    assert found == FIGURES[f"{name}_keys"]
    learned = sum(parameter.numel() for parameter in KINDS[name][0]().parameters())
    assert learned == FIGURES[f"{name}_params"]


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_logits_and_statistics_are_the_published_ones(name: str) -> None:
    network, x = formula_discriminator(name), KINDS[name][1]
    assert_close_network(network.eval()(x), GOLD[f"{name}.eval_out"])
    assert_close_network(network.train()(x), GOLD[f"{name}.train_out"])
    for key, (mean, norm) in FIGURES[f"{name}_running_mean_after_train"].items():
        statistic = network.state_dict()[key]
        assert float(statistic.mean()) == pytest.approx(mean, abs=1e-5)
        assert float(statistic.norm()) == pytest.approx(norm, rel=1e-5)


def test_fresh_weights_have_the_published_spread() -> None:
    state = FrameDiscriminator().state_dict()
    assert float(state["main.5.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(state["main.6.weight"].mean()) == pytest.approx(1, abs=0.01)
    assert float(state["main.6.bias"].abs().max()) == 0


def test_each_refuses_what_the_other_takes() -> None:
    with pytest.raises(ShapeError, match=r"frames to judge: expected \[N, 3, H, W\]"):
        FrameDiscriminator()(VIDEOS)
    with pytest.raises(ShapeError, match=r"videos to judge: expected \[B, 3, T, H, W\]"):
        VideoDiscriminator()(FRAMES)
