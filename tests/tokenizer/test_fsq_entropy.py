"""FSQ's entropy term: published numbers, and the table of tokens x codes as the judge."""

from __future__ import annotations

import json
import math
import socket

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from tests.close import assert_close_loss
from tests.tokenizer.formulas import GOLDEN, unit
from tests.tokenizer.test_fsq import LEVELS
from tokenizer import ShapeError
from tokenizer.quantizers.fsq import FSQ
from tokenizer.training.fsq_entropy import FsqPenalty, code_probabilities, entropy_loss

GOLD = np.load(GOLDEN / "quantizers.npz")
FIGURES = json.loads((GOLDEN / "training.json").read_text())
SMALL = [[8, 8], [7, 6, 4, 3], [8, 5, 5, 5], [5], [2, 3]]
PUBLISHED = [
    (name, batch) for name in ("4096", "32768", "mixed_8_5_5_5") for batch in (0, 500, 2000, 5000)
]


def latents(levels: list[int], num_tokens: int = 60, scale: float = 1.0) -> Tensor:
    values = unit(f"entropy.{levels}", len(levels) * num_tokens).reshape(2, len(levels), -1, 3, 2)
    return scale * torch.from_numpy(values).float()


def table(z_Bcthw: Tensor, levels: list[int]) -> Tensor:
    """Probabilities [N, K], the direct way, float64."""
    fsq = FSQ(levels)
    codes = fsq.codes(torch.arange(fsq.codebook_size).view(1, -1, 1, 1))[0].flatten(1).double()
    z_Nc = z_Bcthw.movedim(1, -1).flatten(0, -2).double()
    return (200 * z_Nc @ codes).softmax(dim=1)


def direct_loss(z_Bcthw: Tensor, levels: list[int], *, clamp_tokens: bool) -> Tensor:
    """The formula as published; it clamps the tokens' logarithms, too."""
    p_NK = table(z_Bcthw, levels)
    mean_K = p_NK.mean(dim=0)
    least = 1e-5 if clamp_tokens else 1e-300
    tokens = -(p_NK * p_NK.clamp(min=least).log()).sum(dim=1).mean()
    return tokens + (mean_K * mean_K.clamp(min=1e-5).log()).sum()


@pytest.mark.parametrize(("name", "batch"), PUBLISHED)
def test_penalties_are_the_published_ones(name: str, batch: int) -> None:
    z = 0.25 * torch.from_numpy(GOLD[f"{name}.z"])
    codes, _ = FSQ(LEVELS[name])(z)
    penalty = FsqPenalty()(z, codes, LEVELS[name], batch)
    assert_close_loss(penalty, FIGURES[name][f"aux_loss_n{batch}"])


@pytest.mark.parametrize("levels", SMALL, ids=str)
@pytest.mark.parametrize("scale", [0.001, 0.02, 1.0])
def test_probabilities_and_entropy_are_those_of_the_table(levels: list[int], scale: float) -> None:
    z = latents(levels, scale=scale)
    token_entropy, marginal = code_probabilities(z, levels, block_tokens=7)
    p_NK = table(z, levels)
    torch.testing.assert_close(marginal.double(), p_NK.mean(dim=0), atol=1e-6, rtol=1e-4)
    assert float(marginal.sum()) == pytest.approx(1, abs=1e-5)
    entropy = -torch.special.xlogy(p_NK, p_NK).sum(dim=1).mean()
    assert float(token_entropy) == pytest.approx(float(entropy), abs=1e-5)


@pytest.mark.parametrize("levels", SMALL, ids=str)
@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_gradients_are_those_of_the_table(levels: list[int], scale: float) -> None:
    z = latents(levels, scale=scale).requires_grad_()
    (ours,) = torch.autograd.grad(entropy_loss(z, levels, block_tokens=7), z)
    (judge,) = torch.autograd.grad(direct_loss(z, levels, clamp_tokens=False), z)
    assert float(judge.abs().max()) > 1e-4
    # Logits are 200 z times a step: 1e-7 of rounding in z is 2e-5 in a logit.
    torch.testing.assert_close(ours, judge, atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0])
def test_the_published_clamp_of_the_tokens_entropy_hardly_shows(scale: float) -> None:
    """It flattens probabilities below 1e-5, which a trained encoder's tokens hardly have."""
    levels = [7, 6, 4, 3]
    z = latents(levels, scale=scale)
    published = direct_loss(z, levels, clamp_tokens=True)
    assert float(entropy_loss(z, levels)) == pytest.approx(float(published), abs=1e-3)


def test_blocks_do_not_change_the_result() -> None:
    levels, results = [8, 5, 5, 5], []
    for block_tokens in (1, 16, 60, 1000):
        z = latents(levels, scale=0.05).requires_grad_()
        loss = entropy_loss(z, levels, block_tokens=block_tokens)
        loss.backward()
        results.append((loss.detach(), z.grad))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-6, rtol=1e-4)


def test_the_order_of_probabilities_is_that_of_the_indices() -> None:
    """A product with codes, not a distance to them, as published: outermost steps win."""
    levels, outermost = [7, 6, 4, 3], [0, 371, 468]  # digits 0000, 0502, 6032
    codes = FSQ(levels).codes(torch.tensor(outermost).view(1, -1, 1, 1))
    _, marginal = code_probabilities(codes, levels)
    assert sorted(marginal.topk(3).indices.tolist()) == outermost


def test_undecided_tokens_have_the_entropy_of_all_codes() -> None:
    token_entropy, marginal = code_probabilities(torch.zeros(1, 6, 1, 2, 2), [8] * 6)
    assert float(token_entropy) == pytest.approx(6 * math.log(8), rel=1e-5)
    torch.testing.assert_close(marginal, torch.full((8**6,), 8.0**-6))


def test_autocast_does_not_round_the_probabilities() -> None:
    z = latents([8, 5, 5, 5], scale=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        inside = entropy_loss(z, [8, 5, 5, 5])
    assert torch.equal(inside, entropy_loss(z, [8, 5, 5, 5]))


def test_channels_that_are_not_one_per_level_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[B, 3, \.\.\.\] for the levels \[8, 8, 8\]"):
        entropy_loss(torch.zeros(1, 4, 1, 2, 2), [8, 8, 8])


def rank_gradient(rank: int, port: int, levels: list[int], results: dict) -> None:
    """What DDP would send: this rank's loss and gradient of its own half."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    z = latents(levels, scale=0.05)[rank : rank + 1].requires_grad_()
    loss = entropy_loss(z, levels)
    loss.backward()
    assert z.grad is not None
    # As plain lists: no shared memory that outlives the process.
    results[rank] = (float(loss.detach()), z.grad.tolist())
    distributed.destroy_process_group()


def test_two_ranks_have_the_gradient_of_the_whole_batch() -> None:
    levels = [8, 5, 5, 5]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(rank_gradient, args=(port, levels, results), nprocs=2)
        ranks = [results[0], results[1]]
    z = latents(levels, scale=0.05).requires_grad_()
    whole = entropy_loss(z, levels)
    (gradient,) = torch.autograd.grad(whole, z)
    assert sum(loss for loss, _ in ranks) / 2 == pytest.approx(float(whole.detach()), abs=1e-5)
    # DDP averages gradients of parameters, and with them these.
    halves = torch.cat([torch.tensor(part) for _, part in ranks]) / 2
    torch.testing.assert_close(halves, gradient, atol=1e-6, rtol=1e-4)
