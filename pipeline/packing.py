"""Tokens of one clip to bytes and back, bit-exact.

    u16      codebooks up to 65,536: one little-endian uint16 per index
    u16+u2   codebooks up to 262,144: all low 16 bits as uint16, then the high 2 bits of four
             neighbouring indices in one byte (index i in bits 2*(i mod 4)); 18 bits an index
    i32      anything else, and ``output.packing=plain``: little-endian int32
    fp32, fp16, bf16   latents: mean, then log-variance, raw little-endian floats

Latents may be compressed as well, clip by clip (``output.compression=planes``): the lowest bytes
of all values, then the next ones, up to the highest; all of it one Zstandard frame. High bytes
(sign and exponent) of neighbouring latents are alike, low ones are noise.

Pure numpy, and Arrow's Zstandard. bfloat16 has no numpy type: it is handled as the uint16 of its
bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

INDEX_PACKINGS = ("u16", "u16+u2", "i32")
LATENT_PACKINGS = ("fp32", "fp16", "bf16")

# The high bits of four neighbours, in place, for every value of their byte. Four int32 are looked
# up as one element of 16 bytes, which is what makes this fast.
_HIGH_BITS = np.array(
    [[(byte >> shift & 3) << 16 for shift in (0, 2, 4, 6)] for byte in range(256)], dtype=np.int32
)
_QUADS = _HIGH_BITS.view(np.complex128).reshape(256)
COMPRESSIONS = ("none", "planes")

_VALUE_BYTES = {"u16": 2, "i32": 4, "fp32": 4, "fp16": 2, "bf16": 2}
_ZSTD = pa.Codec("zstd", compression_level=1)  # higher levels: slower, and no smaller on latents


def index_packing(codebook_size: int, *, plain: bool) -> str:
    """The packing of a codebook.

    >>> index_packing(32768, plain=False), index_packing(262144, plain=False)
    ('u16', 'u16+u2')
    """
    if plain or codebook_size > 1 << 18:
        return "i32"
    return "u16" if codebook_size <= 1 << 16 else "u16+u2"


def packed_bytes(packing: str, num_values: int) -> int:
    """Bytes that ``num_values`` take."""
    if packing == "u16+u2":
        return 2 * num_values + math.ceil(num_values / 4)
    return _VALUE_BYTES[packing] * num_values


def pack_indices(indices: npt.NDArray[np.int32], packing: str) -> bytes:
    """Pack the indices of one clip, in C order.

    Raises:
        ValueError: an index outside what the packing holds.
    """
    flat = np.ascontiguousarray(indices, dtype=np.int32).reshape(-1)
    bound = {"u16": 1 << 16, "u16+u2": 1 << 18, "i32": 1 << 31}[packing]
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= bound):
        raise ValueError(
            f"indices must lie in [0, {bound}) for packing {packing}, "
            f"got {int(flat.min())}..{int(flat.max())}"
        )
    if packing == "i32":
        return flat.astype("<i4").tobytes()
    low = (flat & 0xFFFF).astype("<u2").tobytes()
    if packing == "u16":
        return bytes(low)
    high = np.zeros(4 * math.ceil(flat.size / 4), dtype=np.uint8)
    high[: flat.size] = flat >> 16
    quads = high.reshape(-1, 4)
    packed = (quads << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(1, dtype=np.uint8)
    return bytes(low) + bytes(packed)


def padded_values(packing: str, num_values: int) -> int:
    """Values that a clip takes while its indices are unpacked.

    >>> padded_values("u16", 5), padded_values("u16+u2", 5)
    (5, 8)
    """
    return 4 * math.ceil(num_values / 4) if packing == "u16+u2" else num_values


def unpack_indices(
    blob: npt.NDArray[np.uint8],
    packing: str,
    shape: Sequence[int],
    out: npt.NDArray[np.int32] | None = None,
) -> npt.NDArray[np.int32]:
    """Indices of several clips.

    Args:
        blob: uint8 ``[B, packed bytes of a clip]``.
        packing: one of ``INDEX_PACKINGS``.
        shape: ``[t, h, w]`` of one clip.
        out: int32 ``[B * padded_values]`` that the result is a view of; None: new memory.

    Returns:
        int32 ``[B, t, h, w]``, writable.
    """
    num, batch = math.prod(shape), blob.shape[0]
    padded = padded_values(packing, num)
    indices = np.empty(batch * padded, dtype=np.int32) if out is None else out
    indices = indices.reshape(batch, padded)
    if packing != "u16+u2":
        indices[:] = np.ascontiguousarray(blob).view({"u16": "<u2", "i32": "<i4"}[packing])
        return indices.reshape(batch, *shape)
    # "clip" never clips a byte here; it lets take write into the result without a buffer
    np.take(_QUADS, blob[:, 2 * num :], out=indices.view(np.complex128), mode="clip")
    indices = indices[:, :num]
    np.bitwise_or(indices, blob[:, : 2 * num].view("<u2"), out=indices)
    return indices.reshape(batch, *shape)


def pack_latents(latents: npt.NDArray[np.float32], packing: str) -> bytes:
    """Pack the float values of one clip, in C order, rounded to nearest even.

    Raises:
        ValueError: NaN or infinity, before or after rounding.
    """
    flat = np.ascontiguousarray(latents, dtype=np.float32).reshape(-1)
    if packing == "bf16":
        bits = flat.view(np.uint32)
        rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        check: npt.NDArray[np.float32] = (rounded.astype(np.uint32) << 16).view(np.float32)
        packed = rounded.tobytes()
    else:
        with np.errstate(over="ignore"):
            values = flat.astype({"fp16": "<f2", "fp32": "<f4"}[packing])
        check, packed = values.astype(np.float32), values.tobytes()
    if not (np.isfinite(flat).all() and np.isfinite(check).all()):
        raise ValueError(f"latents hold NaN, infinity or values beyond {packing}")
    return packed


def unpack_latents(
    blob: npt.NDArray[np.uint8], packing: str, shape: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Float values of several clips: uint8 ``[B, bytes]`` to float32 ``[B, *shape]``."""
    raw = np.ascontiguousarray(blob)
    if packing == "bf16":
        bits = raw.view("<u2").astype(np.uint32)
        bits <<= 16  # in place: no second array of this size
        values = bits.view(np.float32)
    else:
        values = raw.view({"fp16": "<f2", "fp32": "<f4"}[packing]).astype(np.float32)
    return values.reshape(raw.shape[0], *shape)


