"""Which rank this is, and one answer for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from pipeline.errors import PipelineError, RunError

T = TypeVar("T")


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


def same_on_all(find: Callable[[], T], digest: Callable[[T], str]) -> T:
    """What each rank finds itself; an error of one is raised on all of them, so that none waits.

    Args:
        find: the same on all ranks, unless something is broken.
        digest: of what was found.

    Raises:
        RunError: a rank failed, or found something else than another one.
    """
    found: T | None = None
    failed: PipelineError | None = None
    try:
        found = find()
    except PipelineError as error:
        failed = error
    mine = ("failed", str(failed)) if found is None else ("found", digest(found))
    answers: list[tuple[str, str]] = [mine] * dist.get_world_size()
    dist.all_gather_object(answers, mine)
    if failed is not None:
        raise failed
    for rank, (how, text) in enumerate(answers):
        if how == "failed":
            raise RunError(f"rank {rank}: {text}")
        if (how, text) != mine:
            raise RunError(
                f"rank {rank} selects other rows ({text[:12]}) than rank {dist.get_rank()} "
                f"({mine[1][:12]}): some rank reads damaged bytes where others do not; see the "
                "warnings about row groups that are left out, and check that rank's cache and disk"
            )
    return found  # type: ignore[return-value]
