"""Stored bytes of a batch of clips to numbers: with numpy on the CPU, with torch on any device.

Layouts: ``pipeline/packing.py``. Both sides give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.packing import INDEX_PACKINGS

_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# The high bits of four neighbours, in place, for every value of their byte. Four int32 are looked
# up as one element of 16 bytes, which is what makes this fast.
_HIGH_BITS = np.array(
    [[(byte >> shift & 3) << 16 for shift in (0, 2, 4, 6)] for byte in range(256)], dtype=np.int32
)
_QUADS = _HIGH_BITS.view(np.complex128).reshape(256)


def unpack(
    blob: npt.NDArray[np.uint8], packing: str, shape: Sequence[int]
) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
    """Numbers of several clips; nothing beside the result is allocated.

    Args:
        blob: uint8 ``[B, packed bytes of a clip]``, each row contiguous.
        packing: one of ``packing.INDEX_PACKINGS`` or ``LATENT_PACKINGS``.
        shape: what is stored of one clip: ``[t, h, w]``, or ``[2c, t, h, w]`` for latents.

    Returns:
        int32 ``[B, t, h, w]`` or float32 ``[B, 2c, t, h, w]``, writable.
    """
    batch, num = blob.shape[0], math.prod(shape)
    if packing == "u16+u2":
        quads = math.ceil(num / 4)
        indices = np.empty((batch, 4 * quads), dtype=np.int32)
        # "clip" never clips a byte here; it lets take write into the result without a buffer
        np.take(_QUADS, blob[:, 2 * num :], out=indices.view(np.complex128), mode="clip")
        indices = indices[:, :num]
        np.bitwise_or(indices, blob[:, : 2 * num].view("<u2"), out=indices)
        return indices.reshape(batch, *shape)
    if packing in INDEX_PACKINGS:
        indices = np.empty((batch, num), dtype=np.int32)
        np.copyto(indices, blob.view({"u16": "<u2", "i32": "<i4"}[packing]))
        return indices.reshape(batch, *shape)
    values = np.empty((batch, num), dtype=np.float32)
    if packing == "bf16":
        bits = values.view(np.uint32)
        np.copyto(bits, blob.view("<u2"))
        bits <<= 16
    else:
        np.copyto(values, blob.view({"fp16": "<f2", "fp32": "<f4"}[packing]))
    return values.reshape(batch, *shape)


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
    """
    codes = torch.empty((indices.shape[0], len(levels), *indices.shape[1:]), device=indices.device)
    rest = indices.to(torch.int32)
    for channel, level in enumerate(levels):
        centre = level // 2
        torch.div(rest % level - centre, centre, out=codes[:, channel])
        rest = rest // level
    return codes
