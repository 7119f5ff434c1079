"""What is drawn for one sample: its noise, its crop.

Each depends on (seed, epoch, number of the sample in the global order) and on nothing else: not on
the rank, the batch, the worker, the device or what was drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.loading.hashing import GOLDEN, MIX_1, MIX_2, derived_key, hashes

Samples = npt.NDArray[np.int64]


def normal_noise(
    samples: Samples, shape: Sequence[int], *, seed: int, epoch: int, device: torch.device | str
) -> Tensor:
    """Standard normal numbers, float32 ``[B, *shape]``.

    Box-Muller on one hash for every two numbers. Devices agree in the hashes bit for bit, in the
    noise up to the last places of their logarithm and cosine. No number is beyond 5.8.
    """
    num = math.prod(shape)
    keys = hashes(samples, derived_key(seed, epoch, "noise")).view(np.int64)
    counter = torch.arange((num + 1) // 2, device=device) * _signed(GOLDEN)
    hashed = _mixed(torch.from_numpy(keys).to(device)[:, None] + counter)
    radius = (((hashed >> 40) & 0xFFFFFF) + 1).float().mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = ((hashed >> 8) & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.reshape(len(samples), -1)[:, :num].reshape(len(samples), *shape)


def _mixed(values: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, in place; products wrap around to the same bits."""
    values.bitwise_xor_(_shifted(values, 30)).mul_(_signed(MIX_1))
    values.bitwise_xor_(_shifted(values, 27)).mul_(_signed(MIX_2))
    return values.bitwise_xor_(_shifted(values, 31))


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's repeats the sign."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def crop_starts(
    samples: Samples, grid: Sequence[int], crop: Sequence[int], *, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """First t, h, w of each sample's crop, int64 ``[B, 3]``, every place equally likely.

    Raises:
        ValueError: a crop that is larger than the grid.
    """
    if any(not 1 <= size <= whole for size, whole in zip(crop, grid, strict=True)):
        raise ValueError(
            f"crop_latents={tuple(crop)} must lie inside the token grid {tuple(grid)}; "
            "choose a smaller crop or filter these clips out"
        )
    starts = [
        hashes(samples, derived_key(seed, epoch, f"crop {axis}")) % np.uint64(whole - size + 1)
        for axis, (size, whole) in enumerate(zip(crop, grid, strict=True))
    ]
    return np.stack(starts, axis=-1).astype(np.int64)


def crop_grids(tokens: Tensor, starts: npt.NDArray[np.int64], crop: Sequence[int]) -> Tensor:
    """Cut each sample's crop out of ``[B, ..., t, h, w]``: ``[B, ..., *crop]``, on its device."""
    t, h, w = crop
    cut = tokens.new_empty((*tokens.shape[:-3], t, h, w))
    for index, (t0, h0, w0) in enumerate(starts.tolist()):
        cut[index] = tokens[index, ..., t0 : t0 + t, h0 : h0 + h, w0 : w0 + w]
    return cut
