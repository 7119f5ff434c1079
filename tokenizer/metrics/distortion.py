"""PSNR and SSIM as the published figures of VidTok were computed: per frame, then the mean.

Both take values in [-1, 1], clamp them, and compare in [0, 1].
"""

# B batch · C colour · T H W frames, rows, columns · N = B * T frames

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.errors import ShapeError

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)
"""For a data range of 1."""


def psnr(x_hat_BCTHW: Tensor, x_BCTHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, float32 ``[B, T]``; 80 for equal frames.

    Raises:
        ShapeError: the two differ in shape, or are no videos.
    """
    x_hat_NCHW, x_NCHW = _frames(x_hat_BCTHW, x_BCTHW)
    mse_N = (x_hat_NCHW - x_NCHW).square().mean(dim=(1, 2, 3))
    return (-10 * torch.log10(mse_N + 1e-8)).view(x_BCTHW.shape[0], -1)


def ssim(x_hat_BCTHW: Tensor, x_BCTHW: Tensor) -> Tensor:
    """Structural similarity of each frame, float32 ``[B, T]``; 1 for equal frames.

    Gaussian window of 11 x 11, only where it fits (Wang et al. 2004). Frames from 384 rows or
    columns on, whichever is fewer, are averaged to about 256 first.

    Raises:
        ShapeError: the two differ in shape, are no videos, or smaller than the window.
    """
    x_hat_NCHW, x_NCHW = _frames(x_hat_BCTHW, x_BCTHW)
    factor = round(min(x_NCHW.shape[-2:]) / 256)
    if factor > 1:
        x_hat_NCHW, x_NCHW = (F.avg_pool2d(x, factor) for x in (x_hat_NCHW, x_NCHW))
    if min(x_NCHW.shape[-2:]) < SSIM_WINDOW:
        expected = f"at least {SSIM_WINDOW} rows and columns"
        raise ShapeError("video", expected, str(list(x_BCTHW.shape)))
    mean_a, mean_b = _blur(x_hat_NCHW), _blur(x_NCHW)
    variance_a = _blur(x_hat_NCHW.square()) - mean_a.square()
    variance_b = _blur(x_NCHW.square()) - mean_b.square()
    covariance = _blur(x_hat_NCHW * x_NCHW) - mean_a * mean_b
    c1, c2 = SSIM_CONSTANTS
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return (luminance * contrast).mean(dim=(1, 2, 3)).view(x_BCTHW.shape[0], -1)


def _frames(x_hat_BCTHW: Tensor, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 frames [N, C, H, W] in [0, 1]."""
    if x_BCTHW.ndim != 5 or x_hat_BCTHW.shape != x_BCTHW.shape or 0 in x_BCTHW.shape:
        expected = f"two of one shape [B, C, T, H, W], such as {list(x_BCTHW.shape)}"
        raise ShapeError("videos to compare", expected, str(list(x_hat_BCTHW.shape)))
    a, b = ((x.float().clamp(-1, 1) + 1) / 2 for x in (x_hat_BCTHW, x_BCTHW))
    return a.transpose(1, 2).flatten(0, 1), b.transpose(1, 2).flatten(0, 1)


def _blur(x_NCHW: Tensor) -> Tensor:
    """Gaussian mean around each position, without the edges; rows, then columns."""
    at = torch.arange(SSIM_WINDOW, dtype=torch.float32, device=x_NCHW.device) - SSIM_WINDOW // 2
    window = torch.exp(-at.square() / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    y_GHW = x_NCHW.flatten(0, 1).unsqueeze(1)
    y_GHW = F.conv2d(F.conv2d(y_GHW, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return y_GHW.view(*x_NCHW.shape[:2], *y_GHW.shape[-2:])
