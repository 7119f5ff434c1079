"""Stand-ins for the model and for machines, and an OUT written without either.

Storage, reader, writer, commits and decoder children are always the real ones.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.attempts import Event, Finished, Joined, Wish, WorkerReport
from pipeline.committer import Committer, SegmentWriter
from pipeline.errors import VideoError
from pipeline.packing import pack_indices, pack_latents
from pipeline.reader import Sample, Source
from pipeline.receipts import Receipt, new_attempt
from pipeline.records import DecodeSummary, SourceInfo
from pipeline.run_record import write_run_record
from pipeline.schema import TokenFormat, TokenRow, clip_id
from pipeline.segments import CommitRules, EncodedClip, OpenVideo, ShardTask
from pipeline.shards import Shard, ShardKind
from pipeline.storage import Storage
from tests.pipeline.media import read_number

MATERIAL = {"tokenizer": {"name": "fake"}, "packing": "u16+u2"}
SOURCE = Source(size_bytes=1000, version="v1")
SHAPE = (1, 2, 3)
RULES = CommitRules(max_clips=1000, max_seconds=1e6, row_group_rows=2, max_quarantine_bytes=1 << 24)


def token_format(packing: str = "u16+u2", **changes: Any) -> TokenFormat:
    """The footer's record of a small tokenizer."""
    from pipeline.fingerprint import digest_of

    discrete = packing in ("u16", "u16+u2", "i32")
    fields: dict[str, Any] = {
        "format_version": 2,
        "tokenizer": "fake",
        "checkpoint_digest": "0" * 64,
        "random_weights": False,
        "packing": packing,
        "axes": "t h w" if discrete else "c t h w",
        "codebook_size": 262144 if discrete else None,
        "levels": (8, 8, 8, 8, 8, 8) if discrete else (),
        "channels": None if discrete else 2,
        "fingerprint": digest_of(MATERIAL),
    }
    return TokenFormat(**fields | changes)


def indices_of(number: int, shape: Sequence[int] = SHAPE) -> npt.NDArray[np.int32]:
    """Different indices for every number."""
    dice = np.random.default_rng(number)
    return dice.integers(0, 262144, size=tuple(shape), dtype=np.int32)


def row(number: int, *, shard: str = "s", shape: Sequence[int] = SHAPE, **changes: Any) -> TokenRow:
    """A clip's row; ``number`` makes it different from others."""
    fields: dict[str, Any] = {
        "clip_id": clip_id(shard, f"video_{number}", 8.0, 0),
        "shard": shard,
        "key": f"video_{number}",
        "clip_index": 0,
        "fps": 8.0,
        "start_seconds": 0.0,
        "end_seconds": 2.125,
        "frame_seconds": [0.0, 0.125],
        "source_width": 640,
        "source_height": 360,
        "source_fps": 29.97,
        "bucket": "64x64",
        "caption": None if number % 2 else f"caption {number} ü",
        "metadata": None,
        "token_shape": list(shape),
        "tokens": pack_indices(indices_of(number, shape), "u16+u2"),
    }
    return TokenRow(**fields | changes)


