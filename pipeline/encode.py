"""Turns batches of frames into tokens: the only step of the pipeline that runs the model."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import QualityCollapsed, RunError
from pipeline.fingerprint import cpu_model
from pipeline.plugin_code import plugin_code
from pipeline.schema import TokenFormat
from tokenizer import AnyConfig, Tokenizer, TokenizerError, check_tokens, open_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.cuda_graph import GraphedEncoder

logger = logging.getLogger(__name__)

ARITHMETIC = 2
"""Raised when a change of the network's code changes how it rounds: part of the environment."""

Frames = npt.NDArray[np.uint8]
"""``[B, T, H, W, 3]``, RGB."""
Tokens = npt.NDArray[Any]
"""int32 ``[t, h, w]``, or float32 ``[2c, t, h, w]`` (mean, log-variance); of a batch, with B."""

_MALLOC_OPTIONS = {-1: 1 << 30, -3: 32 << 20}
"""glibc's M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its largest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """Everything that decides the tokens of a batch; picklable, sent to every worker."""

    tokenizer: AnyConfig
    """Which tokenizer: one of the family, or a plugin."""
    checkpoint: str | None
    """Path of its weights, ``random``, or None for the tokenizer's own."""
    seed: int
    """For ``random``."""
    precision: str
    """fp32, tf32 or bf16."""
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
    has_decoder: bool = False
    """Whether ``decode`` is wanted, of a tokenizer that has it."""
    compiled: bool = False
    """Whether torch.compile writes the kernels of whole clips."""

    def open(self) -> Tokenizer:
        """The tokenizer, not loaded yet."""
        return open_tokenizer(
            self.tokenizer,
            self.checkpoint,
            seed=self.seed,
            precision=self.precision,
            decoder=self.has_decoder,
        )


class Encoder(Protocol):
    """What a worker needs of an encoder."""

    numerics: dict[str, Any]
    """The numeric environment."""

    def encode(self, frames: Frames, num_clips: int) -> list[Tokens]:
        """Tokens of the first ``num_clips`` clips of uint8 ``[B, T, H, W, 3]``."""

    def encode_pieces(self, frames: Frames, states: Sequence[Any]) -> list[tuple[Tokens, Any]]:
        """Tokens of the next piece of each stream, and its state behind the piece."""


