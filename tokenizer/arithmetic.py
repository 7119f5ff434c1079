"""How exactly products are computed: the three precisions as a context around a network."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tokenizer.config import Precision

_CUDNN: Any = torch.backends.cudnn
_MATMUL: Any = torch.backends.cuda.matmul


@contextlib.contextmanager
def arithmetic(precision: Precision, device_type: str) -> Iterator[None]:
    """Convolutions and matrix products of that precision inside; all settings as before after it.

    torch by itself lets cuDNN round float32 convolutions to TF32: fp32 means here that it does not.
    """
    is_bf16 = precision is Precision.bf16
    products = (
        tf32_products(precision is Precision.tf32)
        if device_type == "cuda"
        else contextlib.nullcontext()
    )
    with products, torch.autocast(device_type, dtype=torch.bfloat16, enabled=is_bf16):
        yield


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
