"""A small autoregressive transformer over FSQ indices, the first latent frame given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenTransformer(nn.Module):
    """Next token from all before it, in the order t, h, w.

    A token is as many small numbers as the tokenizer has FSQ levels: their embeddings are added
    up, and each is predicted by itself, which takes 48 logits instead of 262,144.
    """

    def __init__(
        self, levels: Sequence[int], shape: Sequence[int], dim: int, layers: int, heads: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.levels, self.num_given = tuple(levels), math.prod(shape[1:])
        self.sizes: Tensor
        self.strides: Tensor
        self.starts: Tensor
        self.register_buffer("sizes", torch.tensor(self.levels), persistent=False)
        starts = torch.tensor([0, *self.levels[:-1]]).cumsum(0)
        self.register_buffer("strides", torch.tensor([1, *self.levels[:-1]]).cumprod(0), False)
        self.register_buffer("starts", starts, persistent=False)
        self.embedding = nn.Embedding(sum(self.levels), dim)
        self.positions = nn.Parameter(torch.randn(math.prod(shape) - 1, dim) / math.sqrt(dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), False)
        self.head = nn.Linear(dim, sum(self.levels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Cross entropy in nats per token of the frames behind the first one.

        Args:
            tokens: integers ``[B, t, h, w]``.
        """
        digits = tokens.flatten(1)[..., None] // self.strides % self.sizes  # [B, N, levels]
        x = self.embedding(digits[:, :-1] + self.starts).sum(2) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        x = self.head(self.body(x, mask, is_causal=True)[:, self.num_given - 1 :])
        logits = x.flatten(0, 1).split(self.levels, dim=1)
        targets = digits[:, self.num_given :].flatten(0, 1).unbind(1)
        losses = [F.cross_entropy(a, b) for a, b in zip(logits, targets, strict=True)]
        return torch.stack(losses).sum()
