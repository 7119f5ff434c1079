"""Synthetic token parts: uniform indices of 262,144 codes, by the pipeline's writer and commits.

Uniform indices cannot be compressed, so that 18 bits are what a token holds. Nothing is decoded or
encoded: one clip a video, of a tar that nobody reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.committer import Committer, SegmentWriter
from pipeline.ledger import Ledger
from pipeline.reader import Sample, Source
from pipeline.records import DecodeSummary, SourceInfo
from pipeline.schema import FORMAT_VERSION, TokenFormat
from pipeline.segments import CommitRules, EncodedClip, OpenVideo, ShardTask
from pipeline.shards import Shard, ShardKind
from pipeline.storage import Storage

SHAPE = (5, 32, 32)
"""Of one clip: 17 frames of 256x256 by a 4x8x8 tokenizer."""
NUM_CODES = 1 << 18
TOKENS_PER_CLIP = int(np.prod(SHAPE))
ROW_GROUP_ROWS = 256

FORMAT = TokenFormat(
    format_version=FORMAT_VERSION,
    tokenizer="synthetic",
    checkpoint_digest="0" * 64,
    random_weights=True,
    packing="u16+u2",
    axes="t h w",
    codebook_size=NUM_CODES,
    levels=(8,) * 6,
    channels=None,
    fingerprint="0" * 64,
)
_SOURCE = SourceInfo(
    width=640,
    height=360,
    fps=30.0,
    num_frames=64,
    duration_seconds=64 / 30,
    codec="h264",
    pixel_format="yuv420p",
)


def indices_of(number: int) -> npt.NDArray[np.int32]:
    """Indices of one clip, int32 ``[5, 32, 32]`` in [0, 262144); others for every number."""
    return np.random.default_rng(number).integers(0, NUM_CODES, size=SHAPE, dtype=np.int32)


def sum_of_tokens(num_clips: int) -> int:
    """Of the first so many clips: what a pass over all of them must add up to."""
    return sum(int(indices_of(number).sum(dtype=np.int64)) for number in range(num_clips))


def write_token_parts(root: Path, *, num_clips: int, clips_per_part: int) -> None:
    """Commit them as one shard, and publish a manifest, as the end of a run does."""
    storage = Storage(str(root))
    shard = Shard(name="synthetic", url="/data/synthetic.tar", kind=ShardKind.tar)
    task = ShardTask(shard=shard, source=None)
    rules = CommitRules(
        max_clips=clips_per_part,
        max_seconds=1e6,
        row_group_rows=ROW_GROUP_ROWS,
        max_quarantine_bytes=0,
    )
    committer = Committer(
        task,
        source=Source(size_bytes=num_clips, version="1"),
        storage=storage,
        scratch=storage.scratch(root.parent / f"scratch-{root.name}"),
        rules=rules,
        token_format=FORMAT,
        numerics={"device": "none"},
    )
    writer = SegmentWriter(task, committer, rules)
    for number in range(num_clips):
        writer.add(_video(number))
    writer.finish(num_clips, None)
    Ledger.open(storage).publish(storage)


def _video(number: int) -> OpenVideo:
    """A video that is done, with one clip."""
    clip = EncodedClip(
        fps=8.0,
        clip_index=0,
        start_seconds=0.0,
        end_seconds=17 / 8,
        frame_seconds=tuple(frame / 8 for frame in range(17)),
        bucket="256x256",
        tokens=indices_of(number),
    )
    sample = Sample(key=f"{number:08d}", start_offset=number, end_offset=number + 1)
    summary = DecodeSummary(source=_SOURCE, num_clips={8.0: 1})
    return OpenVideo(sample, b"", clips={(8.0, 0): clip}, summary=summary)
