"""Doubling by phases: the same as repeating and convolving, values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.close import assert_close_fp32, assert_exact
from tests.tokenizer.formulas import formula_model, pattern
from tokenizer.layers.conv import CausalConv, TimePadding
from tokenizer.layers.resample import FrameUpsample, TimeUpsample, blend
from tokenizer.layers.stream import Stream

C = 4


def frame_reference(layer: nn.Module, x_BTHWC: Tensor) -> Tensor:
    assert isinstance(layer, FrameUpsample)
    doubled = x_BTHWC.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return layer.conv(doubled)


def time_reference(layer: nn.Module, x_BTHWC: Tensor) -> Tensor:
    assert isinstance(layer, TimeUpsample)
    conv = layer.conv.conv if isinstance(layer.conv, CausalConv) else layer.conv
    doubled = x_BTHWC.repeat_interleave(2, dim=1)
    sides = (2, 0) if layer.time_padding.is_causal else (1, 1)
    x_BCTHW = F.pad(doubled, (0, 0, 0, 0, 0, 0, *sides)).permute(0, 4, 1, 2, 3)
    learned = F.conv3d(x_BCTHW, conv.weight, conv.bias, padding=(0, 1, 1))
    return blend(layer.mix_factor, doubled, learned.permute(0, 2, 3, 4, 1))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "frame": (lambda: FrameUpsample(C), frame_reference),
    "causal": (lambda: TimeUpsample(C, TimePadding.causal_zero, 1), time_reference),
    "symmetric": (lambda: TimeUpsample(C, TimePadding.symmetric_zero, 1), time_reference),
}


def made(name: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]:
    torch.manual_seed(0)
    make, reference = LAYERS[name]
    return make(), reference, torch.randn(2, 3, 5, 4, C)


@pytest.mark.parametrize("name", LAYERS)
def test_phases_give_what_repeating_and_convolving_gives(name: str) -> None:
    layer, reference, x_BTHWC = made(name)
    with torch.no_grad():
        assert_close_fp32(layer.eval()(x_BTHWC, Stream()), reference(layer, x_BTHWC))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_flow_through_phases(name: str) -> None:
    layer, reference, x_BTHWC = made(name)
    twin = copy.deepcopy(layer)
    x_BTHWC.requires_grad_(True)
    layer(x_BTHWC, Stream()).square().sum().backward()
    found, x_BTHWC.grad = x_BTHWC.grad, None
    reference(twin, x_BTHWC).square().sum().backward()
    assert_close_fp32(found, x_BTHWC.grad)
    for (key, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None, key
        assert q.grad is not None, key
        scale = float(q.grad.abs().max())
        assert_close_fp32(p.grad / scale, q.grad / scale)


def changed_in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(-2)


def replaced(layer: nn.Module) -> None:
    layer.load_state_dict({k: -v for k, v in layer.state_dict().items()}, assign=True)


def trained(layer: nn.Module) -> None:
    layer.requires_grad_(True)
    layer(torch.ones(1, 2, 4, 4, C), Stream()).sum().backward()
    for parameter in layer.parameters():
        parameter.data.mul_(0.5)  # behind torch's back: some optimisers do so


@pytest.mark.parametrize("change", [changed_in_place, replaced, trained])
@pytest.mark.parametrize("name", LAYERS)
def test_packed_weights_follow_the_parameters(
    name: str, change: Callable[[nn.Module], None]
) -> None:
    layer, reference, x_BTHWC = made(name)
    layer.eval().requires_grad_(False)
    layer(x_BTHWC, Stream())
    change(layer)
    layer.requires_grad_(False)
    assert_close_fp32(layer(x_BTHWC, Stream()), reference(layer, x_BTHWC))


def test_a_model_in_use_can_be_trained_and_used_again() -> None:
    model, x_BCTHW = formula_model("fsq_4x8x8", ch=16), pattern(1, 5, 16, 16)
    with torch.inference_mode():
        before = model.encode(x_BCTHW).latents
    model.requires_grad_(True).train()
    model(x_BCTHW).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval().requires_grad_(False)
    with torch.inference_mode():
        assert_exact(model.encode(x_BCTHW).latents, before)


@pytest.mark.parametrize("name", ["fsq_4x8x8_32768_v1_1", "fsq_8x8x8_32768_v1_1"])
@pytest.mark.parametrize("frames", [1, 6, 9])
def test_copies_of_the_first_frame_need_not_be_computed(name: str, frames: int) -> None:
    model, x_BCTHW = formula_model(name, ch=16), pattern(2, frames, 16, 16)
    held = model.encoder(x_BCTHW)
    model.encoder.copies_stay_equal = False
    assert_close_fp32(held, model.encoder(x_BCTHW))