class ClipEncoder:
    """A tokenizer on one device, whichever it is: see ``tokenizer.Tokenizer``.

    ``encode`` may be called from ``num_callers`` threads at once: on a GPU, while one waits for its
    tokens the next one sends its batch over.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        """Load the model.

        Raises:
            TokenizerError: the checkpoint does not fit.
            RunError: its weights are not those that the run was planned with, memory is short, or a
                plugin's own code fails.
        """
        began = time.perf_counter()
        if spec.compiled:
            share_compiled_code()
        import torch

        torch.set_num_threads(spec.threads)
        if spec.device == "cpu":
            keep_freed_memory()
        self._spec, self._torch = spec, torch
        self._tokenizer = spec.open()
        # on a GPU these may be the device's errors: another worker may have more luck
        besides = () if spec.device == "cpu" else (RuntimeError,)
        with plugin_code(spec.tokenizer, "load()", besides=besides), self._out_of_memory():
            self._tokenizer.load(spec.device)
        with plugin_code(spec.tokenizer, "weights()", besides=besides):
            found = self._tokenizer.weights().digest
        if found != spec.token_format.checkpoint_digest:
            raise RunError(
                f"the checkpoint on this machine has digest {found[:12]}, the run was planned with "
                f"{spec.token_format.checkpoint_digest[:12]}: {spec.checkpoint}"
            )
        self.numerics = self._describe()
        self._is_recorded = spec.device != "cpu" and getattr(
            self._tokenizer, "is_recordable", False
        )
        self.num_callers = 2 if self._is_recorded else 1
        self._busy_seconds = 0.0
        self._graphs: dict[tuple[int, ...], GraphedEncoder] = {}
        self._recording = threading.Lock()
        if spec.compiled:
            self._compile()
        self.start_seconds = time.perf_counter() - began
        """From nothing to a model that is ready; the first batch of a shape adds its recording."""
        logger.info(
            "encoder ready in %.1f s, compiled=%s", self.start_seconds, self.numerics["compiled"]
        )

    def _compile(self) -> None:
        """Have kernels written for whole clips, by a tokenizer that knows how.

        Where that fails (no C compiler, a GPU that torch's compiler does not know) the encoder
        runs as it is: its tokens are the same within rounding, which ``numerics`` then tells.
        """
        torch, spec = self._torch, self._spec
        compile_for = getattr(self._tokenizer, "compile", None)
        if compile_for is None:
            self.numerics["compiled"] = False
            return
        # one compilation per bucket, and per bucket of images; torch gives up behind 8 of them
        torch._dynamo.config.recompile_limit = max(8, 2 * len(spec.buckets) + 1)
        with torch.inference_mode(), self._out_of_memory():
            first = (spec.batch_clips, spec.clip_frames, *spec.buckets[0], 3)
            try:
                compile_for(torch.zeros(first, dtype=torch.uint8))
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception:
                logger.exception(
                    "kernels cannot be compiled here; encoding goes on without, slower"
                )
                self.numerics["compiled"] = False

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
            "compiled": spec.compiled,
            "arithmetic": ARITHMETIC,
        }

    @property
    def busy_seconds(self) -> float:
        """Time that the device spent encoding."""
        return self._busy_seconds + sum(graph.busy_seconds for graph in self._graphs.values())

    def encode(self, frames: Frames, num_clips: int) -> list[Tokens]:
        """Tokens of the first ``num_clips`` clips.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, RGB; always the full batch shape.
            num_clips: clips that are not padding.

        Returns:
            int32 ``[t, h, w]`` or float32 ``[2c, t, h, w]`` (mean, log-variance) for each.

        Raises:
            RunError: the encoder gave NaN or infinity, or not what its spec says; the batch does
                not fit into GPU memory.
        """
        with self._torch.inference_mode(), self._out_of_memory():
            return self._checked(self._encode_batch(frames)[:num_clips])

    def _encode_batch(self, frames: Frames) -> Tokens:
        if self._is_recorded:
            return self._graph(frames.shape)(frames)
        tokens: Tokens = self._timed(self._encode_here, frames)
        return tokens

    def _graph(self, shape: tuple[int, ...]) -> GraphedEncoder:
        with self._recording:
            if shape not in self._graphs:
                from pipeline.cuda_graph import GraphedEncoder

                began = time.perf_counter()
                self._graphs[shape] = GraphedEncoder(self._to_tokens, shape)
                seconds = time.perf_counter() - began
                self.start_seconds += seconds
                logger.info("batch shape %s compiled and recorded in %.1f s", shape, seconds)
            return self._graphs[shape]

    def _encode_here(self, frames: Frames) -> Tokens:
        tokens: Tokens = self._to_tokens(self._on_device(frames)).cpu().numpy()
        return tokens

    def _on_device(self, frames: Frames) -> Tensor:
        return self._torch.from_numpy(frames).to(self._spec.device)

    def _to_tokens(self, frames: Tensor) -> Tensor:
        return self._kept_promise(self._tokenizer.encode(frames), frames.shape)

    def _kept_promise(self, tokens: Tensor, frames_shape: Sequence[int]) -> Tensor:
        """The tokens, if they are what the tokenizer's specification says."""
        try:
            check_tokens(self._tokenizer.spec, tokens, frames_shape)
        except TokenizerError as error:
            raise RunError(str(error)) from error
        return tokens

    def encode_pieces(self, frames: Frames, states: Sequence[Any]) -> list[tuple[Tokens, Any]]:
        """Tokens of the next piece of each stream, and its state behind the piece.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, RGB; always the full batch shape.
            states: of each stream, B at most; all None for first pieces.

        Raises:
            RunError: the encoder gave NaN or infinity; the batch does not fit into GPU memory.
        """
        padded = [*states, *[states[0]] * (frames.shape[0] - len(states))]
        with self._torch.inference_mode(), self._out_of_memory():
            tokens, after = self._timed(self._encode_chunk, frames, padded)
        return list(zip(self._checked(tokens[: len(states)]), after[: len(states)], strict=True))

    def _encode_chunk(self, frames: Frames, states: Sequence[Any]) -> tuple[Tokens, list[Any]]:
        # what is compiled is compiled for whole clips
        eager = (
            self._torch.compiler.set_stance("force_eager") if self._spec.compiled else nullcontext()
        )
        encode_chunk: Any = self._tokenizer.encode_chunk  # type: ignore[attr-defined]  # can_stream
        with eager:
            tokens, after = encode_chunk(self._on_device(frames), states)
        return tokens.cpu().numpy(), after

    def decode(self, tokens: Tokens) -> Frames | None:
        """Frames of one clip again; never while a batch shape is being recorded.

        Args:
            tokens: as ``encode`` gave them.

        Returns:
            uint8 ``[T, H, W, 3]``, RGB; None: the tokenizer has no decoder, or none was loaded.

        Raises:
            QualityCollapsed: NaN or infinity came out, or not what the Protocol says.
            RunError: it does not fit into GPU memory.
        """
        decode = getattr(self._tokenizer, "decode", None) if self._spec.has_decoder else None
        if not callable(decode):
            return None
        torch, spec = self._torch, self._tokenizer.spec
        values = tokens if spec.channels is None else tokens[: spec.channels]
        with torch.inference_mode(), self._out_of_memory(), self._recording:
            try:
                batch = decode(torch.from_numpy(values)[None].to(self._spec.device))
            except TokenizerError as error:
                raise QualityCollapsed(f"tokens of a clip cannot be decoded: {error}") from error
            frames: Frames = batch.cpu().numpy()[0]
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise QualityCollapsed(
                f"tokenizer {spec.name!r}: decode gave {frames.dtype} {list(batch.shape)}, not "
                "uint8 [B, T, H, W, 3]: correct decode, or leave it out"
            )
        return frames

    def _checked(self, tokens: Tokens) -> list[Tokens]:
        if tokens.dtype.kind == "f" and not np.isfinite(tokens).all():
            raise QualityCollapsed(
                "the encoder gave latents that are not finite: check tokenizer.checkpoint and "
                "tokenizer.precision"
            )
        size = self._tokenizer.spec.codebook_size
        if size is not None and tokens.size and not 0 <= tokens.min() <= tokens.max() < size:
            raise RunError(
                f"tokenizer {self._tokenizer.spec.name!r}: encode gave indices {tokens.min()}.."
                f"{tokens.max()}, its spec says 0..{size - 1}: correct TokenSpec.codebook_size"
            )
        return list(tokens)

    def _timed(self, step: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = step(*arguments)
        self._busy_seconds += time.perf_counter() - began
        return result

    @contextmanager
    def _out_of_memory(self) -> Iterator[None]:
        try:
            yield
        except self._torch.cuda.OutOfMemoryError as error:
            size = self._spec.batch_clips
            remedy = (
                f"go on with encoder.batch_clips={size // 2}"
                if size > 1
                else "a clip of this size does not fit: lower sampling.resolution or clip_frames"
            )
            raise RunError(
                f"a batch of {size} clips does not fit into the memory of the GPU: {remedy}"
            ) from error


def share_compiled_code() -> None:
    """Let all workers of a machine, and later runs, use what one of them compiled.

    ``TORCHINDUCTOR_CACHE_DIR`` says where; by default below the user's cache folder. Kernels are
    chosen by rule, not by timing them (torch 2.9 and newer): another choice rounds differently.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "vidtok-pipeline" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")


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