def compress_planes(packed: bytes, packing: str) -> bytes:
    """One clip's packed latents as byte planes in a Zstandard frame.

    >>> raw = bytes([1, 7, 2, 7, 3, 7])  # three values of two bytes
    >>> expand_planes(compress_planes(raw, "bf16"), "bf16", 6).tobytes() == raw
    True
    """
    values = np.frombuffer(packed, np.uint8).reshape(-1, _VALUE_BYTES[packing])
    return bytes(_ZSTD.compress(np.ascontiguousarray(values.T), asbytes=True))


def expand_planes(
    blob: bytes | npt.NDArray[np.uint8], packing: str, num_bytes: int
) -> npt.NDArray[np.uint8]:
    """The inverse: uint8 ``[num_bytes]``.

    Raises:
        ValueError: no such frame, or one of another length.
    """
    try:
        planes = _ZSTD.decompress(pa.py_buffer(blob), decompressed_size=num_bytes)
    except OSError as error:
        raise ValueError(f"compressed latents cannot be read: {error}") from error
    if len(planes) != num_bytes:
        raise ValueError(f"compressed latents hold {len(planes):,} bytes, not {num_bytes:,}")
    values = np.frombuffer(planes, np.uint8).reshape(_VALUE_BYTES[packing], -1)
    return np.ascontiguousarray(values.T).reshape(-1)
