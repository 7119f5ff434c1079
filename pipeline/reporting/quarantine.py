"""Videos that could not be tokenised: why, and what can still be seen of them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.film import Rgb
from pipeline.manifest import Line
from pipeline.receipts import Receipt, ReceiptName, quarantine_name, read_receipts
from pipeline.records import ClipPlan, TailPolicy, VideoLimits
from pipeline.reporting.frames import decode_frames
from pipeline.storage import Storage

MAX_ORIGINAL_BYTES = 64 << 20
"""A larger original is not decoded for the report."""
MAX_ALL_BYTES = 256 << 20
"""Originals of the gallery, together."""
_PLAN = ClipPlan(
    fps=(1.0,),
    clip_frames=1,
    stride_frames=1,
    max_clips_per_video=3,
    tail=TailPolicy.pad,
    buckets=((144, 256), (192, 192), (256, 144)),
)
_LIMITS = VideoLimits(video_bytes=MAX_ORIGINAL_BYTES, cpu_seconds=20.0, no_progress_seconds=10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadVideo:
    """One of the gallery."""

    shard: str
    key: str
    reason: str
    message: str
    picture: Rgb | None = None
    """The last frame that could be decoded of its first three seconds."""


def gallery(
    storage: Storage, lines: Sequence[Line], *, most: int, seconds: float
) -> list[BadVideo]:
    """Some quarantined videos, of as many reasons as there are.

    Args:
        storage: OUT.
        lines: receipts with quarantined videos, those that matter most first.
        most: videos.
        seconds: for decoding all of them.

    Raises:
        RunError: a receipt that cannot be trusted.
    """
    names = [ReceiptName(line.shard, line.segment, line.generation) for line in lines]
    receipts, listed = {}, []
    for receipt in read_receipts(storage, names):
        receipts[receipt.name] = receipt
        listed += [
            (receipt.name, _bad_video(receipt.shard, video)) for video in receipt.quarantined
        ]
    chosen = _mixed(listed, most)
    originals: dict[int, bytes] = {}
    for name in dict.fromkeys(name for name, _ in chosen):
        places = {video.key: at for at, (of, video) in enumerate(chosen) if of == name}
        room = MAX_ALL_BYTES - sum(map(len, originals.values()))
        originals |= _originals(storage, receipts[name], places, room)
    if not originals:
        return [video for _, video in chosen]
    clips = decode_frames(originals, _PLAN, _LIMITS, seconds=seconds, keep_failed=True)
    pictures = {at: found[max(found)][0] for at, found in clips.items()}
    return [replace(video, picture=pictures.get(at)) for at, (_, video) in enumerate(chosen)]


def _bad_video(shard: str, video: dict[str, str]) -> BadVideo:
    return BadVideo(shard=shard, key=video["key"], reason=video["reason"], message=video["message"])


def _mixed(listed: Sequence[tuple[str, BadVideo]], most: int) -> list[tuple[str, BadVideo]]:
    """One of each reason, then a second of each, and so on."""
    turn: dict[str, int] = {}
    order = []
    for at, (_, video) in enumerate(listed):
        turn[video.reason] = turn.get(video.reason, 0) + 1
        order.append((turn[video.reason], at))
    return [listed[at] for _, at in sorted(order)[:most]]


def _originals(
    storage: Storage, receipt: Receipt, places: dict[str, int], room: int
) -> Iterator[tuple[int, bytes]]:
    """The bytes of these videos, from the tar that was written beside the receipt."""
    name = f"quarantine/{quarantine_name(receipt.shard, receipt.segment, receipt.attempt)}"
    try:
        with storage.open(name) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                keys = (str(path.with_suffix("")), member.name)
                key = next((key for key in keys if key in places), None)
                is_video = member.isfile() and path.suffix != ".json" and key is not None
                if is_video and 0 < member.size <= min(room, MAX_ORIGINAL_BYTES):
                    content = tar.extractfile(member)
                    assert content is not None
                    assert key is not None
                    room -= member.size
                    yield places[key], content.read()
    except (FileNotFoundError, tarfile.TarError):
        # kept only where output.keep_quarantined says so: the reason is shown all the same
        return
