"""PatchGAN discriminators (arXiv 1611.07004): real or made, one logit per patch.

The published models were trained with the one for frames; the one for videos sees motion, too.
Names and order of parameters are the published ones.
"""

# B batch · C colour · T H W frames, rows, columns · t h w patches · N frames

from collections.abc import Sequence

from torch import Tensor, nn

from tokenizer.errors import ShapeError

WIDTHS = (64, 128, 256, 512)
INIT_STD = 0.02


class FrameDiscriminator(nn.Module):
    """2-D PatchGAN with 2,765,633 parameters: ``[N, 3, H, W]`` -> logits ``[N, 1, h, w]``."""

    def __init__(self) -> None:
        super().__init__()
        self.main = _patchgan(nn.Conv2d, nn.BatchNorm2d, 4, (2, 2, 2, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits of the patches: ``[N, 3, 64, 64]`` in [-1, 1] gives ``[N, 1, 6, 6]``."""
        if x_NCHW.ndim != 4:
            raise ShapeError("frames to judge", "[N, 3, H, W]", str(list(x_NCHW.shape)))
        logits_N1hw: Tensor = self.main(x_NCHW)
        return logits_N1hw


class VideoDiscriminator(nn.Module):
    """3-D PatchGAN with 4,665,729 parameters: ``[B, 3, T, H, W]`` -> ``[B, 1, t, h, w]``."""

    def __init__(self) -> None:
        super().__init__()
        strides = (2, 2, (1, 2, 2), 1, 1)
        self.main = _patchgan(nn.Conv3d, nn.BatchNorm3d, 3, strides)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Logits of the patches: ``[B, 3, 9, 32, 48]`` in [-1, 1] gives ``[B, 1, 3, 4, 6]``."""
        if x_BCTHW.ndim != 5:
            raise ShapeError("videos to judge", "[B, 3, T, H, W]", str(list(x_BCTHW.shape)))
        logits_B1thw: Tensor = self.main(x_BCTHW)
        return logits_B1thw


def _patchgan(
    conv: type[nn.Conv2d] | type[nn.Conv3d],
    norm: type[nn.BatchNorm2d] | type[nn.BatchNorm3d],
    kernel: int,
    strides: Sequence[int | tuple[int, int, int]],
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (before, width) in enumerate(zip((3, *WIDTHS), (*WIDTHS, 1), strict=True)):
        is_inner = 0 < number < len(WIDTHS)
        # A norm behind it has a bias of its own.
        layers.append(conv(before, width, kernel, strides[number], 1, bias=not is_inner))  # type: ignore[arg-type]
        if is_inner:
            layers.append(norm(width))
        if number < len(WIDTHS):
            layers.append(nn.LeakyReLU(0.2, inplace=True))
    for layer in layers:
        if isinstance(layer, conv):
            nn.init.normal_(layer.weight, 0, INIT_STD)
        elif isinstance(layer, norm):
            nn.init.normal_(layer.weight, 1, INIT_STD)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
