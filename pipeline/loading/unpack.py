"""Stored bytes of a batch of clips to numbers: with numpy on the CPU, with torch on any device.

Layouts: ``pipeline/packing.py``. Both sides give the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.loading.buffers import Take, fresh
from pipeline.packing import INDEX_PACKINGS, padded_values, unpack_indices, unpack_latents

_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def unpack(
    blob: npt.NDArray[np.uint8], packing: str, shape: Sequence[int], take: Take = fresh
) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
    """Numbers of several clips.

    Args:
        blob: uint8 ``[B, packed bytes of a clip]``, each row contiguous.
        packing: one of ``packing.INDEX_PACKINGS`` or ``LATENT_PACKINGS``.
        shape: what is stored of one clip: ``[t, h, w]``, or ``[2c, t, h, w]`` for latents.
        take: gives memory for the result of indices; no more than that of it is used.

    Returns:
        int32 ``[B, t, h, w]`` or float32 ``[B, 2c, t, h, w]``, writable.
    """
    if packing in INDEX_PACKINGS:
        room = take(4 * len(blob) * padded_values(packing, math.prod(shape)))
        return unpack_indices(blob, packing, shape, room.view(np.int32))
    if packing != "fp16":
        return unpack_latents(blob, packing, shape)
    # numpy converts halves ten times slower than torch, which refuses what is read-only
    halves = torch.from_numpy(np.array(blob, order="C")).view(torch.float16)
    values: npt.NDArray[np.float32] = halves.float().numpy()
    return values.reshape(blob.shape[0], *shape)


def unpack_on_device(blob: Tensor, packing: str, shape: Sequence[int]) -> Tensor:
    """``unpack`` on the device of ``blob`` (uint8 ``[B, packed bytes of a clip]``)."""
    batch, num = blob.shape[0], math.prod(shape)
    if packing in _FLOATS:
        return blob.contiguous().view(_FLOATS[packing]).float().reshape(batch, *shape)
    if packing == "i32":
        return blob.contiguous().view(torch.int32).clone().reshape(batch, *shape)
    low = blob[:, : 2 * num].contiguous().view(torch.int16)
    indices = low.to(torch.int32).bitwise_and_(0xFFFF)
    if packing == "u16+u2":
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blob.device)
        high = (blob[:, 2 * num :, None] >> shifts).bitwise_and_(3).reshape(batch, -1)
        indices |= high[:, :num].to(torch.int32) << 16
    return indices.reshape(batch, *shape)


def fsq_codes(indices: Tensor, levels: Sequence[int]) -> Tensor:
    """Codes of FSQ indices, as the tokenizer's quantiser gives them.

    Args:
        indices: integers ``[B, t, h, w]``.
        levels: levels of each channel, the first being the least significant digit.

    Returns:
        float32 ``[B, c, t, h, w]`` in [-1, 1].

    Raises:
        IndexError: an index outside the codebook (on the CPU; a GPU stops with its own error).
    """
    tables = _code_tables(tuple(levels), indices.device)
    flat = indices.reshape(-1)
    codes = torch.empty((indices.shape[0], len(levels), *indices.shape[1:]), device=indices.device)
    for channel, table in enumerate(tables):
        codes[:, channel] = table.index_select(0, flat).view(indices.shape)
    return codes


@functools.lru_cache(maxsize=8)
def _code_tables(levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Of each channel the code of every index, float32 ``[codebook size]``."""
    tables = []
    rest = torch.arange(math.prod(levels), dtype=torch.int32)
    for level in levels:
        centre = level // 2
        tables.append(((rest % level - centre).float() / centre).to(device))
        rest = rest // level
    return tuple(tables)
