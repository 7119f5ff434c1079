"""PSNR and SSIM as the published figures of VidTok were computed: one number per frame.

Both compare frames in [0, 1] and agree with torchmetrics (``data_range=1``) but for two things the
published figures rest on: PSNR ends at 80 dB, and SSIM leaves out the edges, where a window would
need rows that are not there. ``frames`` makes frames of videos.
"""

# B batch · C colour · T H W frames, rows, columns · N frames

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.errors import DtypeError, ShapeError

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)
"""For a data range of 1."""


def frames(x_BCTHW: Tensor) -> Tensor:
    """Videos in [-1, 1] as frames float32 ``[B * T, C, H, W]`` in [0, 1], clamped."""
    if x_BCTHW.ndim != 5:
        raise ShapeError("videos", "[B, C, T, H, W]", str(list(x_BCTHW.shape)))
    return (x_BCTHW.float().clamp(-1, 1).transpose(1, 2).flatten(0, 1) + 1) / 2


def psnr(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, float32 ``[N]``; 80 for equal frames.

    Args:
        a_NCHW: floats in [0, 1]; not clamped.
        b_NCHW: likewise; the two may be exchanged.

    Raises:
        ShapeError: the two differ in shape, or are no frames.
        DtypeError: not floats, such as uint8 in [0, 255].
    """
    a_NCHW, b_NCHW = checked_frames(a_NCHW, b_NCHW)
    mse_N = (a_NCHW - b_NCHW).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse_N + 1e-8)


def ssim(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Structural similarity of each frame, float32 ``[N]``; 1 for equal frames.

    Gaussian window of 11 x 11, only where it fits (Wang et al. 2004). Frames from 384 rows or
    columns on, whichever is fewer, are averaged to about 256 first.

    Args:
        a_NCHW: floats in [0, 1]; not clamped.
        b_NCHW: likewise; the two may be exchanged.

    Raises:
        ShapeError: the two differ in shape, are no frames, or smaller than the window.
        DtypeError: not floats, such as uint8 in [0, 255].
    """
    a_NCHW, b_NCHW = checked_frames(a_NCHW, b_NCHW)
    factor = round(min(a_NCHW.shape[-2:]) / 256)
    if factor > 1:
        a_NCHW, b_NCHW = (F.avg_pool2d(x, factor) for x in (a_NCHW, b_NCHW))
    if min(a_NCHW.shape[-2:]) < SSIM_WINDOW:
        expected = f"at least {SSIM_WINDOW} rows and columns"
        raise ShapeError("frames", expected, str(list(a_NCHW.shape)))
    mean_a, mean_b = _blur(a_NCHW), _blur(b_NCHW)
    variance_a = _blur(a_NCHW.square()) - mean_a.square()
    variance_b = _blur(b_NCHW.square()) - mean_b.square()
    covariance = _blur(a_NCHW * b_NCHW) - mean_a * mean_b
    c1, c2 = SSIM_CONSTANTS
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def checked_frames(a_NCHW: Tensor, b_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, after a look at shapes and dtypes.

    Raises:
        ShapeError: the two differ in shape, or are no frames.
        DtypeError: not floats.
    """
    if a_NCHW.ndim != 4 or a_NCHW.shape != b_NCHW.shape or 0 in a_NCHW.shape:
        expected = f"two of one shape [N, C, H, W], such as {list(a_NCHW.shape)}"
        raise ShapeError("frames to compare", expected, str(list(b_NCHW.shape)))
    for x_NCHW in (a_NCHW, b_NCHW):
        if not x_NCHW.is_floating_point():
            raise DtypeError("frames to compare", "a float dtype", str(x_NCHW.dtype))
    return a_NCHW.float(), b_NCHW.float()


def _blur(x_NCHW: Tensor) -> Tensor:
    """Gaussian mean around each position, without the edges; rows, then columns."""
    at = torch.arange(SSIM_WINDOW, dtype=torch.float32, device=x_NCHW.device) - SSIM_WINDOW // 2
    window = torch.exp(-at.square() / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    y_GHW = x_NCHW.flatten(0, 1).unsqueeze(1)
    y_GHW = F.conv2d(F.conv2d(y_GHW, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return y_GHW.view(*x_NCHW.shape[:2], *y_GHW.shape[-2:])
