"""Finite scalar quantisation (arXiv 2309.15505): every latent channel is rounded to a few levels.

An index is a number in a mixed base with one digit per channel, so no codebook is stored. The
entropy and commitment terms of training are not computed here.
"""

# B batch · c latent channels, one per level · t h w latent frames, rows, columns

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenizer.errors import DtypeError, IndexRangeError

EPS = 1e-3


class FSQ(nn.Module):
    """Quantiser with ``levels[k]`` steps in channel k, the first being the least significant digit.

    Its tensors are constants and no part of the state dict.
    """

    half_width_c: Tensor
    offset_c: Tensor
    shift_c: Tensor
    centre_c: Tensor
    levels_c: Tensor
    basis_c: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = list(levels)
        self.codebook_size = math.prod(levels)
        # Trailing axes make the constants broadcast against [B, c, t, h, w].
        levels_c = torch.tensor(self.levels, dtype=torch.int32).view(-1, 1, 1, 1)
        basis = [math.prod(self.levels[:k]) for k in range(len(self.levels))]
        half_width_c = (levels_c - 1) * (1 + EPS) / 2
        # Even levels have no middle step: half a step of offset makes rounding give all of them.
        offset_c = torch.where(levels_c % 2 == 0, 0.5, 0.0)
        constants = {
            "half_width_c": half_width_c,
            "offset_c": offset_c,
            "shift_c": torch.atanh(offset_c / half_width_c),
            "centre_c": levels_c // 2,
            "levels_c": levels_c,
            "basis_c": torch.tensor(basis, dtype=torch.int32).view(-1, 1, 1, 1),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def bound(self, z_Bcthw: Tensor) -> Tensor:
        """Squash into the range of the levels: ``tanh(z + shift) * half_width - offset``."""
        return torch.tanh(z_Bcthw + self.shift_c) * self.half_width_c - self.offset_c

    def forward(self, z_Bcthw: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and indices.

        Gradients pass the rounding unchanged (straight-through).

        Args:
            z_Bcthw: float ``[B, c, t, h, w]``, any range; computed in float32.

        Returns:
            Codes float32 ``[B, c, t, h, w]`` in [-1, 1], and indices int32 ``[B, t, h, w]`` in
            [0, codebook_size).
        """
        bounded_Bcthw = self.bound(z_Bcthw.float())
        rounded_Bcthw = torch.round(bounded_Bcthw)  # half to even
        steps_Bcthw = bounded_Bcthw + (rounded_Bcthw - bounded_Bcthw).detach()
        digits_Bcthw = rounded_Bcthw.detach().to(torch.int32) + self.centre_c
        indices_Bthw = (digits_Bcthw * self.basis_c).sum(dim=1, dtype=torch.int32)
        return steps_Bcthw / self.centre_c, indices_Bthw

    def codes(self, indices_Bthw: Tensor) -> Tensor:
        """Codes float32 ``[B, c, t, h, w]`` of integer indices ``[B, t, h, w]``.

        Raises:
            DtypeError: not integers.
            IndexRangeError: an index outside [0, codebook_size).
        """
        if indices_Bthw.is_floating_point() or indices_Bthw.dtype == torch.bool:
            raise DtypeError("indices", "an integer dtype", str(indices_Bthw.dtype))
        # Compared as 64 bits: small unsigned dtypes cannot hold the size of the codebook.
        indices_Bthw = indices_Bthw.to(torch.int64)
        low, high = (int(bound) for bound in indices_Bthw.aminmax())
        if low < 0 or high >= self.codebook_size:
            allowed = f"values in [0, {self.codebook_size})"
            raise IndexRangeError("indices", allowed, f"[{low}, {high}]")
        digits_Bcthw = indices_Bthw.unsqueeze(1) // self.basis_c % self.levels_c
        return (digits_Bcthw - self.centre_c).float() / self.centre_c
