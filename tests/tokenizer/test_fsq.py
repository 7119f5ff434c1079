"""Finite scalar quantisation: golden values, edges, and the index as a number in a mixed base."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.close import assert_close_formula, assert_exact
from tests.tokenizer.formulas import GOLDEN, weight
from tokenizer import DtypeError, IndexRangeError
from tokenizer.quantizers.fsq import FSQ

LEVELS = {
    "4096": [8] * 4,
    "32768": [8] * 5,
    "262144": [8] * 6,
    "mixed_8_5_5_5": [8, 5, 5, 5],
    "mixed_7_6_4_3": [7, 6, 4, 3],
}
GOLD = np.load(GOLDEN / "quantizers.npz")
COMBINED = np.load(GOLDEN / "training.npz")


def video(rows: np.ndarray) -> torch.Tensor:
    """Rows [N, c] as latents [1, c, N, 1, 1]."""
    return torch.from_numpy(rows).T[None, :, :, None, None].contiguous()


def rows(z_Bcthw: torch.Tensor) -> torch.Tensor:
    return z_Bcthw.movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize("name", LEVELS)
def test_codes_and_indices_are_the_published_ones(name: str) -> None:
    codes, indices = FSQ(LEVELS[name])(torch.from_numpy(GOLD[f"{name}.z"]))
    assert_exact(codes, GOLD[f"{name}.out"])
    assert_exact(indices, GOLD[f"{name}.indices"])


@pytest.mark.parametrize("name", LEVELS)
def test_bound_and_shift_are_the_published_ones(name: str) -> None:
    fsq = FSQ(LEVELS[name])
    assert_close_formula(fsq.shift_c.flatten(), GOLD[f"{name}.shift"])
    assert_close_formula(
        rows(fsq.bound(torch.from_numpy(GOLD[f"{name}.z"]))), GOLD[f"{name}.bound"]
    )


@pytest.mark.parametrize("name", LEVELS)
def test_index_looks_up_the_published_code(name: str) -> None:
    indices = torch.from_numpy(GOLD[f"{name}.lookup_indices"]).view(1, -1, 1, 1)
    assert_exact(rows(FSQ(LEVELS[name]).codes(indices)), GOLD[f"{name}.lookup_codes"])


@pytest.mark.parametrize("name", LEVELS)
def test_extreme_inputs_give_the_published_codes(name: str) -> None:
    codes, indices = FSQ(LEVELS[name])(video(GOLD[f"{name}.edge_in"]))
    assert_exact(rows(codes), GOLD[f"{name}.edge_out"])
    assert_exact(indices.flatten(), GOLD[f"{name}.edge_idx"])


@pytest.mark.parametrize("name", LEVELS)
def test_gradient_passes_the_rounding(name: str) -> None:
    z = torch.from_numpy(GOLD[f"{name}.z"]).requires_grad_()
    FSQ(LEVELS[name])(z)[0].sum().backward()
    assert z.grad is not None
    assert_close_formula(rows(z.grad), GOLD[f"{name}.ste_grad"])


def test_between_two_linear_maps_it_is_the_published_projection() -> None:
    """No released model has one; the golden data of it are met all the same."""
    shapes = {"project_in": (3, 5), "project_out": (5, 3)}
    maps = {
        name: tuple(
            torch.from_numpy(weight(f"regularization.{name}.{part}", size))
            for part, size in (("weight", shape), ("bias", shape[:1]))
        )
        for name, shape in shapes.items()
    }
    inner = F.linear(rows(torch.from_numpy(COMBINED["proj.z"])), *maps["project_in"])
    codes, indices = FSQ([8, 8, 8])(video(inner.numpy()))
    expected = rows(torch.from_numpy(COMBINED["proj.out"]))
    assert_close_formula(F.linear(rows(codes), *maps["project_out"]), expected)
    assert_exact(indices.flatten(), COMBINED["proj.indices"].flatten())


def test_groups_of_channels_are_the_published_codebooks() -> None:
    parts = [FSQ([8, 5])(z) for z in torch.from_numpy(COMBINED["multi.z"]).chunk(2, dim=1)]
    assert_exact(torch.cat([codes for codes, _ in parts], dim=1), COMBINED["multi.out"])
    assert_exact(torch.stack([indices for _, indices in parts], -1), COMBINED["multi.indices"])


@pytest.mark.parametrize("levels", [[8] * 6, [8, 5, 5, 5], [7, 6, 4, 3], [2, 3]])
def test_every_index_survives_code_and_back(levels: list[int]) -> None:
    fsq = FSQ(levels)
    for block in torch.arange(fsq.codebook_size).split(65536):
        indices = block.view(1, -1, 1, 1)
        codes = fsq.codes(indices)
        assert codes.min() >= -1
        assert codes.max() <= 1
        # A value that the quantiser squashes onto the middle of the code's step.
        middle = torch.atanh((codes * fsq.centre_c + fsq.offset_c) / fsq.half_width_c) - fsq.shift_c
        again, found = fsq(middle)
        assert_exact(again, codes)
        assert_exact(found, indices.to(torch.int32))


def test_first_channel_is_the_least_significant_digit() -> None:
    codes = FSQ([8, 8]).codes(torch.tensor([0, 1, 8]).view(1, 3, 1, 1))
    assert rows(codes).tolist() == [[-1, -1], [-0.75, -1], [-1, -0.75]]


@pytest.mark.parametrize("index", [-1, 64])
def test_index_outside_the_codebook_is_refused(index: int) -> None:
    with pytest.raises(IndexRangeError, match=r"\[0, 64\)"):
        FSQ([8, 8]).codes(torch.full((1, 1, 1, 1), index))


def test_small_unsigned_indices_are_compared_as_numbers() -> None:
    indices = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert FSQ([8] * 6).codes(indices).shape == (1, 6, 1, 1, 1)


def test_float_indices_are_refused() -> None:
    with pytest.raises(DtypeError, match="integer"):
        FSQ([8, 8]).codes(torch.zeros(1, 1, 1, 1))


def test_state_dict_is_empty() -> None:
    assert FSQ([8, 8]).state_dict() == {}
