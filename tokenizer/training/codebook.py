"""Which codes are in use: exact counts over the latest batches."""

from collections import deque
from typing import Any

import torch
from torch import Tensor, distributed

from tokenizer.metrics.codebook import num_used, perplexity

WINDOW_BATCHES = 100


class CodebookUse:
    """Counts of codes over the last batches of this training, of all processes together."""

    def __init__(self, codebook_size: int, window_batches: int = WINDOW_BATCHES) -> None:
        self._counts_K = torch.zeros(codebook_size, dtype=torch.int64)
        self._window = window_batches
        self._batches: deque[Tensor] = deque()

    def update(self, indices: Tensor) -> None:
        """Take in the indices of a batch (any shape); the oldest batch drops out."""
        indices_N = _of_all_ranks(indices.detach().flatten()).cpu().to(torch.int32)
        self._count(indices_N, 1)
        self._batches.append(indices_N)
        if len(self._batches) > self._window:
            self._count(self._batches.popleft(), -1)

    @property
    def used_fraction(self) -> float:
        """Share of the codebook that occurs."""
        return num_used(self._counts_K) / len(self._counts_K)

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy of the codes' frequencies: as many equally frequent codes."""
        return perplexity(self._counts_K)

    def state_dict(self) -> dict[str, Any]:
        """The batches of the window."""
        return {"batches": list(self._batches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self._batches = deque(state["batches"])
        self._counts_K.zero_()
        for indices_N in self._batches:
            self._count(indices_N, 1)

    def _count(self, indices_N: Tensor, sign: int) -> None:
        self._counts_K += sign * torch.bincount(indices_N, minlength=len(self._counts_K))


def _of_all_ranks(indices_N: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return indices_N
    parts = [torch.empty_like(indices_N) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, indices_N)
    return torch.cat(parts)
