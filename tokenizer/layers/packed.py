"""Parameters in the form that the kernels take, made once and kept until they change."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Packed = tuple[Tensor, ...]


class PackedWeights:
    """What one layer computes from its parameters before it can run: another dtype, layout, sums.

    Made anew at each call where gradients are recorded (they flow through it) and in training mode;
    otherwise kept per dtype until a parameter is changed in place, replaced or moved. Changes
    through ``parameter.data`` are not seen before the next ``train()``/``eval()``.

    Args:
        pack: from the parameters, in float32 or whatever they are in, to what is kept; it is cast.
    """

    def __init__(self, pack: Callable[..., Packed]) -> None:
        self._pack = pack
        self._kept: dict[torch.dtype, tuple[list[tuple[int, int]], Packed]] = {}

    def of(self, layer: nn.Module, dtype: torch.dtype) -> Packed:
        """The packed parameters of the layer, in a dtype."""
        if torch.compiler.is_compiling() and dtype in self._kept:
            return self._kept[dtype][1]  # a compiled pass cannot look at versions
        parameters = list(layer.parameters(recurse=False))
        records = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if records or layer.training:
            self._kept.clear()
            return self._cast(parameters, dtype)
        seen = [(p.data_ptr(), p._version) for p in parameters]
        if dtype not in self._kept or self._kept[dtype][0] != seen:
            # Not as inference tensors: a later pass may be one that records gradients.
            with torch.inference_mode(False), torch.no_grad():
                self._kept[dtype] = (seen, self._cast(parameters, dtype))
        return self._kept[dtype][1]

    def _cast(self, parameters: list[nn.Parameter], dtype: torch.dtype) -> Packed:
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tuple(
            t.to(dtype, memory_format=layouts.get(t.ndim, torch.contiguous_format))
            for t in self._pack(*parameters)
        )
