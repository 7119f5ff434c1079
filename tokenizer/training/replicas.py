"""The same state on all ranks of a distributed training: one start, and means of what they found.

Without torch.distributed, or before it is initialised, nothing here does anything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return distributed.is_available() and distributed.is_initialized()


@torch.no_grad()
def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Give every rank the tensors of rank 0, in place."""
    if is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Mean over all ranks, in place, in one message; float32 tensors of any shapes."""
    if not tensors or not is_distributed():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
