"""Halving and doubling of space and time, on ``[B, T, H, W, C]``.

Time is resampled by a plain average (or repetition) blended with a learned convolution; the weight
of the blend is the sigmoid of one learned scalar (arXiv 2412.13061, section 3).
"""

# B batch · T H W frames, rows, columns · C channels

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.layers.conv import FrameConv, TimePadding, volume_conv


class FrameDownsample(nn.Module):
    """Halves height and width; an odd last row or column is dropped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, halve=True)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T, H // 2, W // 2, C]``."""
        # Zeros right and below only: the published weights were trained so.
        y_BTHWC: Tensor = self.conv(F.pad(x_BTHWC, (0, 0, 0, 1, 0, 1)))
        return y_BTHWC


class FrameUpsample(nn.Module):
    """Doubles height and width: every pixel is repeated, then a convolution smooths."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T, 2 * H, 2 * W, C]``."""
        B, T, H, W, C = x_BTHWC.shape
        x_BTHWC = x_BTHWC[:, :, :, None, :, None].expand(B, T, H, 2, W, 2, C)
        y_BTHWC: Tensor = self.conv(x_BTHWC.reshape(B, T, 2 * H, 2 * W, C))
        return y_BTHWC


class TimeDownsample(nn.Module):
    """Halves time: mean of three frames at stride 2, blended with a convolution at stride 2."""

    def __init__(self, channels: int, padding: TimePadding) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))
        self.conv = volume_conv(channels, channels, padding, time_stride=2)
        self.time_padding = padding
        self.sides = padding.sides(kernel=3, stride=2)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T // 2, H, W, C]``; T of at least 2."""
        padded_BTHWC = self.time_padding.pad(x_BTHWC, *self.sides)
        # The divisor is 3 at the padded edge, too.
        mean_BTHWC = (padded_BTHWC[:, 0:-2:2] + padded_BTHWC[:, 1:-1:2] + padded_BTHWC[:, 2::2]) / 3
        return blend(self.mix_factor, mean_BTHWC, self.conv(x_BTHWC))


class TimeUpsample(nn.Module):
    """Doubles time: frames repeated (v1.1: interpolated), blended with a convolution of them.

    Args:
        head_frames: v1.1 only: frames that one latent frame has become when it arrives here. The
        first
            so many frames of a clip are interpolated among themselves, as the first latent of a
            long video is decoded on its own.
    """

    def __init__(self, channels: int, padding: TimePadding, head_frames: int) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))
        self.conv = volume_conv(channels, channels, padding)
        self.is_linear = padding is TimePadding.causal_replicate
        self.head_frames = head_frames

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, 2 * T, H, W, C]``."""
        if self.is_linear:
            head_BTHWC, tail_BTHWC = x_BTHWC[:, : self.head_frames], x_BTHWC[:, self.head_frames :]
            u_BTHWC = torch.cat([double_linear(head_BTHWC), double_linear(tail_BTHWC)], dim=1)
        else:
            u_BTHWC = x_BTHWC.repeat_interleave(2, dim=1)
        return blend(self.mix_factor, u_BTHWC, self.conv(u_BTHWC))


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
