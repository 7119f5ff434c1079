"""How many clips a GPU takes at once: measured at the start of a new OUT, then never changed.

A batch that is too small leaves the GPU idle between kernels; one beyond the knee gains nothing and
takes memory. The tokens of a clip depend, in the last bits, on the shape of its batch, so the
choice is recorded in ``run.json`` and later runs keep it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.encode import EncoderSpec
from pipeline.errors import RunError

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that are tried, until one does not fit."""
KNEE = 0.97
"""The smallest batch that reaches this share of the best rate is taken."""
MEMORY = 0.85
"""Largest share of the GPU's memory that a batch may take: the recording of graphs needs some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One batch size that was tried."""

    batch_clips: int
    """B."""
    clips_per_second: float | None
    """None where it did not fit."""
    memory_fraction: float = 0.0
    """Largest share of the GPU's memory that torch took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What was chosen and why; picklable, and plain enough for ``run.json``."""

    batch_clips: int
    """The choice."""
    device: str
    """Name of the GPU that it was measured on."""
    measured: tuple[Measured, ...]
    """Everything that was tried."""

    def record(self) -> dict[str, Any]:
        """For ``run.json``."""
        return asdict(self)


def choose(measured: Iterable[Measured], *, share: float = 1.0) -> int:
    """The smallest batch that fits and reaches ``KNEE`` of the best rate.

    >>> rates = {1: 20.0, 2: 35.0, 4: 39.8, 8: 40.0}
    >>> choose(Measured(batch_clips=b, clips_per_second=r) for b, r in rates.items())
    4

    Args:
        measured: everything that was tried.
        share: of the GPU's memory that the model may take; other outputs' models have the rest.

    Raises:
        RunError: not even the smallest one fits.
    """
    fitting = [
        (one.batch_clips, one.clips_per_second)
        for one in measured
        if one.clips_per_second is not None and one.memory_fraction <= MEMORY * share
    ]
    if not fitting:
        raise RunError(
            "not even one clip fits into the memory of the GPU: lower sampling.resolution or "
            "sampling.clip_frames, or use encoder.device=cpu"
        )
    best = max(rate for _, rate in fitting)
    return min(size for size, rate in fitting if rate >= KNEE * best)


def try_sizes(
    measure: Callable[[int], Measured], sizes: Sequence[int] = SIZES
) -> tuple[Measured, ...]:
    """Measure growing batches; stop at the first that does not fit or gains nothing.

    Twice without a gain, as one measurement may be disturbed.
    """
    found: list[Measured] = []
    best, without_gain = 0.0, 0
    for size in sizes:
        found.append(measure(size))
        rate = found[-1].clips_per_second
        if rate is None or found[-1].memory_fraction > MEMORY:
            break
        without_gain = 0 if rate > best / KNEE else without_gain + 1
        best = max(best, rate)
        if without_gain == 2:
            break
    return tuple(found)


def probe_batch(spec: EncoderSpec, *, share: float = 1.0) -> ProbeResult:
    """Measure on this machine's GPU; needs it for itself for some seconds.

    The largest bucket decides. Measured without compiled code and graphs: these take less memory,
    and the knee, where the GPU is full, hardly moves; compiling every size would take minutes.

    Args:
        spec: of the encoder.
        share: of the GPU's memory that it may take.

    Raises:
        RunError: not even one clip fits.
    """
    import torch

    tokenizer = spec.open()
    tokenizer.load("cuda")
    height, width = max(spec.buckets, key=lambda bucket: bucket[0] * bucket[1])
    total_bytes = torch.cuda.get_device_properties().total_memory

    def measure(size: int) -> Measured:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        shape = (size, spec.clip_frames, height, width, 3)
        try:
            frames = torch.zeros(shape, dtype=torch.uint8, device="cuda")
            with torch.inference_mode():  # as a worker does
                seconds = _best_of(lambda: tokenizer.encode(frames), torch.cuda.synchronize)
        except torch.cuda.OutOfMemoryError:
            return Measured(batch_clips=size, clips_per_second=None, memory_fraction=1.0)
        return Measured(
            batch_clips=size,
            clips_per_second=size / seconds,
            memory_fraction=torch.cuda.max_memory_allocated() / total_bytes,
        )

    measured = try_sizes(measure)
    return ProbeResult(
        batch_clips=choose(measured, share=share),
        device=torch.cuda.get_device_name(),
        measured=measured,
    )


def _best_of(action: Callable[[], object], wait: Callable[[], None], times: int = 3) -> float:
    """Seconds of the quickest run behind a first one, in which libraries choose their kernels."""
    seconds = []
    for _ in range(times + 1):
        wait()
        began = time.perf_counter()
        action()
        wait()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
