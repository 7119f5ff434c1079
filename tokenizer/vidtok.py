"""VidTok as the pipeline sees it: the first implementation of ``protocol.Tokenizer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenizer.config import TokenizerConfig
from tokenizer.errors import MissingPart, NonFiniteError
from tokenizer.protocol import TokenSpec

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizer.checkpoint import CheckpointInfo
    from tokenizer.model import Encoded, VideoTokenizer


class VidTok:
    """A tokenizer of the family; torch is loaded with its weights."""

    is_recordable = True

    def __init__(
        self,
        config: TokenizerConfig,
        checkpoint: str | None = None,
        *,
        seed: int = 0,
        precision: str = "fp32",
        decoder: bool = False,
    ) -> None:
        """Take note.

        Args:
            config: of the family.
            checkpoint: as for ``load_tokenizer``.
            seed: for ``random``.
            precision: fp32, tf32 or bf16.
            decoder: whether ``load`` makes ``decode`` possible.
        """
        self._config, self._checkpoint, self._seed = config, checkpoint, seed
        self._precision, self._has_decoder = precision, decoder
        self._model: VideoTokenizer | None = None

    @property
    def spec(self) -> TokenSpec:
        """What the configuration says."""
        return self._config.token_spec

    @property
    def model(self) -> VideoTokenizer:
        """The network.

        Raises:
            MissingPart: before ``load``.
        """
        if self._model is None:
            raise MissingPart(self._config.name, "it is not loaded yet")
        return self._model

    def weights(self) -> CheckpointInfo:
        """Those that were loaded, or that would be."""
        from tokenizer.checkpoint import checkpoint_digest

        if self._model is None or self._model.checkpoint is None:
            return checkpoint_digest(self._config, self._checkpoint, self._seed)
        return self._model.checkpoint

    def load(self, device: str) -> None:
        """Load the encoder, and the decoder where it was asked for."""
        from tokenizer.checkpoint import load_tokenizer

        self._model = load_tokenizer(
            self._config,
            checkpoint=self._checkpoint,
            device=device,
            precision=self._precision,
            seed=self._seed,
            decoder=self._has_decoder,
        )

    def compile(self, frames: Tensor) -> None:
        """Have torch write the encoder's kernels for clips like these."""
        import torch

        time, rows, columns = self._config.stride
        small = torch.zeros((1, time, rows, columns, 3), dtype=torch.uint8)
        self.model.encode_uint8(small)  # packs the weights
        self.model.encoder.compile(dynamic=False, fullgraph=True)
        try:
            self.model.encode_uint8(frames)
        except Exception:
            self.model.encoder._compiled_call_impl = None
            raise

    def encode(self, frames: Tensor) -> Tensor:
        """Indices, or mean and log-variance one after the other."""
        return _stored(self.model.encode_uint8(frames))

    def encode_chunk(self, frames: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """The next frames of every stream."""
        before = None if states[0] is None else type(states[0]).cat(list(states))
        encoded, after = self.model.encode_chunk_uint8(frames, before)
        return _stored(encoded), list(after.split())

    def decode(self, tokens: Tensor) -> Tensor:
        """Frames of tokens; needs ``decoder=True``.

        Raises:
            NonFiniteError: the decoder gave NaN or infinity, which uint8 cannot show.
        """
        decode = self.model.decode if tokens.is_floating_point() else self.model.decode_indices
        x_hat = decode(tokens)[:, :, -self.spec.num_frames(tokens.shape[-3]) :]
        if not bool(x_hat.isfinite().all()):
            raise NonFiniteError(f"{self._config.name}: decode", "finite values", "NaN or infinity")
        return ((x_hat.clamp(-1, 1) + 1) / 2 * 255).byte().permute(0, 2, 3, 4, 1)


def _stored(encoded: Encoded) -> Tensor:
    import torch

    if encoded.indices is not None:
        return encoded.indices
    assert encoded.mean is not None
    assert encoded.log_variance is not None
    return torch.cat([encoded.mean, encoded.log_variance], dim=1).float()
