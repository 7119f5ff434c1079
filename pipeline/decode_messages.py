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

from pipeline.errors import VideoError
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
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        # A message goes out whole or not at all, and the system's default is just too small for
        # 4,096 spans. It grants twice what is asked for, up to twice net.core.wmem_max.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE_BYTES)
    return ends


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


def settings_message(plans: Sequence[ClipPlan], limits: VideoLimits, num_slots: int) -> Message:
    """The first message to a child."""
    fields = [
        dataclasses.asdict(plan)
        | {name: getattr(plan, name).name for name in ("tail", "mode", "variant")}
        for plan in plans
    ]
    return {"plans": fields, "limits": dataclasses.asdict(limits), "num_slots": num_slots}


def read_settings(message: Message) -> tuple[tuple[ClipPlan, ...], VideoLimits, int]:
    """The inverse of `settings_message`; read by the child, which trusts its parent."""
    plans = tuple(_plan(fields) for fields in message["plans"])
    return plans, VideoLimits(**message["limits"]), message["num_slots"]


def _plan(fields: Message) -> ClipPlan:
    read = {
        "fps": tuple(fields["fps"]),
        "mode": SamplingMode[fields["mode"]],
        "tail": TailPolicy[fields["tail"]],
        "variant": Variant[fields["variant"]],
        "buckets": tuple((height, width) for height, width in fields["buckets"]),
    }
    return ClipPlan(**fields | read)


def video_message(
    num_bytes: int,
    memory_bytes: int,
    spans: Sequence[TimeSpan] | None,
    *,
    is_image: bool = False,
    outputs: Sequence[int] = (0,),
) -> Message:
    """Work for a child: how long the video in its memory file is, what clips lie within, for whom.

    Args:
        num_bytes: of the video.
        memory_bytes: that it may take.
        spans: of the video.
        is_image: it is an image.
        outputs: places of the plans that are wanted.
    """
    pairs = None if spans is None else [(span.start_seconds, span.end_seconds) for span in spans]
    return {
        "kind": "image" if is_image else "video",
        "num_bytes": num_bytes,
        "memory_bytes": memory_bytes,
        "spans": pairs,
        "outputs": list(outputs),
    }


def read_spans(message: Message) -> tuple[TimeSpan, ...] | None:
    """The spans of a `video_message`; read by the child, which trusts its parent."""
    pairs = message["spans"]
    return None if pairs is None else tuple(TimeSpan(start, end) for start, end in pairs)


def clip_message(clip: Clip, slot: int, output: int = 0) -> Message:
    """A clip of an output without its pixels, which lie in the slot."""
    fields = {f.name: getattr(clip, f.name) for f in dataclasses.fields(clip) if f.name != "frames"}
    if clip.pixels is not None:
        fields["pixels"] = dataclasses.astuple(clip.pixels)
    place = {"output": output, "slot": slot, "shape": clip.frames.shape}
    return {"kind": "clip", **place, "clip": fields}


def read_output(message: Message, open_outputs: Sequence[int]) -> int:
    """The output that a message is for.

    Raises:
        ValueError: it is not wanted, or has ended.
    """
    output = _whole(message, "output")
    if output not in open_outputs:
        raise ValueError(f"output {output} is not one of those that are open: {open_outputs}")
    return output


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


def end_message(end: DecodeSummary | VideoError, output: int = 0) -> Message:
    """How an output ended; numbers of clips go as pairs, since JSON has no numeric keys."""
    if isinstance(end, VideoError):
        words = {"reason": end.reason, "message": end.message}
        return {"kind": "failed", "output": output, **words}
    return {"kind": "decoded", "output": output, "summary": _summary_fields(end)}


def _summary_fields(summary: DecodeSummary) -> Message:
    return dataclasses.asdict(summary) | {"num_clips": list(summary.num_clips.items())}


def read_summary(message: Message, plan: ClipPlan, *, is_image: bool = False) -> DecodeSummary:
    """The summary of an `end_message`.

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
        filtered={_printable(reason): _whole(filtered, reason) for reason in filtered},
        decode_seconds=_number(fields, "decode_seconds"),
        num_dropped_frames=_whole(fields, "num_dropped_frames"),
    )


def text(fields: Message, name: str) -> str:
    """A text of a message, not longer than `MAX_TEXT`.

    Raises:
        ValueError: it is none.
    """
    value: str = _fields(fields, name, str)
    return _printable(value)


def _printable(value: str) -> str:
    """At most `MAX_TEXT` of a text, as UTF-8: JSON can spell lone surrogates."""
    return value[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()


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
