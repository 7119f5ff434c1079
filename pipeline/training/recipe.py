"""What makes the clips of a training, and where in them a rank stands: records and digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import RunError
from pipeline.records import ClipPlan, TailPolicy
from pipeline.shards import Shard, ShardKind

STATE_VERSION = 1
"""Raised when an older state would continue elsewhere."""
MIX_VIDEOS = 16
"""Videos whose clips are mixed, where a video gives several out of one decoding pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecipe:
    """Everything that decides which pixels a clip has and when it comes, beside shards and ranks.

    Raises:
        RunError: a value that makes no clips.
    """

    clip_frames: int
    """T."""
    resolution: int
    """H and W, pixels: the short side is scaled to it, the long side cropped."""
    fps: tuple[float, ...]
    """Rates; each clip draws one of them."""
    seed: int = 0
    """Of every draw and shuffle."""
    clips_per_video: int = 1
    """Clips of each video in each epoch, out of one decoding pass."""
    random_crop: bool = False
    """The crop lies anywhere; else in the centre."""
    mirror: bool = False
    """Half of the clips are mirrored, left to right."""
    max_zoom: float = 1.0
    """Up to this many times larger than the crop the short side may be; each clip draws."""
    window_bytes: int = 256 << 20
    """Encoded videos that are shuffled together; two such windows are in memory."""

    def __post_init__(self) -> None:
        for name in ("clip_frames", "resolution", "clips_per_video", "window_bytes"):
            if (value := getattr(self, name)) < 1:
                raise RunError(f"{name} of training clips must be at least 1, got {value!r}")
        if not 1 <= self.max_zoom <= 16:
            raise RunError(f"max_zoom of training clips must be in 1 to 16, got {self.max_zoom}")
        if not self.fps or min(self.fps) <= 0 or len(set(self.fps)) < len(self.fps):
            raise RunError(
                f"fps of training clips must be different rates above 0, got {list(self.fps)}"
            )

    @property
    def clip_bytes(self) -> int:
        """Size of a clip, uint8 ``[T, H, W, 3]``."""
        return self.clip_frames * self.resolution**2 * 3

    @property
    def mix_videos(self) -> int:
        """Videos whose clips are mixed."""
        return MIX_VIDEOS if self.clips_per_video > 1 else 1

    def plan(self) -> ClipPlan:
        """The plan that a decoder child is given."""
        return ClipPlan(
            fps=self.fps,
            clip_frames=self.clip_frames,
            stride_frames=self.clip_frames,
            max_clips_per_video=self.clips_per_video,
            tail=TailPolicy.pad,
            buckets=((self.resolution, self.resolution),),
        )

    def digest(self, shards: Sequence[Shard]) -> str:
        """Stands for the recipe and the shards in a state, wherever the shards lie."""
        names = [(place_free_name(shard), shard.members) for shard in shards]
        facts = [dataclasses.asdict(self), names]
        text = json.dumps(facts, sort_keys=True).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()[:16]


def place_free_name(shard: Shard) -> str:
    """A shard's file name, or its bucket: a copy of the data set elsewhere gives the same clips.

    >>> place_free_name(Shard(name="a-0123456789ab", url="s3://x/y/a.tar", kind=ShardKind.tar))
    'a.tar'
    """
    if shard.kind is ShardKind.tar:
        return PurePosixPath(shard.url).name
    return shard.name.rsplit("-", 1)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a window of videos begins."""

    epoch: int = 0
    """From 0 on."""
    shard: int = 0
    """Position among the rank's shards of this epoch."""
    offset: int = 0
    """``end_offset`` of the last sample before."""
    shard_bytes: int = 0
    """Size of the shard that is open there; 0 at its beginning."""
    num_samples: int = 0
    """Samples of the epoch before, those of other ranks included where ranks share shards."""
    window: int = 0
    """Windows of the epoch before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How the videos of this rank went."""

    num_videos: int = 0
    """All, since the training began."""
    bad: Mapping[str, int] = field(default_factory=dict)
    """Reason -> videos that were skipped for it."""
    num_clips: int = 0
    """Clips, since the training began."""
    epoch_clips: int = 0
    """Clips of this epoch."""

    @property
    def num_bad(self) -> int:
        """Videos that were skipped."""
        return sum(self.bad.values())

    def with_video(self, num_clips: int) -> Tally:
        """After a healthy video."""
        return dataclasses.replace(
            self,
            num_videos=self.num_videos + 1,
            num_clips=self.num_clips + num_clips,
            epoch_clips=self.epoch_clips + num_clips,
        )

    def with_bad(self, reason: str) -> Tally:
        """After a video that was skipped."""
        bad = dict(self.bad) | {reason: self.bad.get(reason, 0) + 1}
        return dataclasses.replace(self, num_videos=self.num_videos + 1, bad=bad)

    def in_next_epoch(self) -> Tally:
        """At the beginning of an epoch."""
        return dataclasses.replace(self, epoch_clips=0)

    def reasons(self) -> str:
        """The reasons in words, most frequent first."""
        ranked = sorted(self.bad.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{reason} {number}" for reason, number in ranked) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The next clip of a rank, and what was counted before the videos that it is mixed with."""

    place: Place = field(default_factory=Place)
    """Begin of its window."""
    video: int = 0
    """Videos of the window, in shuffled order, that are done with."""
    taken: int = 0
    """Clips given out of the videos that are mixed next."""
    tally: Tally = field(default_factory=Tally)
    """Before these videos."""


def state_of(position: Position, *, digest: str, rank: int, world_size: int) -> dict[str, Any]:
    """A position as plain values for a checkpoint; a few hundred bytes."""
    return {
        "version": STATE_VERSION,
        "digest": digest,
        "rank": rank,
        "world_size": world_size,
        "place": dataclasses.asdict(position.place),
        "video": position.video,
        "taken": position.taken,
        "tally": dataclasses.asdict(position.tally) | {"bad": dict(position.tally.bad)},
    }


def position_of(
    state: Mapping[str, Any], *, digest: str, rank: int, world_size: int, next_epoch: bool
) -> Position:
    """The inverse of ``state_of``.

    Args:
        state: of ``state_of``.
        digest: of the recipe and shards that go on.
        rank: which goes on.
        world_size: of the training that goes on.
        next_epoch: the rest of the epoch is given up; then any rank and world size may go on.

    Raises:
        RunError: it would not be the same clips that follow.
    """
    if state.get("version") != STATE_VERSION:
        raise RunError(
            f"this is no state of training clips of version {STATE_VERSION}: "
            f"its version is {state.get('version')!r}"
        )
    if state["digest"] != digest:
        raise RunError(
            f"the state belongs to other clips (digest {state['digest']}, these have {digest}): "
            "continue with the shards, seed, fps, sizes and window of the run that wrote it"
        )
    if next_epoch:
        return Position(place=Place(epoch=state["place"]["epoch"] + 1))
    if (state["rank"], state["world_size"]) != (rank, world_size):
        raise RunError(
            f"the state is that of rank {state['rank']} of {state['world_size']}, this is rank "
            f"{rank} of {world_size}: continue with {state['world_size']} ranks, each with its own "
            "state, or give one state to all ranks with next_epoch=True, which leaves out what is "
            "left of the epoch"
        )
    return Position(
        place=Place(**state["place"]),
        video=state["video"],
        taken=state["taken"],
        tally=Tally(**state["tally"]),
    )
