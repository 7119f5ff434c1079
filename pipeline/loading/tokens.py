"""Stored bytes of a batch to the tensors that training sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.loading.buffers import Take, fresh
from pipeline.loading.noise import Samples, crop_grids, crop_starts, normal_noise
from pipeline.loading.unpack import fsq_codes, unpack, unpack_on_device
from pipeline.moments import LatentMoments
from pipeline.schema import TokenFormat

TOKENS_DTYPES = ("int32", "int64", "codes")
LATENTS = ("mean", "sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and standard deviation of each latent channel over a data set."""

    mean: tuple[float, ...]
    """``[c]``"""
    std: tuple[float, ...]
    """``[c]``, above 0."""

    @classmethod
    def of(cls, found: LatentMoments | None) -> Moments:
        """What a manifest says of its latents.

        Raises:
            ValueError: it says nothing.
        """
        if found is None:
            raise ValueError("normalize is for latents, these tokens are indices")
        return cls(mean=found.mean, std=found.std)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMaker:
    """What a user asked to get; raises ValueError where the tokens cannot be had like that."""

    token_format: TokenFormat
    """How the bytes are packed."""
    seed: int = 0
    """Of samples and crops."""
    tokens_dtype: str = "int32"
    """Of discrete tokens: ``int32``, ``int64``, or ``codes`` (FSQ codes in [-1, 1])."""
    latents: str = "mean"
    """Of continuous tokens: ``mean``, or a ``sample`` of the stored Gaussian."""
    moments: Moments | None = None
    """Latents are normalised by these; None: as stored."""
    crop: tuple[int, int, int] | None = None
    """Cut out of the token grid, t, h, w; None: all of it."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("tokens_dtype", self.tokens_dtype, TOKENS_DTYPES),
            ("latents", self.latents, LATENTS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        discrete = self.token_format.is_discrete
        if discrete and (self.latents != "mean" or self.moments is not None):
            raise ValueError(f"{self.token_format.tokenizer} is discrete: it has no latents")
        if not discrete and self.tokens_dtype != "int32":
            raise ValueError(
                f"tokens_dtype={self.tokens_dtype} is for indices; "
                f"{self.token_format.tokenizer} gives float32 latents"
            )
        if self.latents == "sample" and not self.token_format.has_log_variance:
            raise ValueError(
                f"latents=sample needs a log-variance; {self.token_format.tokenizer} gives the "
                "mean alone: use latents=mean"
            )
        if self.tokens_dtype == "codes" and not self.token_format.levels:
            raise ValueError(
                f"tokens_dtype=codes is for FSQ; {self.token_format.tokenizer} has another "
                "codebook: use int32 or int64"
            )
        if self.moments is not None:
            lengths = len(self.moments.mean), len(self.moments.std)
            if lengths != (self.token_format.channels,) * 2 or min(self.moments.std) <= 0:
                raise ValueError(
                    f"moments must be {self.token_format.channels} means and as many positive "
                    f"standard deviations, got {self.moments}"
                )

    def __call__(
        self,
        blob: npt.NDArray[np.uint8] | Tensor,
        token_shape: Sequence[int],
        samples: Samples,
        *,
        epoch: int,
        take: Take = fresh,
    ) -> dict[str, Tensor]:
        """Tensors of one batch.

        Args:
            blob: uint8 ``[B, bytes of a clip]``; a tensor is unpacked on its device.
            token_shape: of every clip in it, ``[t, h, w]`` or ``[c, t, h, w]``.
            samples: numbers of the clips in the global order, int64 ``[B]``.
            epoch: from 0.
            take: gives memory for what is unpacked on the CPU.

        Returns:
            ``tokens``: int32 or int64 ``[B, t, h, w]``, or float32 ``[B, c, t, h, w]``; beside the
            mean of latents ``log_variance``, alike, where the tokenizer gives one.
        """
        shape, packing = self.token_format.stored_shape(token_shape), self.token_format.packing
        stored = (
            unpack_on_device(blob, packing, shape)
            if isinstance(blob, Tensor)
            else torch.from_numpy(unpack(blob, packing, shape, take))
        )
        if self.token_format.is_discrete:
            made = {"tokens": stored}
        else:
            made = self._latents(stored, samples, epoch)
        if self.crop is not None:
            grid = token_shape[-3:]
            starts = crop_starts(samples, grid, self.crop, seed=self.seed, epoch=epoch)
            made = {name: crop_grids(one, starts, self.crop) for name, one in made.items()}
        if self.tokens_dtype == "int64":
            made["tokens"] = made["tokens"].long()
        elif self.tokens_dtype == "codes":
            made["tokens"] = fsq_codes(made["tokens"], self.token_format.levels)
        return made

    def _latents(self, stored: Tensor, samples: Samples, epoch: int) -> dict[str, Tensor]:
        """Mean and log-variance, or a sample; of the normalised latents where that is asked for."""
        if not self.token_format.has_log_variance:
            return {"tokens": self._normalised(stored)}
        tokens, log_variance = stored.chunk(2, dim=1)
        if self.latents == "sample":
            noise = normal_noise(
                samples, tokens.shape[1:], seed=self.seed, epoch=epoch, device=stored.device
            )
            tokens = tokens + noise.mul_((0.5 * log_variance).exp_())
        if self.moments is not None:
            tokens = self._normalised(tokens)
            log_variance = log_variance - 2 * self._column(self.moments.std, stored).log()
        if self.latents == "sample":
            return {"tokens": tokens.contiguous()}
        return {"tokens": tokens.contiguous(), "log_variance": log_variance.contiguous()}

    def _normalised(self, tokens: Tensor) -> Tensor:
        if self.moments is None:
            return tokens
        mean, std = (self._column(one, tokens) for one in (self.moments.mean, self.moments.std))
        return (tokens - mean) / std

    @staticmethod
    def _column(values: Sequence[float], like: Tensor) -> Tensor:
        """One number per channel, ``[c, 1, 1, 1]``."""
        return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1, 1)
