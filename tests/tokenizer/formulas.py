"""Deterministic weights and inputs of the golden data: a hash of key and position, no generator."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizer import VideoTokenizer, build, get_config

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CASES: dict[str, dict] = json.loads((GOLDEN / "cases.json").read_text())
NORM_PARTS = {"norm", "norm1", "norm2", "norm_out"}


def published_keys() -> dict[str, list]:
    return json.loads(gzip.decompress((GOLDEN / "state_dict_keys.json.gz").read_bytes()))


def unit(key: str, n: int) -> NDArray[np.float64]:
    """n values in [-1, 1): an integer hash, exact on every platform."""
    mask = np.uint64(0xFFFFFFFF)
    x = np.arange(n, dtype=np.uint64) * np.uint64(2654435761)
    x = (x + np.uint64(zlib.crc32(key.encode()))) & mask
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x7FEB352D)) & mask
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x846CA68B)) & mask
    x ^= x >> np.uint64(16)
    return x.astype(np.float64) / 2147483648.0 - 1.0


def weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    u = unit(key, int(np.prod(shape))).reshape(shape)
    parts = key.split(".")
    if parts[-1] == "mix_factor":
        value = 0.5 * u
    elif len(shape) == 1 and NORM_PARTS & set(parts[:-1]):
        value = 1 + 0.2 * u if parts[-1] == "weight" else 0.2 * u
    elif len(shape) == 1:
        value = 0.1 * u
    else:
        gain = 2.0 if key.startswith("encoder.conv_out.") else 1.0
        value = gain * np.sqrt(3.0 / np.prod(shape[1:])) * u
    return value.astype(np.float32)


def pattern(B: int, T: int, H: int, W: int, C: int = 3) -> torch.Tensor:
    """Waves and a faint moving checkerboard, float32 [B, C, T, H, W] in [-1, 1]."""
    b, c, t, h, w = np.ogrid[:B, :C, :T, :H, :W]
    wave = 0.55 * np.sin(
        2 * np.pi * (0.031 * h * (1 + 0.35 * c) + 0.047 * w + 0.08 * t) + 0.9 * c + 0.5 * b
    )
    drift = 0.30 * np.cos(
        2 * np.pi * (0.11 * h - 0.07 * w * (1 + 0.2 * c) - 0.05 * t * (1 + c)) + 0.3 * b
    )
    board = 0.15 * (1 - 2 * ((h // 4 + w // 4 + t) % 2))
    return torch.from_numpy((wave + drift + board).astype(np.float32))


def formula_model(name: str, **overrides: object) -> VideoTokenizer:
    """Model with formula weights, so that every layer takes part (fresh time blocks would not)."""
    config = get_config(name, **overrides)
    with torch.device("meta"):
        keys = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    model = build(config)
    model.load_state_dict({key: torch.from_numpy(weight(key, s)) for key, s in keys.items()})
    return model.eval().requires_grad_(False)
