"""How much of a codebook is used: how many codes, and how evenly."""

# N codes

import torch
from torch import Tensor

from tokenizer.errors import ShapeError


def num_used(counts_N: Tensor) -> int:
    """Codes that occurred at all.

    Args:
        counts_N: how often each code occurred.
    """
    return int((counts_N > 0).sum())


def perplexity(counts_N: Tensor) -> float:
    """``exp`` of the entropy of the code's distribution: N where all are used alike, 1 for one.

    Args:
        counts_N: how often each code occurred; those that never did may be left out.

    >>> round(perplexity(torch.tensor([5, 5, 0, 5, 5])), 6)
    4.0

    Raises:
        ShapeError: nothing was counted.
    """
    counts = counts_N[counts_N > 0].double()
    if not len(counts):
        raise ShapeError("counts", "at least one token", "none")
    share = counts / counts.sum()
    return float(torch.exp(-(share * share.log()).sum()))
