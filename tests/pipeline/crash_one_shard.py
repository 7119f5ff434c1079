"""The shard of `crash_segments` that two attempts race for, alone: quick enough for S3."""

from __future__ import annotations

from tests.pipeline import crash_segments
from tests.pipeline.crash_segments import command, problem, receipts, remove

crash_segments.SHARDS = "b"

__all__ = ["command", "problem", "receipts", "remove"]
