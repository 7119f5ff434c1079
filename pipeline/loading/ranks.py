"""Which rank this is, and one answer for all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist

from pipeline.errors import PipelineError, RunError


def own_place(rank: int | None, world_size: int | None) -> tuple[int, int, bool]:
    """Rank, number of ranks, and whether they are those of torch.distributed.

    Raises:
        ValueError: a rank outside of its world, or only one of the two.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size belong together, got {rank} and {world_size}")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got {rank} of {world_size}")
        return rank, world_size, False
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size(), True
    return 0, 1, False


def agree_on(find: Callable[[], str]) -> str:
    """What rank 0 finds, on all ranks; its error is raised on all of them, so that none waits.

    Raises:
        RunError: rank 0 failed.
    """
    answer: list[tuple[str, str] | None] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [("found", find())]
        except PipelineError as error:
            answer = [("failed", str(error))]
    dist.broadcast_object_list(answer, src=0)
    how, text = answer[0] or ("failed", "rank 0 said nothing")
    if how == "failed":
        raise RunError(text)
    return text
