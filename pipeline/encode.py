"""Turns batches of frames into packed tokens: the only step of the pipeline that runs the model."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import RunError
from pipeline.fingerprint import cpu_model
from pipeline.packing import pack_indices, pack_latents
from pipeline.schema import TokenFormat
from tokenizer import TokenizerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """Everything that decides the tokens of a batch; picklable, sent to every worker."""

    tokenizer: TokenizerConfig
    """The model's configuration."""
    checkpoint: str | None
    """Path of its weights, ``random``, or None for the tokenizer's own."""
    seed: int
    """For ``random``."""
    precision: str
    """fp32 or bf16."""
    device: str
    """cpu or cuda."""
    threads: int
    """CPU threads of torch."""
    batch_clips: int
    """B."""
    clip_shape: tuple[int, int, int]
    """(T, H, W)."""
    token_format: TokenFormat
    """How tokens are packed, and which weights they must come from."""


class Encoder(Protocol):
    """What a worker needs of an encoder."""

    numerics: dict[str, Any]
    """The numeric environment."""
    token_shape: tuple[int, ...]
    """``[t, h, w]`` or ``[c, t, h, w]`` of one clip."""

    def encode(self, frames: npt.NDArray[np.uint8], num_clips: int) -> list[bytes]:
        """Packed tokens of the first ``num_clips`` clips of uint8 ``[B, T, H, W, 3]``."""


class ClipEncoder:
    """A VidTok encoder on one device."""

    def __init__(self, spec: EncoderSpec) -> None:
        """Load the model.

        Raises:
            TokenizerError: the checkpoint does not fit.
            RunError: its weights are not those that the run was planned with.
        """
        import torch

        from tokenizer import load_tokenizer  # torch with it: not for a command's --help

        torch.set_num_threads(spec.threads)
        self._spec, self._torch = spec, torch
        self._model = load_tokenizer(
            spec.tokenizer,
            checkpoint=spec.checkpoint,
            device=spec.device,
            precision=spec.precision,
            seed=spec.seed,
            decoder=False,
        )
        assert self._model.checkpoint is not None
        found = self._model.checkpoint.digest
        if found != spec.token_format.checkpoint_digest:
            raise RunError(
                f"the checkpoint on this machine has digest {found[:12]}, the run was planned with "
                f"{spec.token_format.checkpoint_digest[:12]}: {spec.checkpoint}"
            )
        t_h_w = tuple(spec.tokenizer.latent_shape(*spec.clip_shape))
        self.token_shape = (
            t_h_w if spec.token_format.is_discrete else (spec.tokenizer.latent_channels, *t_h_w)
        )
        self.numerics = self._describe()

    def _describe(self) -> dict[str, Any]:
        spec, torch = self._spec, self._torch
        model, isa = cpu_model()
        device = model if spec.device == "cpu" else torch.cuda.get_device_name()
        return {
            "device": device,
            "cpu_isa": isa,
            "torch": torch.__version__,
            "av": importlib.metadata.version("av"),
            "precision": spec.precision,
            "threads": spec.threads,
            "batch": [spec.batch_clips, *spec.clip_shape],
            "compiled": False,
        }

    def encode(self, frames: npt.NDArray[np.uint8], num_clips: int) -> list[bytes]:
        """Packed tokens of the first ``num_clips`` clips.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, RGB; always the full batch shape.
            num_clips: clips that are not padding.

        Raises:
            RunError: the encoder gave NaN, infinity, or tokens of an unexpected shape.
        """
        torch, packing = self._torch, self._spec.token_format.packing
        with torch.inference_mode():
            encoded = self._model.encode_uint8(torch.from_numpy(frames))
        try:
            if encoded.indices is not None:
                indices = encoded.indices[:num_clips].cpu().numpy()
                self._check(indices.shape[1:])
                return [pack_indices(clip, packing) for clip in indices]
            both = torch.cat([encoded.mean, encoded.log_variance], dim=1)[:num_clips]
            self._check((both.shape[1] // 2, *both.shape[2:]))
            return [pack_latents(clip, packing) for clip in both.float().cpu().numpy()]
        except ValueError as error:
            raise RunError(f"the encoder gave tokens that cannot be stored: {error}") from error

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != self.token_shape:
            raise ValueError(f"tokens of shape {list(shape)}, expected {list(self.token_shape)}")
