"""Turns batches of frames into tokens: the only step of the pipeline that runs the model."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import RunError
from pipeline.fingerprint import cpu_model
from pipeline.schema import TokenFormat
from tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from tokenizer import Encoded


_MALLOC_OPTIONS = {-1: 1 << 30, -3: 32 << 20}
"""glibc's M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its largest value."""


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
    clip_frames: int
    """T."""
    buckets: tuple[tuple[int, int], ...]
    """(H, W) of each batch shape."""
    token_format: TokenFormat
    """How tokens are packed, and which weights they must come from."""


class Encoder(Protocol):
    """What a worker needs of an encoder."""

    numerics: dict[str, Any]
    """The numeric environment."""

    def encode(self, frames: npt.NDArray[np.uint8], num_clips: int) -> list[npt.NDArray[Any]]:
        """Tokens of the first ``num_clips`` clips of uint8 ``[B, T, H, W, 3]``."""

    def encode_pieces(
        self, frames: npt.NDArray[np.uint8], states: Sequence[Any]
    ) -> list[tuple[npt.NDArray[Any], Any]]:
        """Tokens of the next piece of each stream, and its state behind the piece."""


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
        if spec.device == "cpu":
            keep_freed_memory()
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
            "batch": [spec.batch_clips, spec.clip_frames],
            "buckets": [list(bucket) for bucket in spec.buckets],
            "compiled": False,
        }

    def encode(self, frames: npt.NDArray[np.uint8], num_clips: int) -> list[npt.NDArray[Any]]:
        """Tokens of the first ``num_clips`` clips.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, RGB; always the full batch shape.
            num_clips: clips that are not padding.

        Returns:
            int32 ``[t, h, w]`` or float32 ``[2c, t, h, w]`` (mean, log-variance) for each.

        Raises:
            RunError: the encoder gave NaN or infinity.
        """
        with self._torch.inference_mode():
            encoded = self._model.encode_uint8(self._torch.from_numpy(frames))
        return self._tokens(encoded, num_clips)

    def encode_pieces(
        self, frames: npt.NDArray[np.uint8], states: Sequence[Any]
    ) -> list[tuple[npt.NDArray[Any], Any]]:
        """Tokens of the next piece of each stream, and its state behind the piece.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, RGB; always the full batch shape.
            states: of each stream, B at most; all None for first pieces.

        Raises:
            RunError: the encoder gave NaN or infinity.
        """
        num_streams, before = len(states), None
        if states[0] is not None:
            padding = [states[0]] * (frames.shape[0] - num_streams)
            before = type(states[0]).cat([*states, *padding])
        with self._torch.inference_mode():
            encoded, after = self._model.encode_chunk_uint8(self._torch.from_numpy(frames), before)
        tokens = self._tokens(encoded, num_streams)
        return list(zip(tokens, after.split()[:num_streams], strict=True))

    def _tokens(self, encoded: Encoded, num_clips: int) -> list[npt.NDArray[Any]]:
        if encoded.indices is not None:
            return list(encoded.indices[:num_clips].cpu().numpy())
        assert encoded.mean is not None
        assert encoded.log_variance is not None
        both = self._torch.cat([encoded.mean, encoded.log_variance], dim=1)[:num_clips].float()
        if not bool(self._torch.isfinite(both).all()):
            raise RunError("the encoder gave latents that are not finite")
        return list(both.cpu().numpy())


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next batch, not return it to the system.

    An encoder allocates and frees the same activations for every batch. In a thread glibc unmaps
    them each time, and thousands of page faults a clip cost up to a sixth of the encoding time of
    a small model. Blocks above 32 MiB are mapped afresh all the same. Elsewhere than on glibc this
    does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, num_bytes in _MALLOC_OPTIONS.items():
            libc.mallopt(option, num_bytes)
