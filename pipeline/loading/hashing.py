"""Chance that everybody can repeat: draws are hashes of numbers, never states of a generator.

The same numbers come out on every rank, in every worker, on every platform and with every version
of numpy, whose generators promise nothing of the kind.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def derived_key(*parts: int | str) -> int:
    """64 bits that stand for a purpose: ``derived_key(seed, epoch, "crop")``.

    >>> derived_key(0, 1, "crop") == derived_key(np.int64(0), 1, "crop")
    True
    >>> derived_key(0, 1) == derived_key(0, "1")
    False
    """
    kinds = ((f"str:{part}" if isinstance(part, str) else f"int:{int(part)}") for part in parts)
    text = "\x1f".join(kinds)  # numbers of numpy are numbers, whatever their type is called
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of the 64-bit integers that looks random (Steele, Lea, Flood 2014).

    >>> [hex(value) for value in splitmix64(np.array([0, 1], dtype=np.uint64)).tolist()]
    ['0xe220a8397b1dcdaf', '0x910a2dec89025cc1']
    """
    mixed = values.astype(np.uint64) + np.uint64(GOLDEN)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(MIX_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(MIX_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hashes(numbers: npt.ArrayLike, key: int) -> npt.NDArray[np.uint64]:
    """One hash for each number (int64 or uint64, not negative) under a key of ``derived_key``."""
    return splitmix64(np.atleast_1d(np.asarray(numbers)).astype(np.uint64) ^ np.uint64(key))


def unit_interval(hashed: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Hashes as float64 in [0, 1), all 53 bits used."""
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
