"""What the pipeline asks of a tokenizer: this file is all that it knows of one.

VidTok (``vidtok.py``) is the first implementation; ``plugin.py`` brings in those of others.
Standard library only: a specification can be read without torch.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tokenizer.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizer.checkpoint import CheckpointInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpec:
    """Everything about a tokenizer's tokens that is known without its weights.

    Give ``codebook_size`` for indices, or ``channels`` for continuous latents, never both.
    """

    name: str
    """Written into every part."""
    stride: tuple[int, int, int]
    """Frames, rows and columns per latent frame, row and column."""
    first_frames: int = 0
    """The T rule: clips have ``first_frames + k * stride[0]`` frames, where the first ones (if any)
    make one latent frame of their own. 1: causal (VidTok, Wan, Cosmos); 0: whole strides only."""
    clip_frames: int
    """T where ``sampling.clip_frames`` says nothing."""
    resolution: int
    """Height and width where ``sampling`` says nothing."""
    codebook_size: int | None = None
    """Indices lie in [0, codebook_size)."""
    levels: tuple[int, ...] = ()
    """FSQ levels, first one least significant; empty for any other codebook."""
    channels: int | None = None
    """c, channels of a latent."""
    has_log_variance: bool = False
    """Latents: ``encode`` gives 2c channels, the mean and then the log-variance."""
    can_stream: bool = False
    """``encode_chunk`` is there, for ``sampling.mode=whole``: 1 frame first, then k * stride[0]."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """What else changes tokens, besides the weights: plain values. Another one in the same OUT is
    refused, so raise a version in it whenever the code gives other tokens."""

    def __post_init__(self) -> None:
        """Check what fields alone can tell.

        Raises:
            ConfigError: names the field.
        """
        problems = {
            "stride": len(self.stride) != 3 or min(self.stride) < 1,
            "first_frames": not 0 <= self.first_frames <= self.stride[0],
            "clip_frames": self.clip_frames < 1,
            "resolution": self.resolution < 1,
            "codebook_size": (self.codebook_size is None) == (self.channels is None)
            or (self.codebook_size is not None and not 2 <= self.codebook_size <= 2**31),
            "channels": self.channels is not None and self.channels < 1,
            "levels": bool(self.levels) and self.codebook_size is None,
            "has_log_variance": self.has_log_variance and self.channels is None,
            "can_stream": self.can_stream and self.first_frames != 1,
            "fingerprint": not _is_plain(self.fingerprint),
        }
        rules = {
            "stride": "must be three numbers above 0: frames, rows, columns",
            "first_frames": "must be between 0 and stride[0]",
            "codebook_size": "must be in 2..2**31, or None where channels is given: one of the two",
            "levels": "is for indices",
            "has_log_variance": "is for latents",
            "can_stream": "needs first_frames=1: a stream begins with one frame",
            "fingerprint": "must be plain values (text, numbers, lists of them)",
        }
        for name, is_wrong in problems.items():
            if is_wrong:
                rule = rules.get(name, "must be above 0")
                raise ConfigError(f"TokenSpec.{name}", f"{rule}, got {getattr(self, name)!r}")

    @property
    def is_discrete(self) -> bool:
        """Whether tokens are indices."""
        return self.codebook_size is not None

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Refuse clips that do not fit.

        Raises:
            ShapeError: num_frames is not first_frames + k * t, or a size is no multiple of its
                stride.
        """
        time, rows, columns = self.stride
        first = self.first_frames
        fits = num_frames >= max(first, 1) and (num_frames - first) % time == 0
        rule = f"{f'{first} + ' if first else ''}k*{time} frames"
        if not fits or height < rows or width < columns or height % rows or width % columns:
            raise ShapeError(
                f"clip for tokenizer {self.name!r}",
                f"{rule}, height a multiple of {rows}, width of {columns}",
                f"{num_frames} frames of {height}x{width}",
            )

    def token_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """``[t, h, w]`` of indices, ``[c, t, h, w]`` or ``[2c, t, h, w]`` of what is encoded.

        >>> size = {"clip_frames": 17, "resolution": 256}
        >>> spec = TokenSpec(name="x", stride=(4, 8, 8), first_frames=1, channels=16, **size)
        >>> spec.token_shape(17, 256, 256)
        (16, 5, 32, 32)
        """
        time, rows, columns = self.stride
        latent_frames = (num_frames - self.first_frames) // time + (self.first_frames > 0)
        grid = (latent_frames, height // rows, width // columns)
        if self.channels is None:
            return grid
        return (self.channels * (2 if self.has_log_variance else 1), *grid)

    def num_frames(self, latent_frames: int) -> int:
        """Frames of the clip that has so many latent frames."""
        return (latent_frames - (self.first_frames > 0)) * self.stride[0] + self.first_frames


def _is_plain(values: Mapping[str, Any]) -> bool:
    """Whether JSON can hold them, members of enums by their names."""
    try:
        json.dumps(dict(values), default=_name)
    except (TypeError, ValueError):
        return False
    return True


def _name(value: object) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    raise TypeError(f"{type(value).__name__} is no plain value")


class Tokenizer(Protocol):
    """A tokenizer as a factory makes it: without weights, which only ``weights`` and ``load`` read.

    What a tokenizer may have besides (the pipeline looks whether it is there):

    ``decode(tokens)``
        int32 ``[B, t, h, w]``, or float32 ``[B, c, t, h, w]`` (of mean and log-variance the mean),
        to uint8 ``[B, T, H, W, 3]``, RGB. ``load(device)`` must have loaded what it needs.
    ``encode_chunk(frames, states)``
        where ``spec.can_stream``: the next frames of B videos, and for each what the call before
        gave (None for all: these are the first ones), to tokens as ``encode`` gives them and a
        list of B new states.
    ``compile(frames)``
        have kernels written for clips like these; may fail, then it goes on without.
    ``is_recordable = True``
        ``encode`` may be recorded as a CUDA graph: it asks the GPU for no value.
    """

    @property
    def spec(self) -> TokenSpec:
        """What its tokens are; cheap, and the same on every machine."""

    def weights(self) -> CheckpointInfo:
        """Origin and digest of the weights; ``encode`` must use those and no others.

        Raises:
            TokenizerError: they are not there or broken.
        """

    def load(self, device: str) -> None:
        """Get ready to encode (and to decode, if there is ``decode``).

        Args:
            device: cpu or cuda. On the CPU a run's reference tokens are made, in fp32.
        """

    def encode(self, frames: Tensor) -> Tensor:
        """Tokens of a batch, by the same arithmetic in every position and at every call.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, RGB, on the device of ``load``; T, H and W fit
                ``spec``.

        Returns:
            int32 ``[B, t, h, w]`` or float32 ``[B, c or 2c, t, h, w]``, on any device.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the factory of a plugin is given: the section ``tokenizer`` of a run."""

    name: str
    """``tokenizer.name``: for the spec."""
    checkpoint: str | None = None
    """``tokenizer.checkpoint``: an absolute path, a URL, or None."""
    seed: int = 0
    """``tokenizer.seed``: where weights are random."""
    precision: str = "fp32"
    """``tokenizer.precision``: fp32, tf32 or bf16."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """``tokenizer.options``: its own."""


def check_tokens(spec: TokenSpec, tokens: Tensor, frames_shape: Sequence[int]) -> None:
    """Hold a tokenizer to its specification.

    Args:
        spec: what it promised.
        tokens: what ``encode`` gave.
        frames_shape: of the batch, B, T, H, W, 3.

    Raises:
        ConfigError: another type, shape or dtype.
    """
    import torch

    where = f"tokenizer {spec.name!r}: encode"
    if not isinstance(tokens, torch.Tensor):
        raise ConfigError(where, f"gave {type(tokens).__name__}, not a tensor")
    dtype = torch.int32 if spec.is_discrete else torch.float32
    if tokens.dtype != dtype:
        raise ConfigError(where, f"gave {tokens.dtype}, its spec wants {dtype}: add .to({dtype})")
    shape = (frames_shape[0], *spec.token_shape(*frames_shape[1:4]))
    if tuple(tokens.shape) != shape:
        raise ConfigError(
            where,
            f"gave {list(tokens.shape)} for frames {list(frames_shape)}, its spec says "
            f"{list(shape)}: correct TokenSpec (stride, first_frames, channels) or encode",
        )
