"""Halving and doubling of space and time, on ``[B, T, H, W, C]``.

Time is resampled by a plain average (or repetition) blended with a learned convolution; the weight
of the blend is the sigmoid of one learned scalar (arXiv 2412.13061, section 3).
"""

# B batch · T H W frames, rows, columns · C channels

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.layers.conv import FrameConv, TimePadding, volume_conv
from tokenizer.layers.stream import Stream, StreamMode


class FrameDownsample(nn.Module):
    """Halves height and width; an odd last row or column is dropped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, halve=True)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T, H // 2, W // 2, C]``."""
        # Zeros right and below only: the published weights were trained so.
        y_BTHWC: Tensor = self.conv(F.pad(x_BTHWC, (0, 0, 0, 1, 0, 1)), stream)
        return y_BTHWC


class FrameUpsample(nn.Module):
    """Doubles height and width: every pixel is repeated, then a convolution smooths."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T, 2 * H, 2 * W, C]``."""
        B, T, H, W, C = x_BTHWC.shape
        x_BTHWC = x_BTHWC[:, :, :, None, :, None].expand(B, T, H, 2, W, 2, C)
        y_BTHWC: Tensor = self.conv(x_BTHWC.reshape(B, T, 2 * H, 2 * W, C), stream)
        return y_BTHWC


class TimeDownsample(nn.Module):
    """Halves time: mean of three frames at stride 2, blended with a convolution at stride 2."""

    def __init__(self, channels: int, padding: TimePadding) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))
        self.conv = volume_conv(channels, channels, padding, halve_time=True)
        self.time_padding = padding
        self.sides = padding.sides(kernel=3, stride=2)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T // 2, H, W, C]``; T of at least 2."""
        x_BTHWC = self.time_padding.pad(x_BTHWC, *self.sides, stream)
        # The divisor is 3 at the padded edge, too.
        mean_BTHWC = (x_BTHWC[:, 0:-2:2] + x_BTHWC[:, 1:-1:2] + x_BTHWC[:, 2::2]) / 3
        return blend(self.mix_factor, mean_BTHWC, self.conv(x_BTHWC, stream))


class TimeUpsample(nn.Module):
    """Doubles time: frames repeated (v1.1: interpolated), blended with a convolution of them.

    Args:
        head_frames: v1.1 only: frames that one latent frame has become when it arrives here. The
            first so many frames of a clip are interpolated among themselves, as the first latent
            of a long video is decoded on its own.
    """

    def __init__(self, channels: int, padding: TimePadding, head_frames: int) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))
        self.conv = volume_conv(channels, channels, padding)
        self.is_linear = padding is TimePadding.causal_replicate
        self.head_frames = head_frames

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, 2 * T, H, W, C]``, in the chunks of a stream ``± 1``."""
        if not self.is_linear:
            u_BTHWC = x_BTHWC.repeat_interleave(2, dim=1)
        elif stream.mode is StreamMode.exact:
            u_BTHWC = self._double_exact(x_BTHWC, stream)
        else:
            u_BTHWC = self._double_as_published(x_BTHWC, stream)
        stream.surplus_frames *= 2
        return blend(self.mix_factor, u_BTHWC, self.conv(u_BTHWC, stream))

    def _double_exact(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """A frame that lies between the last of this chunk and the first of the next waits."""
        waiting_BTHWC = stream.recall()
        done = []
        if waiting_BTHWC is None:
            head_BTHWC, x_BTHWC = x_BTHWC[:, : self.head_frames], x_BTHWC[:, self.head_frames :]
            done.append(double_linear(head_BTHWC))
            waiting_BTHWC = x_BTHWC[:, :0]
        num_waiting = waiting_BTHWC.shape[1]
        x_BTHWC = stream.put_before(waiting_BTHWC, x_BTHWC)
        stream.leave(x_BTHWC[:, -1:])
        if x_BTHWC.shape[1]:
            u_BTHWC = double_linear(x_BTHWC)
            done.append(u_BTHWC[:, num_waiting : u_BTHWC.shape[1] - (not stream.is_last)])
        return torch.cat(done, dim=1)

    def _double_as_published(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """The frames of the latent before go first, and what they become is dropped.

        After the first chunk these are its last frames, those of the surplus latent, so that the
        first frame of the second chunk gets a wrong neighbour. Kept: published figures of v1.1
        were measured so.
        """
        n, past_BTHWC = self.head_frames, stream.recall()
        if past_BTHWC is None:
            stream.leave(x_BTHWC[:, -n:])
            halves = (x_BTHWC[:, :n], x_BTHWC[:, n:])
            return torch.cat([double_linear(half) for half in halves if half.shape[1]], dim=1)
        x_BTHWC = stream.put_before(past_BTHWC, x_BTHWC)
        stream.leave(x_BTHWC[:, -2 * n : -n])
        return double_linear(x_BTHWC)[:, 2 * n :]


def blend(mix_factor: Tensor, plain_BTHWC: Tensor, learned_BTHWC: Tensor) -> Tensor:
    """``alpha * plain + (1 - alpha) * learned`` with alpha the sigmoid of mix_factor."""
    alpha = torch.sigmoid(mix_factor).to(plain_BTHWC.dtype)
    return alpha * plain_BTHWC + (1 - alpha) * learned_BTHWC


def double_linear(x_BTHWC: Tensor) -> Tensor:
    """Twice as many frames by linear interpolation: half-pixel centres, edges clamped, float32."""
    s_BTHWC = x_BTHWC.float()
    before_BTHWC = torch.cat([s_BTHWC[:, :1], s_BTHWC[:, :-1]], dim=1)
    after_BTHWC = torch.cat([s_BTHWC[:, 1:], s_BTHWC[:, -1:]], dim=1)
    pairs = [0.25 * before_BTHWC + 0.75 * s_BTHWC, 0.75 * s_BTHWC + 0.25 * after_BTHWC]
    return torch.stack(pairs, dim=2).flatten(1, 2).to(x_BTHWC.dtype)