def latent_row(number: int, values: npt.NDArray[np.float32], packing: str = "fp32") -> TokenRow:
    """A row of mean and log-variance, float32 ``[2c, t, h, w]``."""
    shape = [values.shape[0] // 2, *values.shape[1:]]
    return row(number, token_shape=shape, tokens=pack_latents(values, packing))


def video(
    number: int,
    *,
    clips: int = 1,
    failure: str | None = None,
    original: bytes = b"",
    span: int = 10,
) -> OpenVideo:
    """A video that is done: bytes ``[number * span, (number + 1) * span)`` of its shard."""
    sample = Sample(
        key=f"video_{number}",
        start_offset=number * span,
        end_offset=(number + 1) * span,
        extension="mp4",
    )
    if failure is not None:
        return OpenVideo(sample, original, failure=VideoError(failure, "by the test"))
    source = SourceInfo(
        width=64,
        height=64,
        fps=30.0,
        num_frames=10,
        duration_seconds=1.0,
        codec="h264",
        pixel_format="yuv420p",
    )
    encoded = {
        (8.0, index): EncodedClip(
            fps=8.0,
            clip_index=index,
            start_seconds=index * 2.0,
            end_seconds=index * 2.0 + 2.0,
            frame_seconds=(index * 2.0,),
            bucket="64x64",
            tokens=indices_of(100 * number + index),
        )
        for index in range(clips)
    }
    filtered = {} if clips else {"too_short": 1}
    summary = DecodeSummary(source=source, num_clips={8.0: clips}, filtered=filtered)
    return OpenVideo(sample, b"", clips=encoded, summary=summary)


def shard(name: str = "s") -> Shard:
    """A shard that nobody reads."""
    return Shard(name=name, url=f"/data/{name}.tar", kind=ShardKind.tar)


def segment_writer(
    storage: Storage,
    *,
    task: ShardTask | None = None,
    source: Source = SOURCE,
    max_clips: int = 1000,
    max_seconds: float = 1e6,
    max_quarantine_bytes: int = 1 << 24,
) -> SegmentWriter:
    """One attempt at a shard."""
    rules = replace(
        RULES,
        max_clips=max_clips,
        max_seconds=max_seconds,
        max_quarantine_bytes=max_quarantine_bytes,
    )
    task = task or ShardTask(shard=shard(), source=None)
    return SegmentWriter(task, committer(storage, task, source, rules), rules)


def committer(
    storage: Storage, task: ShardTask, source: Source = SOURCE, rules: CommitRules = RULES
) -> Committer:
    """One attempt's."""
    return Committer(
        task,
        source=source,
        storage=storage,
        scratch=storage.scratch(Path(tempfile.gettempdir()) / f"vidtok-{new_attempt()}"),
        rules=rules,
        token_format=token_format(),
        numerics={"device": "fake"},
    )


def write_shard(
    storage: Storage, name: str, videos: Iterable[OpenVideo], *, max_clips: int = 1000
) -> list[Receipt]:
    """Commit a whole shard."""
    writer = segment_writer(
        storage, task=ShardTask(shard=shard(name), source=None), max_clips=max_clips
    )
    end = 0
    for one in videos:
        writer.add(one)
        end = one.sample.end_offset
    writer.finish(end, None)
    return writer.receipts


def make_out(root: str | Path, *, shards: int = 2, videos: int = 3, max_clips: int = 2) -> Storage:
    """An OUT with ``shards`` shards of ``videos`` one-clip videos in segments of ``max_clips``."""
    storage = Storage(str(root))
    write_run_record(
        storage, material=MATERIAL, config={}, random_weights=False, batch_clips=1, device="cpu"
    )
    for number in range(shards):
        write_shard(
            storage, f"shard{number}", (video(n) for n in range(videos)), max_clips=max_clips
        )
    return storage


def place_of_tokens(storage: Storage, part: str) -> int:
    """Where the first clip's tokens lie in the file of a part."""
    content = storage.read(f"parts/{part}")
    return content.index(pq.read_table(io.BytesIO(content))["tokens"][0].as_py())


class FakeEncoder:
    """Indices that tell which pixels they were made of, without a model."""

    numerics: dict[str, Any] = {"device": "fake"}  # noqa: RUF012 (the protocol's attribute)

    def __init__(self, *, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.batches: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []

    def encode(self, frames: npt.NDArray[np.uint8], num_clips: int) -> list[npt.NDArray[Any]]:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        means = frames[:num_clips].reshape(num_clips, 4, -1).mean(axis=2)
        return [(clip * 64).astype(np.int32).reshape(1, 2, 2) for clip in means]

    def encode_pieces(
        self, frames: npt.NDArray[np.uint8], states: Sequence[Any]
    ) -> list[tuple[npt.NDArray[Any], Any]]:
        """The number shown by the first frame, then by every second; the state counts frames."""
        self.batches.append((frames.shape, tuple(states)))
        step = 1 if states[0] is None else 2
        result = []
        for clip, state in zip(frames, states, strict=False):
            numbers = [read_number(picture) for picture in clip[step - 1 :: step]]
            tokens = np.array(numbers, dtype=np.int32).reshape(-1, 1, 1)
            result.append((tokens, (state or 0) + frames.shape[1]))
        return result


Outcome = Callable[[ShardTask], Finished | None]


class FakeWorkers:
    """Ends each attempt as the next outcome in the list of its shard says; None: it goes on."""

    def __init__(
        self,
        outcomes: dict[str, list[Outcome]],
        *,
        slots: int = 2,
        owners: Sequence[str] = ("fake",),
    ) -> None:
        self._outcomes = outcomes
        self.happens: list[Event] = [Joined(owner=owner, slots=slots) for owner in owners]
        self.submitted: list[tuple[float, str, ShardTask]] = []
        self.asked: list[tuple[str, str, Wish]] = []
        self.removed: list[tuple[str, str]] = []
        self.open: set[str] = set()
        self.most_open = 0
        self.said: dict[str, WorkerReport] = {}

    def events(self, timeout_seconds: float) -> list[Event]:
        if not self.happens:
            time.sleep(min(timeout_seconds, 0.005))
        happened, self.happens = self.happens, []
        self.open -= {one.task.attempt for one in happened if isinstance(one, Finished)}
        return happened

    def submit(self, owner: str, task: ShardTask) -> None:
        self.submitted.append((time.monotonic(), owner, task))
        self.open.add(task.attempt)
        self.most_open = max(self.most_open, len(self.open))
        finished = self._outcomes[task.shard.name].pop(0)(task)
        if finished is not None:
            self.happens.append(finished)

    def ask(self, owner: str, attempt: str, wish: Wish) -> None:
        self.asked.append((owner, attempt, wish))

    def restart(self, owner: str) -> None:
        self.removed.append(("restart", owner))

    def expel(self, owner: str) -> None:
        self.removed.append(("expel", owner))

    def reports(self, *, wait_seconds: float = 0.0) -> dict[str, WorkerReport]:
        return self.said

    def close(self) -> None:
        pass

    def stop_now(self) -> None:
        pass
