"""Fills batches of one shape across videos and shards.

Every batch that leaves has the same shape, the last ones padded with black: the tokens of a clip
depend (in the last bits) on the shape of the batch, never on what else is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Tag = TypeVar("Tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[Tag]):
    """B clips of one shape, and whose they are."""

    frames: npt.NDArray[np.uint8]
    """uint8 ``[B, T, H, W, 3]``, RGB; rows behind ``len(tags)`` are black."""
    tags: tuple[Tag, ...]
    """What was handed in with each clip; ids travel with the pixels."""


class Batcher(Generic[Tag]):
    """One batch under construction. Not thread-safe."""

    def __init__(self, batch_clips: int, clip_shape: tuple[int, int, int]) -> None:
        """Args: B, and ``(T, H, W)``."""
        self._shape = (batch_clips, *clip_shape, 3)
        self._tags: list[Tag] = []
        self._frames: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._tags)

    def add(self, tag: Tag, frames: npt.NDArray[np.uint8]) -> Batch[Tag] | None:
        """Copy one clip in; returns the batch when it is full.

        Raises:
            ValueError: frames of another shape or type.
        """
        if frames.shape != self._shape[1:] or frames.dtype != np.uint8:
            raise ValueError(
                f"this batch takes uint8 {list(self._shape[1:])}, "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        if self._frames is None:
            self._frames = np.zeros(self._shape, dtype=np.uint8)
        self._frames[len(self._tags)] = frames
        self._tags.append(tag)
        return self.flush() if len(self._tags) == self._shape[0] else None

    def flush(self) -> Batch[Tag] | None:
        """The batch as it is, padded; None when it is empty."""
        if self._frames is None:
            return None
        batch = Batch(frames=self._frames, tags=tuple(self._tags))
        self._frames, self._tags = None, []
        return batch
