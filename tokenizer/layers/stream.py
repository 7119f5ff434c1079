"""What causal layers remember between the chunks of a long video.

Every layer that looks back takes a ``Stream`` with its input. It asks there for the last frames of
its input in the chunk before, and leaves those of this chunk. A whole clip is a stream of one
chunk: there is nothing to ask for and nothing is kept.
"""

# B batch · T H W frames, rows, columns · C channels

import enum
from collections.abc import Sequence

import torch
from torch import Tensor


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
        self.left: list[Tensor] = []
        """Frames ``[B, n, H, W, C]`` for the next chunk, one entry per layer that looks back."""
        self._past = iter(past or ())

    def recall(self) -> Tensor | None:
        """What this layer left in the chunk before; None in the first chunk."""
        return None if self.is_first else next(self._past)

    def leave(self, frames_BTHWC: Tensor) -> None:
        """Keep a copy for the next chunk, if there is one.

        Under autocast in its dtype: that is what convolutions round to anyway.
        """
        if self.is_last:
            return
        device, dtype = frames_BTHWC.device.type, frames_BTHWC.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        # A copy: a view would keep the whole chunk alive.
        contiguous = torch.contiguous_format
        self.left.append(frames_BTHWC.detach().to(dtype, copy=True, memory_format=contiguous))

    def put_before(self, past_BTHWC: Tensor, x_BTHWC: Tensor) -> Tensor:
        """Past frames in front of this chunk's, in the dtype of the chunk."""
        return torch.cat([past_BTHWC.to(x_BTHWC.dtype), x_BTHWC], dim=1)
