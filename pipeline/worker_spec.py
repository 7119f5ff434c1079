"""All that a worker is told at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.encode import EncoderSpec
from pipeline.quality_gate import QualityRules
from pipeline.reader import ReadRules
from pipeline.records import CanaryMode, ClipPlan, VideoLimits
from pipeline.segments import CommitRules
from pipeline.selection import SelectionRules


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """All that a worker needs to know; picklable."""

    encoder: EncoderSpec
    plan: ClipPlan
    limits: VideoLimits
    read_rules: ReadRules
    read_ahead_bytes: int
    range_bytes: int
    decoders: int
    """Decoder children at the start."""
    commit_rules: CommitRules
    output_root: str
    output_options: Mapping[str, Any]
    input_options: Mapping[str, Any]
    strict_numerics: bool
    """Refuse to write tokens of another numeric environment into OUT."""
    most_decoders: int | None = None
    """Children at most, when their number follows the measured waiting; None: it is fixed."""
    canary: CanaryMode = CanaryMode.commit
    """When the encoder's arithmetic is checked."""
    selection: SelectionRules = field(default_factory=SelectionRules)
    """Which spans of which videos, and which columns of them."""
    quality: QualityRules = field(default_factory=QualityRules)
    """Which clips are decoded again, and when their reconstructions stop the run."""
    beside: tuple[WorkerSpec, ...] = ()
    """Further outputs of the same decoding pass. Of them count what they encode with, which clips,
    and where and how tokens are stored; reading and decoding are as said here."""

    def each(self) -> tuple[WorkerSpec, ...]:
        """The specification of every output, in the order of their numbers."""
        return (self, *self.beside)
