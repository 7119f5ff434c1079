"""Parameters in the form that the kernels take, made once and kept until they change."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Packed = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    seen: list[tuple[int, int, int]]
    """Identity, place and version of each parameter when it was packed."""
    parameters: list[nn.Parameter]
    """Held, so that no other parameter gets their identity or their place."""
    packed: Packed


class PackedWeights:
    """What one layer computes from its parameters before it can run: another dtype, layout, sums.

    Kept per dtype for frozen layers, until a parameter is changed in place, replaced or moved. For
    layers that are trained it is made anew at each call, and gradients flow through it. Only what
    is done to frozen parameters through ``parameter.data`` is not seen.

    Args:
        pack: from the parameters, in float32 or whatever they are in, to what is kept; it is cast.
    """

    def __init__(self, pack: Callable[..., Packed]) -> None:
        self._pack = pack
        self._kept: dict[torch.dtype, _Kept] = {}

    def of(self, layer: nn.Module, dtype: torch.dtype) -> Packed:
        """The packed parameters of the layer, in a dtype."""
        if torch.compiler.is_compiling() and dtype in self._kept:
            return self._kept[dtype].packed  # a compiled pass cannot look at versions
        parameters = list(layer.parameters(recurse=False))
        if layer.training or any(p.requires_grad for p in parameters):
            self._kept.clear()
            return self._cast(parameters, dtype)
        seen = [(id(p), p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if dtype not in self._kept or self._kept[dtype].seen != seen:
            # Not as inference tensors: a later pass may be one that records gradients.
            with torch.inference_mode(False), torch.no_grad():
                self._kept[dtype] = _Kept(seen, parameters, self._cast(parameters, dtype))
        return self._kept[dtype].packed

    def _cast(self, parameters: list[nn.Parameter], dtype: torch.dtype) -> Packed:
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tuple(
            t.to(dtype, memory_format=layouts.get(t.ndim, torch.contiguous_format))
            for t in self._pack(*parameters)
        )
