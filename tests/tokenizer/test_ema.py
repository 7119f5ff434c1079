"""The running mean of weights: the published trace, and weights lent and given back."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.close import assert_close_formula
from tests.tokenizer.formulas import GOLDEN
from tokenizer.training.ema import Ema

FIGURES = json.loads((GOLDEN / "training.json").read_text())


class Scalar(nn.Module):
    """One parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


def trace(ema: Ema, model: Scalar) -> list[float]:
    values = []
    for value in (1.0, 2.0, 3.0, 4.0):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        values.append(float(ema.weight))
    return values


def test_the_mean_follows_the_published_trace() -> None:
    model = Scalar()
    ema = Ema(model)
    assert_close_formula(trace(ema, model), FIGURES["ema_trace_target_1_2_3_4_decay0.999"])
    assert sorted(ema.state_dict()) == FIGURES["ema_buffers"]


def test_a_restored_mean_goes_on_alike() -> None:
    model = Scalar()
    ema, again = Ema(model), Ema(model)
    trace(ema, model)
    again.load_state_dict(ema.state_dict())
    assert trace(ema, model) == trace(again, model)


def test_late_updates_keep_the_decay() -> None:
    model = Scalar()
    ema = Ema(model, decay=0.5)
    ema.num_updates.fill_(1000)
    nn.init.constant_(model.weight, 8.0)
    ema.update(model)
    assert float(ema.weight) == 4


def test_a_model_gets_its_own_weights_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model)
    nn.init.ones_(model[0].weight)
    mean = ema.get_buffer("0weight").clone()
    with pytest.raises(RuntimeError, match="inside"):
        fail_with_mean(ema, model, mean)
    assert bool((model[0].weight == 1).all())
    ema.copy_to(model)
    assert torch.equal(model[0].weight, mean)


def fail_with_mean(ema: Ema, model: nn.Module, mean: torch.Tensor) -> None:
    with ema.applied(model):
        assert torch.equal(model[0].weight, mean)
        raise RuntimeError("inside")


def test_fixed_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert sorted(Ema(model).state_dict()) == ["1bias", "1weight", "decay", "num_updates"]


def test_a_decay_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1\.5"):
        Ema(Scalar(), decay=1.5)
