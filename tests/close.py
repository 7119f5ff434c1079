"""The only place with numeric tolerances; golden/README.md says where they come from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def assert_exact(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """Same shape, same dtype kind, same values."""
    a, b = _array(actual), _array(expected)
    assert a.shape == b.shape, f"shape {a.shape} instead of {b.shape}"
    assert a.dtype.kind == b.dtype.kind, f"dtype {a.dtype} instead of {b.dtype}"
    assert np.array_equal(a, b), f"{int((a != b).sum())} of {a.size} values differ"


def assert_close_fp32(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """A whole network in float32, summed in another order."""
    _assert_close(actual, expected, atol=5e-5, rtol=1e-4)


def assert_close_stream(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """A clip in chunks against the same clip in one piece."""
    _assert_close(actual, expected, atol=2e-5, rtol=0)


def assert_close_groupnorm(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """A whole network in float32 whose norms average few numbers."""
    _assert_close(actual, expected, atol=2e-4, rtol=1e-4)


def assert_close_formula(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """One formula in float32."""
    _assert_close(actual, expected, atol=1e-5, rtol=0)


def assert_close_network(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """A discriminator or a metric's network in float32."""
    _assert_close(actual, expected, atol=1e-4, rtol=0)


def assert_close_loss(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """A sum over many values in float32, in another order."""
    _assert_close(actual, expected, atol=0, rtol=1e-4)


def assert_close_bf16(actual: Tensor | ArrayLike, expected: Tensor | ArrayLike) -> None:
    """A whole network in bfloat16 against float32: about 2% of the spread of the values."""
    a, b = _array(actual), _array(expected)
    assert a.shape == b.shape, f"shape {a.shape} instead of {b.shape}"
    error = float(np.sqrt(np.mean((a - b) ** 2)) / np.std(b))
    assert error < 0.02, f"root mean square error is {error:.4f} of the standard deviation"


def _assert_close(
    actual: Tensor | ArrayLike, expected: Tensor | ArrayLike, *, atol: float, rtol: float
) -> None:
    a, b = _array(actual), _array(expected)
    assert a.shape == b.shape, f"shape {a.shape} instead of {b.shape}"
    np.testing.assert_allclose(a, b, atol=atol, rtol=rtol)


def _array(value: Tensor | ArrayLike) -> NDArray[np.generic]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
