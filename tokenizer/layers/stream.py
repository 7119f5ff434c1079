"""What causal layers remember between the chunks of a long video.

Every layer that looks back takes a ``Stream`` with its input. It asks there for the last frames of
its input in the chunk before, and leaves those of this chunk. A whole clip is a stream of one
chunk: there is nothing to ask for and nothing is kept.
"""

# B batch · T H W frames, rows, columns · C channels

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

Place = tuple[slice, slice, slice]
"""One clip, and a range of its frames or of its rows."""


class StreamMode(enum.Enum):
    """How v1.1 decoders join chunks; all other layers join them exactly."""

    exact = "exact"  # equal to the whole clip in one piece
    overlap = "overlap"  # as published: every chunk also decodes the next latent, and drops it
    no_overlap = "no_overlap"  # as published without that latent: visible seams


class Stream:
    """One pass over one chunk.

    Layers come by in the order in which they run, which never changes, so what they leave is a
    plain sequence.

    Args:
        past: what the chunk before left; None in the first chunk.
        keep: whether a chunk follows.
        mode: v1.1 decoders only.
        surplus_frames: frames at the end of the input that the next chunk brings again.
    """

    def __init__(
        self,
        past: Sequence[Tensor] | None = None,
        *,
        keep: bool = False,
        mode: StreamMode = StreamMode.exact,
        surplus_frames: int = 0,
    ) -> None:
        self.is_first, self.is_last = past is None, not keep
        self.mode = mode
        self.surplus_frames = surplus_frames
        """Of the tensor at hand: layers that double time double it, too."""
        self.held_copies = 0
        """Copies of the first frame that belong before it; all equal to it, so not computed yet."""
        self.left: list[Tensor] = []
        """Frames ``[B, n, H, W, C]`` for the next chunk, one entry per layer that looks back."""
        self._past = iter(past or ())

    def recall(self) -> Tensor | None:
        """What this layer left in the chunk before; None in the first chunk."""
        return None if self.is_first else next(self._past)

    def leave(self, frames_BTHWC: Tensor) -> None:
        """Keep a copy for the next chunk, if there is one."""
        if not self.is_last:
            # A copy: a view would keep the whole chunk alive.
            kept_BTHWC = frames_BTHWC.detach()
            self.left.append(kept_BTHWC.clone(memory_format=torch.contiguous_format))

    def put_before(self, past_BTHWC: Tensor, x_BTHWC: Tensor) -> Tensor:
        """Past frames in front of this chunk's, in the dtype of the chunk."""
        return torch.cat([past_BTHWC.to(x_BTHWC.dtype), x_BTHWC], dim=1)

    def put_held_copies(self, x_BTHWC: Tensor) -> Tensor:
        """The frames with the copies before them that were held back until here."""
        num_copies, self.held_copies = self.held_copies, 0
        if num_copies == 0:
            return x_BTHWC
        return self.put_before(x_BTHWC[:, :1].expand(-1, num_copies, -1, -1, -1), x_BTHWC)

    def split(self, places: Sequence[Place], num_layers: int) -> list[Stream]:
        """A stream for each part of the tensor at hand, for the next layers that look back.

        Args:
            places: clips, frames (all where a layer looks back) and rows of each part.
            num_layers: how many layers look back before ``join`` puts the parts together again.
        """
        past = None if self.is_first else [next(self._past) for _ in range(num_layers)]
        return [
            Stream(
                past if past is None else [cache[clips, :, rows] for cache in past],
                keep=not self.is_last,
                mode=self.mode,
                surplus_frames=self.surplus_frames,
            )
            for clips, _, rows in places
        ]

    def join(self, places: Sequence[Place], parts: Sequence[Stream], shape: torch.Size) -> None:
        """Keep what the parts of a tensor of that ``[B, T, H, W, C]`` left."""
        for layer in range(len(parts[0].left)):
            sample = parts[0].left[layer]
            whole_BTHWC = sample.new_empty(shape[0], sample.shape[1], *shape[2:])
            for (clips, _, rows), part in zip(places, parts, strict=True):
                whole_BTHWC[clips, :, rows] = part.left[layer]
            self.left.append(whole_BTHWC)
