"""Tars with given members, and what the reader makes of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.ranges import RangeBuffers
from pipeline.reader import ReadRules, Sample, ShardEnd, read_shard
from pipeline.shards import Shard, ShardKind, shard_name

RULES = ReadRules(
    video_extensions=frozenset({"mp4", "webm"}),
    caption_key="caption",
    video_bytes=100_000,
    sidecar_bytes=10_000,
)

Member = tuple[str, bytes] | tarfile.TarInfo


def tar_bytes(members: Iterable[Member], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of files ``(name, content)`` and of members without content."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A folder, a link or another member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def three_samples() -> list[Member]:
    """Three videos with captions, of sizes that do and do not fill a block."""
    return [
        member
        for number, size in enumerate((700, 512, 1025))
        for member in (
            (f"clip_{number}.json", json.dumps({"caption": f"number {number}"}).encode()),
            (f"clip_{number}.mp4", bytes([65 + number]) * size),
        )
    ]


def tar_shard(path: Path, content: bytes) -> Shard:
    """Write an archive and name it as a shard."""
    path.write_bytes(content)
    return Shard(name=shard_name(str(path)), url=str(path), kind=ShardKind.tar)


def read(
    shard: Shard,
    *,
    rules: ReadRules = RULES,
    options: Mapping[str, Any] | None = None,
    start_offset: int = 0,
    seen: set[bytes] | None = None,
    buffers: RangeBuffers | None = None,
) -> tuple[list[Sample], ShardEnd]:
    """All samples of a shard, and how it ended."""
    *samples, end = read_shard(
        shard,
        rules=rules,
        options=options or {},
        start_offset=start_offset,
        seen=seen,
        buffers=buffers,
    )
    assert isinstance(end, ShardEnd)
    assert all(isinstance(sample, Sample) for sample in samples)
    return samples, end  # type: ignore[return-value]


def reason(sample: Sample) -> str | None:
    """Why a sample would be quarantined before it is decoded."""
    return sample.defect.reason if sample.defect else None
