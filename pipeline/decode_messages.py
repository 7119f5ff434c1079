"""What a decoder child and its parent say to each other: small JSON messages, never pickles.

A child decodes untrusted bytes, so its parent takes nothing on trust: a message that is not
exactly what it should be is a `ValueError`, and the child that sent it is replaced. The socket
keeps messages apart (``SOCK_SEQPACKET``), so that one is read whole or not at all, and neither side
ever waits for the rest of one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.records import (
    IMAGE_FPS,
    Clip,
    ClipPlan,
    DecodeSummary,
    PixelSums,
    SamplingMode,
    SourceInfo,
    TailPolicy,
    TimeSpan,
    Variant,
    VideoLimits,
)

Message = dict[str, Any]

MAX_MESSAGE_BYTES = 1 << 20
"""A longer one is cut off, and then is no JSON."""
MAX_TEXT = 4096
"""Characters of a text that a child sends."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: Message, *, wait: bool = True) -> None:
    """One message.

    Raises:
        BlockingIOError: without ``wait``, the other side has too many unread.
        ConnectionError: the other side is gone.
    """
    connection.send(json.dumps(message).encode(), 0 if wait else socket.MSG_DONTWAIT)


def receive(connection: socket.socket, *, wait: bool = True) -> Message:
    """The next message.

    Raises:
        BlockingIOError: without ``wait``, there is none yet.
        EOFError: the other side is gone.
        ValueError: it is none of ours.
    """
    data = connection.recv(MAX_MESSAGE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
    if not data:
        raise EOFError
    try:
        message = json.loads(data)
    except RecursionError as error:
        raise ValueError("a message is nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError(f"a message must be an object, got {type(message).__name__}")
    return message


def settings_message(plan: ClipPlan, limits: VideoLimits, num_slots: int) -> Message:
    """The first message to a child."""
    plan_fields = dataclasses.asdict(plan) | {
        "tail": plan.tail.name,
        "mode": plan.mode.name,
        "variant": plan.variant.name,
    }
    return {"plan": plan_fields, "limits": dataclasses.asdict(limits), "num_slots": num_slots}


def read_settings(message: Message) -> tuple[ClipPlan, VideoLimits, int]:
    """The inverse of `settings_message`; read by the child, which trusts its parent."""
    fields = message["plan"]
    fields |= {
        "fps": tuple(fields["fps"]),
        "mode": SamplingMode[fields["mode"]],
        "tail": TailPolicy[fields["tail"]],
        "buckets": tuple((height, width) for height, width in fields["buckets"]),
        "variant": Variant[fields["variant"]],
    }
    return ClipPlan(**fields), VideoLimits(**message["limits"]), message["num_slots"]


def video_message(
    num_bytes: int,
    memory_bytes: int,
    spans: Sequence[TimeSpan] | None,
    *,
    is_image: bool = False,
) -> Message:
    """Work for a child: how long the video in its memory file is, and what clips lie within."""
    pairs = None if spans is None else [(span.start_seconds, span.end_seconds) for span in spans]
    return {
        "kind": "image" if is_image else "video",
        "num_bytes": num_bytes,
        "memory_bytes": memory_bytes,
        "spans": pairs,
    }


def read_spans(message: Message) -> tuple[TimeSpan, ...] | None:
    """The spans of a `video_message`; read by the child, which trusts its parent."""
    pairs = message["spans"]
    return None if pairs is None else tuple(TimeSpan(start, end) for start, end in pairs)


def clip_message(clip: Clip, slot: int) -> Message:
    """A clip without its pixels, which lie in the slot."""
    fields = {f.name: getattr(clip, f.name) for f in dataclasses.fields(clip) if f.name != "frames"}
    if clip.pixels is not None:
        fields["pixels"] = dataclasses.astuple(clip.pixels)
    return {"kind": "clip", "slot": slot, "shape": clip.frames.shape, "clip": fields}


def read_clip(
    message: Message, plan: ClipPlan, *, is_image: bool = False
) -> tuple[Clip, int, tuple[int, ...]]:
    """The clip of a message, still without frames; its slot, and the shape of what lies there.

    Raises:
        ValueError: it is no clip of this plan.
    """
    fields = _fields(message, "clip", dict)
    fps = _number(fields, "fps")
    seconds = _fields(fields, "frame_seconds", list)
    clip = Clip(
        fps=fps,
        clip_index=_whole(fields, "clip_index"),
        num_real_frames=_whole(fields, "num_real_frames"),
        start_seconds=_number(fields, "start_seconds"),
        end_seconds=_number(fields, "end_seconds"),
        frame_seconds=tuple(_number({"frame_seconds": s}, "frame_seconds") for s in seconds),
        frames=np.empty((0, 0, 0, 3), dtype=np.uint8),
        span_index=None if fields.get("span_index") is None else _whole(fields, "span_index"),
        pixels=None if fields.get("pixels") is None else _pixels(fields),
    )
    rates, most = ((IMAGE_FPS,), 1) if is_image else (plan.fps, plan.clip_frames)
    if fps not in rates or len(seconds) > most:
        raise ValueError(f"a clip at {fps} fps with {len(seconds)} times is not of the plan")
    shape = tuple(_whole({"shape": n}, "shape") for n in _fields(message, "shape", list))
    if len(shape) != 4 or shape[1:3] not in plan.buckets or shape[3] != 3:
        raise ValueError(f"frames of shape {list(shape)} are not of the plan")
    if not 1 <= shape[0] <= most:
        raise ValueError(f"{shape[0]} frames are not of the plan")
    return clip, _whole(message, "slot"), shape


def summary_message(summary: DecodeSummary) -> Message:
    """A summary as JSON: its numbers of clips as pairs, since JSON has no numeric keys."""
    fields = dataclasses.asdict(summary) | {"num_clips": list(summary.num_clips.items())}
    return {"kind": "decoded", "summary": fields}


def read_summary(message: Message, plan: ClipPlan, *, is_image: bool = False) -> DecodeSummary:
    """The inverse of `summary_message`.

    Raises:
        ValueError: it is no summary of a video under this plan.
    """
    fields = _fields(message, "summary", dict)
    source = _fields(fields, "source", dict)
    clips = [_pair(pair) for pair in _fields(fields, "num_clips", list)]
    filtered = _fields(fields, "filtered", dict)
    rates = (IMAGE_FPS,) if is_image else plan.fps
    if any(fps not in rates for fps, _ in clips):
        raise ValueError(f"numbers of clips at rates that are not of the plan: {clips}")
    return DecodeSummary(
        source=SourceInfo(
            width=_whole(source, "width"),
            height=_whole(source, "height"),
            fps=_number(source, "fps"),
            num_frames=_whole(source, "num_frames"),
            duration_seconds=_number(source, "duration_seconds"),
            codec=text(source, "codec"),
            pixel_format=text(source, "pixel_format"),
        ),
        num_clips=dict(clips),
        filtered={reason[:MAX_TEXT]: _whole(filtered, reason) for reason in filtered},
        decode_seconds=_number(fields, "decode_seconds"),
        num_dropped_frames=_whole(fields, "num_dropped_frames"),
    )


def text(fields: Message, name: str) -> str:
    """A text of a message, not longer than `MAX_TEXT`.

    Raises:
        ValueError: it is none.
    """
    value: str = _fields(fields, name, str)
    return value[:MAX_TEXT]


def _pixels(fields: Message) -> PixelSums:
    """Sums that some frames could have."""
    numbers = _fields(fields, "pixels", list)
    if len(numbers) != len(dataclasses.fields(PixelSums)):
        raise ValueError(f"{len(numbers)} sums of pixels")
    names = [item.name for item in dataclasses.fields(PixelSums)]
    sums = PixelSums(
        **{name: _whole({name: n}, name) for name, n in zip(names, numbers, strict=True)}
    )
    if (
        sums.luma > 255 * sums.values
        or sums.black > sums.values
        or sums.change > 255 * sums.changes
    ):
        raise ValueError(f"no frames have {sums}")
    return sums


def _pair(pair: Any) -> tuple[float, int]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"expected a pair, got {pair!r}")
    return _number({"fps": pair[0]}, "fps"), _whole({"clips": pair[1]}, "clips")


def _number(fields: Message, name: str) -> float:
    value: Any = fields.get(name)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _whole(fields: Message, name: str) -> int:
    value: Any = fields.get(name)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


def _fields(fields: Message, name: str, kind: type) -> Any:
    value: Any = fields.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name} must be a {kind.__name__}, got {value!r:.100}")
    return value
