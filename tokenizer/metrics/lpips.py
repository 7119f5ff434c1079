"""LPIPS (arXiv 1801.03924), version 0.1: distance of two frames as a trained eye sees it.

Both frames pass a network for image classification; the differences of its features, each
position's feature vector scaled to length 1, are weighed by channel and averaged. AlexNet's weights
are shipped (``weights/README.md``), VGG16's, with which the published models were trained and
measured, come by path.
"""

# N frames · C channels · H W rows, columns

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.checkpoint import read_tensors
from tokenizer.errors import MissingNetwork, UnknownName, UnreadableCheckpoint
from tokenizer.metrics.distortion import checked_frames

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet's colours, for values in [-1, 1]."""
SHIPPED = {"alex": Path(__file__).parent / "weights" / "lpips_alex.safetensors"}
SOURCES = {
    "alex": "the file that this package ships",
    "vgg": "a .safetensors with conv0..12 of torchvision's VGG16 and head0..4 of vgg.pth from "
    "PyPI lpips 0.1.4 (tokenizer/metrics/weights/README.md has the layout)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution, a ReLU behind it, and what is around the two."""

    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    pad: int = 1
    pool: int = 0
    """Size of the maximum pooling before it, of stride 2; 0: none."""
    is_feature: bool = True
    """What it gives is compared."""


def _vgg() -> tuple[Layer, ...]:
    layers, channels = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for at in range(depth):
            pool = 2 if at == 0 and channels > 3 else 0
            last = at == depth - 1
            layers.append(
                Layer(in_channels=channels, out_channels=width, pool=pool, is_feature=last)
            )
            channels = width
    return tuple(layers)


NETWORKS = {
    "alex": (
        Layer(in_channels=3, out_channels=64, kernel=11, stride=4, pad=2),
        Layer(in_channels=64, out_channels=192, kernel=5, pad=2, pool=3),
        Layer(in_channels=192, out_channels=384, pool=3),
        Layer(in_channels=384, out_channels=256),
        Layer(in_channels=256, out_channels=256),
    ),
    "vgg": _vgg(),
}


class LPIPS(nn.Module):
    """Distance of frames; never trained, and no part of any state dict.

    Gradients flow to the frames. Under autocast its convolutions follow the autocast.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alex", weights: str | Path | None = None) -> None:
        """Args: net is "alex" or "vgg"; weights is a path, None takes what is shipped.

        Raises:
            UnknownName: another net.
            MissingNetwork: no path, and nothing shipped for this net.
            UnreadableCheckpoint: the file is damaged, or holds something else.
        """
        super().__init__()
        if net not in NETWORKS:
            raise UnknownName("LPIPS network", net, sorted(NETWORKS))
        path = SHIPPED.get(net) if weights is None else Path(weights)
        if path is None:
            raise MissingNetwork(f"LPIPS {net}", "weights=PATH", SOURCES[net])
        self.net, self.layers = net, NETWORKS[net]
        constants = {"shift": torch.tensor(SHIFT), "scale": torch.tensor(SCALE)}
        constants = {name: value.view(1, 3, 1, 1) for name, value in constants.items()}
        tensors = _fitting(net, path, read_tensors(path))
        for name, tensor in {**constants, **tensors}.items():
            self.register_buffer(name.replace(".", "_"), tensor, persistent=False)

    def forward(self, a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
        """Distance of each pair of frames, float32 ``[N]``; 0 for equal frames.

        Args:
            a_NCHW: floats ``[N, 3, H, W]`` in [-1, 1], at least 31 rows and columns (vgg: 16).
            b_NCHW: likewise; the two may be exchanged.

        Raises:
            ShapeError: the two differ in shape, or are no frames.
            DtypeError: not floats.
        """
        a_NCHW, b_NCHW = checked_frames(a_NCHW, b_NCHW)
        total_N = a_NCHW.new_zeros(len(a_NCHW))
        # One after the other: what asks for no gradient, as an original does, keeps no graph.
        pairs = zip(self._features(a_NCHW), self._features(b_NCHW), strict=True)
        for number, (a, b) in enumerate(pairs):
            difference_NC = (a - b).square().mean(dim=(2, 3))
            # Not a matrix product, which autocast would round.
            weighed_NC = difference_NC * self._of(f"head{number}_weight").view(-1)
            total_N = total_N + weighed_NC.sum(dim=1)
        return total_N

    def _features(self, x_NCHW: Tensor) -> Iterator[Tensor]:
        """What is compared, of one layer after the other, each position of length 1."""
        x = (x_NCHW - self.shift) / self.scale
        for number, layer in enumerate(self.layers):
            if layer.pool:
                x = F.max_pool2d(x, layer.pool, 2)
            weight, bias = self._of(f"conv{number}_weight"), self._of(f"conv{number}_bias")
            x = F.relu(F.conv2d(x, weight, bias, layer.stride, layer.pad))
            if layer.is_feature:
                yield _unit(x.float())

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)


def _unit(x_NCHW: Tensor) -> Tensor:
    """Each position's features divided by their length."""
    # The root of a sum that is 0 has no gradient; what is added there is far below 1e-10 squared.
    length = (x_NCHW.square().sum(dim=1, keepdim=True) + 1e-30).sqrt()
    return x_NCHW / (length + 1e-10)


def _fitting(net: str, path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32, if they are those of the network, by name and shape."""
    expected: dict[str, list[int]] = {}
    for number, layer in enumerate(NETWORKS[net]):
        kernel = [layer.kernel, layer.kernel]
        expected[f"conv{number}.weight"] = [layer.out_channels, layer.in_channels, *kernel]
        expected[f"conv{number}.bias"] = [layer.out_channels]
    features = [layer for layer in NETWORKS[net] if layer.is_feature]
    for number, layer in enumerate(features):
        expected[f"head{number}.weight"] = [1, layer.out_channels, 1, 1]
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if wrong:
        names = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
        problem = f"it is not LPIPS {net}: missing, surplus or of another shape: {names}"
        raise UnreadableCheckpoint(str(path), problem)
    return {name: tensor.float() for name, tensor in tensors.items()}
