"""What tokenising took, from the counters that drivers left in their heartbeats. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.attempts import combined


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Sums over all drivers that left a heartbeat."""

    has_gpus: bool
    drivers: int
    clips: float
    """Clips that the counters below made."""
    video_seconds: float
    worker_seconds: float
    """Time that workers were held: of each driver its workers at the end, times its run time."""
    encode_seconds: float
    """Of that, time that the encoder computed."""
    starved_seconds: float
    """Time that it waited for clips."""
    decode_core_seconds: float
    """CPU time of decoder children."""
    encode_core_seconds: float
    """CPU runs: encoding time times its threads; 0 with GPUs."""

    @property
    def core_seconds(self) -> float:
        """Of decoding and, without GPUs, of encoding."""
        return self.decode_core_seconds + self.encode_core_seconds

    def per_1000_clips(self, seconds: float) -> float:
        """These seconds for each 1,000 clips."""
        return 1000.0 * seconds / self.clips if self.clips else 0.0

    def per_video_hour(self, seconds: float) -> float:
        """These seconds for each hour of source video."""
        return 3600.0 * seconds / self.video_seconds if self.video_seconds else 0.0


def cost(record: Mapping[str, Any], beats: Sequence[Mapping[str, Any]]) -> Cost:
    """Of all drivers together.

    Args:
        record: ``run.json``.
        beats: what drivers last said.
    """
    counters = combined(beat.get("counters", {}) for beat in beats)
    has_gpus = record["device"] != "cpu"
    encode = counters.get("encode_seconds", 0.0)
    threads = record["config"].get("encoder", {}).get("threads", 1)
    return Cost(
        has_gpus=has_gpus,
        drivers=len(beats),
        clips=counters.get("clips", 0.0),
        video_seconds=counters.get("source_seconds", 0.0),
        worker_seconds=sum(
            beat.get("num_workers", 0) * float(beat.get("elapsed_seconds") or 0.0) for beat in beats
        ),
        encode_seconds=encode,
        starved_seconds=counters.get("starved_seconds", 0.0),
        decode_core_seconds=counters.get("decode_cpu_seconds", 0.0),
        encode_core_seconds=0.0 if has_gpus else encode * threads,
    )
