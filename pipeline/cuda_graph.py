"""A GPU kept busy: one recorded launch for a batch, the next batch copied while it runs.

A network of some hundred small kernels costs the CPU more time to launch than the GPU to run. A
CUDA graph is recorded once per batch shape and then launched as one. Batches go through two
buffers: while one is encoded, another caller fills the second and sends it over.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CUDA: Any = torch.cuda  # its classes are not annotated

NUM_BUFFERS = 2
"""Batches on their way: one is encoded, one is copied."""
WARM_UPS = 3
"""Runs before the recording: libraries choose kernels and allocate in the first ones."""

Encode = Callable[[Tensor], Tensor]
"""From uint8 ``[B, T, H, W, 3]`` on the GPU to the tokens of the batch on the GPU."""


@dataclass(slots=True)
class _Buffer:
    pinned: Tensor
    """uint8 ``[B, T, H, W, 3]`` that the GPU copies from by itself."""
    on_gpu: Tensor
    """The same there."""
    tokens: Tensor
    """Pinned; the GPU copies to it by itself."""
    copied: torch.cuda.Event
    done: torch.cuda.Event


class GraphedEncoder:
    """``encode`` for one batch shape; may be called from ``NUM_BUFFERS`` threads at once."""

    def __init__(self, encode: Encode, shape: tuple[int, ...]) -> None:
        """Warm up and record.

        Args:
            encode: must do the same work for every batch, without asking the GPU for a value.
            shape: B, T, H, W, 3.
        """
        self._frames = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        self._compute, self._copy = _CUDA.Stream(), _CUDA.Stream()
        self._compute.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._compute):
            for _ in range(WARM_UPS):
                encode(self._frames)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._compute):
            self._tokens = encode(self._frames)
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(NUM_BUFFERS):
            self._free.put(self._new_buffer())
        self._turn = threading.Lock()
        self.busy_seconds = 0.0
        """Time that the GPU spent encoding."""

    def _new_buffer(self) -> _Buffer:
        frames, tokens = self._frames, self._tokens
        return _Buffer(
            pinned=torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True),
            on_gpu=torch.empty_like(frames),
            tokens=torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True),
            copied=_CUDA.Event(),
            done=_CUDA.Event(enable_timing=True),
        )

    def __call__(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Tokens of a batch, on the CPU."""
        buffer = self._free.get()
        try:
            buffer.pinned.copy_(torch.from_numpy(frames))
            with torch.cuda.stream(self._copy):
                buffer.on_gpu.copy_(buffer.pinned, non_blocking=True)
                buffer.copied.record()
            began = _CUDA.Event(enable_timing=True)
            with self._turn, torch.cuda.stream(self._compute):
                self._compute.wait_event(buffer.copied)
                began.record()
                self._frames.copy_(buffer.on_gpu)
                self._graph.replay()
                buffer.tokens.copy_(self._tokens, non_blocking=True)
                buffer.done.record()
            buffer.done.synchronize()
            with self._turn:
                self.busy_seconds += began.elapsed_time(buffer.done) / 1e3
            return buffer.tokens.numpy().copy()
        finally:
            self._free.put(buffer)
