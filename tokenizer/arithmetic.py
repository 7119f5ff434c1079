"""How exactly products are computed: the three precisions as a context around a network."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tokenizer.config import Precision

_CUDNN: Any = torch.backends.cudnn
_MATMUL: Any = torch.backends.cuda.matmul


def compute_dtype(precision: Precision) -> torch.dtype:
    """What activations and the operands of products are in; sums and norms are in float32."""
    return torch.bfloat16 if precision is Precision.bf16 else torch.float32


def arithmetic(precision: Precision, device_type: str) -> contextlib.AbstractContextManager[None]:
    """Float32 products of that precision inside; all settings as before after it.

    torch by itself lets cuDNN round float32 convolutions to TF32: fp32 means here that it does not.
    """
    if device_type != "cuda":
        return contextlib.nullcontext()
    return tf32_products(precision is Precision.tf32)


@contextlib.contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Whether CUDA may round float32 operands of convolutions and products to TF32."""
    # torch 2.9 renamed the switches; old ones must not be asked once new ones were set.
    switches = (
        [(_CUDNN.conv, "fp32_precision"), (_MATMUL, "fp32_precision")]
        if hasattr(_MATMUL, "fp32_precision")
        else [(_CUDNN, "allow_tf32"), (_MATMUL, "allow_tf32")]
    )
    before = [getattr(owner, name) for owner, name in switches]
    for owner, name in switches:
        value = ("tf32" if allowed else "ieee") if name == "fp32_precision" else allowed
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in zip(switches, before, strict=True):
            setattr(owner, name, value)
