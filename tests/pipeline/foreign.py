"""A foreign tokenizer: mean colours of a block, looked up in a small palette.

Nothing like VidTok: 8 frames (after a first one) and 4x4 pixels a token, one of 64 colours. And
what plugins get wrong, one class for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer import CheckpointInfo, Setting, TokenSpec, tensors_digest

TIME, SPACE, SHADES = 8, 4, 4


class Palette:
    """Indices; can stream, as no block looks beyond itself."""

    def __init__(self, setting: Setting) -> None:
        self.gain = float(setting.options.get("gain", 1.0))
        self.spec = TokenSpec(
            name=setting.name,
            stride=(TIME, SPACE, SPACE),
            first_frames=1,
            clip_frames=9,
            resolution=32,
            codebook_size=SHADES**3,
            can_stream=True,
            fingerprint={"code": 1},
        )
        self.shades = self.gain * torch.linspace(32, 224, SHADES)

    def weights(self) -> CheckpointInfo:
        return CheckpointInfo(source="palette", digest=tensors_digest({"shades": self.shades}))

    def load(self, device: str) -> None:
        self.shades = self.shades.to(device)

    def encode(self, frames: Tensor) -> Tensor:
        first, rest = frames[:, :1].expand(-1, TIME, -1, -1, -1), frames[:, 1:]
        return self._look_up(torch.cat([first, rest], dim=1))

    def encode_chunk(self, frames: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[int]]:
        """The state counts the pieces that came before."""
        tokens = self.encode(frames) if states[0] is None else self._look_up(frames)
        return tokens, [(state or 0) + 1 for state in states]

    def _look_up(self, frames: Tensor) -> Tensor:
        B, T, H, W, _ = frames.shape
        blocks = frames.float().reshape(B, T // TIME, TIME, H // SPACE, SPACE, W // SPACE, SPACE, 3)
        digits = (blocks.mean(dim=(2, 4, 6))[..., None] - self.shades).abs().argmin(dim=-1)
        return (digits * torch.tensor([1, SHADES, SHADES**2])).sum(dim=-1).int()

    def decode(self, tokens: Tensor) -> Tensor:
        digits = tokens.long()[..., None] // torch.tensor([1, SHADES, SHADES**2]) % SHADES
        colours = self.shades[digits].byte()
        for dim, times in ((1, TIME), (2, SPACE), (3, SPACE)):
            colours = colours.repeat_interleave(times, dim=dim)
        return colours[:, TIME - 1 :]


class WithoutLoad:
    spec = TokenSpec(name="x", stride=(1, 8, 8), clip_frames=4, resolution=32, channels=3)

    def __init__(self, setting: Setting) -> None:
        pass

    def weights(self) -> CheckpointInfo:
        raise NotImplementedError

    def encode(self, frames: Tensor) -> Tensor:
        raise NotImplementedError


class WithoutSpec(Palette):
    def __init__(self, setting: Setting) -> None:
        self.spec = {"stride": [8, 4, 4]}  # type: ignore[assignment]


class WrongShape(Palette):
    def encode(self, frames: Tensor) -> Tensor:
        return super().encode(frames)[:, 1:]


class WrongDtype(Palette):
    def encode(self, frames: Tensor) -> Tensor:
        return super().encode(frames).long()


class BeyondTheCodebook(Palette):
    def encode(self, frames: Tensor) -> Tensor:
        return super().encode(frames) + 1000


class Dice(Palette):
    def encode(self, frames: Tensor) -> Tensor:
        return torch.randint_like(super().encode(frames), SHADES**3)


class WithoutChunks(WithoutLoad):
    spec = replace(WithoutLoad.spec, first_frames=1, can_stream=True)

    def load(self, device: str) -> None:
        raise NotImplementedError


class WithoutDecode(Palette):
    decode = None  # type: ignore[assignment]


class Swapped(Palette):
    """Takes red for blue."""

    def decode(self, tokens: Tensor) -> Tensor:
        return super().decode(tokens).flip(-1)


class Brightness:
    """Latents without a log-variance, as many channels as asked for."""

    def __init__(self, setting: Setting) -> None:
        self.channels = int(setting.options["channels"])
        self.spec = TokenSpec(
            name=setting.name,
            stride=(1, 8, 8),
            clip_frames=4,
            resolution=32,
            channels=self.channels,
        )

    def weights(self) -> CheckpointInfo:
        return CheckpointInfo(source="brightness", digest="1" * 64)

    def load(self, device: str) -> None:
        pass

    def encode(self, frames: Tensor) -> Tensor:
        return frames.float()[:, :, ::8, ::8, : self.channels].permute(0, 4, 1, 2, 3) / 255


class HalfTheRows(Palette):
    def decode(self, tokens: Tensor) -> Tensor:
        return super().decode(tokens)[:, :, ::2]


class RaisesInFactory(Palette):
    """Opens a file that is not there."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        Path("no_such_weights.pt").read_bytes()


class RaisesInWeights(Palette):
    def weights(self) -> CheckpointInfo:
        raise OSError("the disk\nis gone")


class RaisesInLoad(Palette):
    def load(self, device: str) -> None:
        raise KeyError("encoder.conv_in")


class TorchInFingerprint(Palette):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.spec = replace(self.spec, fingerprint={"dtype": torch.float16})


class NotANumber:
    """Latents that are sometimes none."""

    def __init__(self, setting: Setting) -> None:
        self.spec = TokenSpec(
            name=setting.name, stride=(1, 8, 8), clip_frames=4, resolution=32, channels=3
        )

    def weights(self) -> CheckpointInfo:
        return CheckpointInfo(source="none", digest="0" * 64)

    def load(self, device: str) -> None:
        pass

    def encode(self, frames: Tensor) -> Tensor:
        means = frames.float()[:, :, ::8, ::8].permute(0, 4, 1, 2, 3)
        return torch.log(means - 300)
