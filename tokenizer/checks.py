"""Checks of what is given to encode and decode, each with an error of its own class."""

# B batch · C colour · T H W frames, rows, columns · c t h w the same after the encoder

import enum
import math
from typing import TypeVar

import torch
from torch import Tensor

from tokenizer.config import TokenizerConfig, Version
from tokenizer.cost import COLOURS
from tokenizer.errors import (
    DtypeError,
    MissingPart,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownName,
)
from tokenizer.streaming import EncoderState

E = TypeVar("E", bound=enum.Enum)

RANGE_TOLERANCE = 1e-3
"""How far pixels may lie outside [-1, 1]: rounding is forgiven, another scale is not."""


def parse_name(kind: str, name: E | str, members: type[E]) -> E:
    """Member of an enum, which may be given by its name.

    Raises:
        UnknownName: there is none of that name.
    """
    if isinstance(name, members):
        return name
    known = [member.name for member in members]
    if name not in known:
        raise UnknownName(kind, str(name), known)
    return members[str(name)]


def check_video(config: TokenizerConfig, x_BCTHW: Tensor, *, is_first: bool = True) -> None:
    """Float ``[B, 3, T, H, W]`` in [-1, 1], large enough for one latent.

    Raises:
        InputError: it is not.
    """
    _check_video_shape(config, x_BCTHW, x_BCTHW, layout="[B, 3, T, H, W]", is_first=is_first)
    _check_floating("video", x_BCTHW)
    _check_range("video", x_BCTHW, 1.0)


def check_frames(config: TokenizerConfig, frames_BTHWC: Tensor, *, is_first: bool = True) -> None:
    """uint8 ``[B, T, H, W, 3]``, large enough for one latent.

    Raises:
        DtypeError, ShapeError: it is not.
    """
    if frames_BTHWC.dtype != torch.uint8:
        raise DtypeError("frames", "uint8 [B, T, H, W, 3]", str(frames_BTHWC.dtype))
    x_BCTHW = frames_BTHWC.movedim(-1, 1) if frames_BTHWC.ndim == 5 else frames_BTHWC
    layout = "[B, T, H, W, 3]"
    _check_video_shape(config, x_BCTHW, frames_BTHWC, layout=layout, is_first=is_first)


def check_causal(config: TokenizerConfig) -> None:
    """Streams need a causal model.

    Raises:
        MissingPart: it is not.
    """
    if not config.is_causal:
        problem = "is not causal: tokens depend on later frames, so there is no streaming"
        raise MissingPart(config.name, problem)


def check_chunk(config: TokenizerConfig, state: EncoderState | None, B: int, *sizes: int) -> None:
    """Whether B rows with sizes T, H, W can go on from a state; None is the start of streams.

    Raises:
        ShapeError: another number of rows or frame size, or a start that v1.0 would cut.
    """
    T, H, W = sizes
    if state is None:
        factor = config.time_downsample_factor
        if config.version is Version.v1_0 and T % factor > 1:
            # v1.0 pads clips of other lengths so that their last frames are cut off.
            raise ShapeError("first chunk", f"k*{factor} or 1 + k*{factor} frames", str(T))
    elif state.row_shape != (B, H, W):
        raise ShapeError("state", f"[B, H, W] of the chunk {[B, H, W]}", str([*state.row_shape]))


def check_latents(config: TokenizerConfig, latents_Bcthw: Tensor) -> None:
    """Finite floats ``[B, c, t, h, w]``.

    Raises:
        InputError: they are not.
    """
    shape, channels = latents_Bcthw.shape, config.latent_channels
    if latents_Bcthw.ndim != 5 or shape[1] != channels or 0 in shape:
        raise ShapeError("latents", f"[B, {channels}, t, h, w]", str(list(shape)))
    _check_floating("latents", latents_Bcthw)
    _check_range("latents", latents_Bcthw, math.inf)


def _check_video_shape(
    config: TokenizerConfig, x_BCTHW: Tensor, given: Tensor, *, layout: str, is_first: bool
) -> None:
    if x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != COLOURS or x_BCTHW.shape[0] < 1:
        raise ShapeError("video", layout, str(list(given.shape)))
    config.latent_shape(*x_BCTHW.shape[2:], is_first=is_first)


def _check_floating(what: str, x: Tensor) -> None:
    if not x.is_floating_point():
        hint = " (uint8 frames: see encode_uint8)" if x.dtype == torch.uint8 else ""
        raise DtypeError(what, "a float dtype", f"{x.dtype}{hint}")


def _check_range(what: str, x: Tensor, limit: float) -> None:
    """One pass over the tensor; NaN survives aminmax, so it is seen as well."""
    low, high = (float(bound) for bound in x.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NonFiniteError(what, "finite values", "NaN or infinity")
    if low < -limit - RANGE_TOLERANCE or high > limit + RANGE_TOLERANCE:
        raise RangeError(what, f"values in [{-limit:g}, {limit:g}]", f"[{low:g}, {high:g}]")
