"""Fréchet distance of two sets of videos (FVD, arXiv 1812.01717), in two separate steps.

``frechet_distance`` is exact for any features. What makes it FVD is the feature network: I3D
trained on Kinetics-400, which comes as a TorchScript file by path and is never replaced by another.
"""

# B batch · C colour · T H W frames, rows, columns · N samples · D features

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.errors import (
    DtypeError,
    MissingNetwork,
    NonFiniteError,
    ShapeError,
    UnreadableCheckpoint,
)

I3D_SIZE = 224
"""Rows and columns that the network was trained with."""
I3D_SOURCE = (
    "i3d_torchscript.pt, the I3D network of Kinetics-400 as TorchScript with 400 outputs "
    "(github.com/universome/stylegan-v links it)"
)


def frechet_distance(features_a_ND: Tensor, features_b_ND: Tensor) -> float:
    """Distance of the Gaussians with the means and covariances of two sets, never below 0.

    ``|m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))`` with unbiased covariances. The
    last trace is the sum of singular values of ``A B^T``, A and B being the centred sets over
    the root of N - 1: no root of a matrix is taken, and it is exact for fewer samples than
    features, too. Computed in float64.

    Args:
        features_a_ND: floats ``[N, D]``, N at least 2.
        features_b_ND: floats ``[M, D]``, M at least 2.

    Raises:
        ShapeError: no two tables of one width, or fewer than two rows.
        DtypeError: not floats.
        NonFiniteError: NaN or infinity.
    """
    tables = (features_a_ND, features_b_ND)
    for x in tables:
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != features_a_ND.shape[-1]:
            shapes = " and ".join(str(list(x.shape)) for x in tables)
            raise ShapeError("features", "[N, D] and [M, D] with N, M of at least 2", shapes)
        if not x.is_floating_point():
            raise DtypeError("features", "a float dtype", str(x.dtype))
        if not bool(x.isfinite().all()):
            raise NonFiniteError("features", "finite values", "NaN or infinity")
    (mean_a, root_a), (mean_b, root_b) = (_moments(x.detach().double()) for x in tables)
    spread = root_a.square().sum() + root_b.square().sum()
    shared = torch.linalg.matrix_norm(root_a @ root_b.T, ord="nuc")
    return max(0.0, float((mean_a - mean_b).square().sum() + spread - 2 * shared))


def _moments(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D], and R with ``R^T R`` the covariance, of at most D rows."""
    mean_D = x_ND.mean(dim=0)
    root = (x_ND - mean_D) / (len(x_ND) - 1) ** 0.5
    return mean_D, torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


class VideoFeatures(nn.Module):
    """The feature network of FVD: videos in, one vector each."""

    def __init__(self, path: str | Path | None, device: str | torch.device = "cpu") -> None:
        """Args: path is a TorchScript file: ``(videos, rescale, resize, return_features)``.

        Raises:
            MissingNetwork: no path; the message says what to fetch.
            UnreadableCheckpoint: no such file, or no TorchScript.
        """
        super().__init__()
        if path is None:
            raise MissingNetwork("FVD", "the path of an I3D network", I3D_SOURCE)
        if not Path(path).is_file():
            raise UnreadableCheckpoint(str(path), "no such file")
        self.path = str(path)
        self.network = _load_script(Path(path), device)

    @torch.no_grad()
    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Features float32 ``[B, D]`` of videos ``[B, 3, T, H, W]`` in [-1, 1], T at least 10.

        The shorter side becomes 224 pixels, the centre is cut out.

        Raises:
            ShapeError: no such videos.
            UnreadableCheckpoint: the network is not called as I3D is, or fails.
        """
        if x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != 3:
            raise ShapeError("videos", "[B, 3, T, H, W]", str(list(x_BCTHW.shape)))
        B = len(x_BCTHW)
        x_NCHW = x_BCTHW.float().clamp(-1, 1).transpose(1, 2).flatten(0, 1)
        H, W = x_NCHW.shape[-2:]
        scale = I3D_SIZE / min(H, W)
        size = [max(I3D_SIZE, round(side * scale)) for side in (H, W)]
        x_NCHW = F.interpolate(x_NCHW, size, mode="bilinear", align_corners=False)
        top, left = ((side - I3D_SIZE) // 2 for side in size)
        x_NCHW = x_NCHW[..., top : top + I3D_SIZE, left : left + I3D_SIZE].contiguous()
        x_BCTHW = x_NCHW.view(B, -1, *x_NCHW.shape[1:]).transpose(1, 2).contiguous()
        return self._features(x_BCTHW).float().flatten(1)

    def _features(self, x_BCTHW: Tensor) -> Tensor:
        try:
            features: Tensor = self.network(
                x_BCTHW, rescale=False, resize=False, return_features=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UnreadableCheckpoint(
                self.path,
                f"as a network of FVD it fails ({str(error).strip().splitlines()[0]}); it must be "
                f"called as (videos, rescale, resize, return_features), as is {I3D_SOURCE}",
            ) from error
        return features


def _load_script(path: Path, device: str | torch.device) -> nn.Module:
    with warnings.catch_warnings():
        # The network is only to be had as TorchScript.
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
        try:
            network: nn.Module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise UnreadableCheckpoint(str(path), "it is no TorchScript file") from error
    return network.eval()
