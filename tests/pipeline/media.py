"""Videos drawn by code whose every frame shows its own number, so that a test can read it back."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

from pipeline.decode import decode_plan
from pipeline.records import Clip, ClipPlan, DecodeSummary, TailPolicy, VideoLimits

NUM_STRIPES = 8
SIZE = 64


def numbered(number: int, width: int = SIZE, height: int = SIZE) -> np.ndarray:
    """RGB picture of eight upright stripes, white for the bits that are set in the number."""
    bits = (number >> np.arange(NUM_STRIPES)) & 1
    columns = np.repeat(bits, -(-width // NUM_STRIPES))[:width] * 255
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).astype(np.uint8)


def read_number(picture: np.ndarray) -> int:
    """The number that a picture ``[H, W, 3]`` shows."""
    stripes = picture.mean(axis=(0, 2)).reshape(NUM_STRIPES, -1).mean(axis=1)
    return int(((stripes > 127) << np.arange(NUM_STRIPES)).sum())


def read_numbers(clip: Clip) -> list[int]:
    return [read_number(picture) for picture in clip.frames]


def encode(
    times: Sequence[int],
    *,
    time_base: Fraction = Fraction(1, 30),
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    draw: Callable[[int], np.ndarray] = numbered,
    frame_of: Callable[[int], av.VideoFrame] | None = None,
    set_up: Callable[[av.VideoStream], None] = lambda stream: None,
    change: Callable[[list[av.Packet]], list[av.Packet]] = lambda packets: packets,
    with_audio_seconds: float = 0.0,
) -> bytes:
    """Frame k is shown at ``times[k]`` units of ``time_base``."""
    frames = [
        frame_of(k) if frame_of else av.VideoFrame.from_ndarray(draw(k)).reformat(format=pix_fmt)
        for k in range(len(times))
    ]
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=round(1 / time_base), options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        set_up(stream)
        audio = output.add_stream("pcm_s16le", rate=8000) if with_audio_seconds else None
        packets = []
        for time, frame in zip(times, frames, strict=True):
            frame.pts, frame.time_base = time, time_base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in change(packets):
            output.mux(packet)
        if audio is not None:
            output.mux(_silence(audio, with_audio_seconds))
    return file.getvalue()


def _silence(stream: av.AudioStream, seconds: float) -> list[av.Packet]:
    packets = []
    for second in range(round(seconds)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, second * 8000, Fraction(1, 8000)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def constant_yuv(
    y: int, u: int, v: int, *, width: int = SIZE, height: int = SIZE, matrix: int = 2, full: int = 0
) -> av.VideoFrame:
    """One colour, yuv444p, with these tags (2 and 0: untagged)."""
    frame = av.VideoFrame(width, height, "yuv444p")
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, full
    return frame


def plan_of(*fps: float, clip_frames: int = 4, **changes: object) -> ClipPlan:
    fields: dict[str, object] = {
        "stride_frames": clip_frames,
        "max_clips_per_video": None,
        "tail": TailPolicy.drop,
        "buckets": ((SIZE, SIZE),),
    }
    return ClipPlan(fps=fps, clip_frames=clip_frames, **fields | changes)  # type: ignore[arg-type]


def decoded(
    data: bytes, plan: ClipPlan, limits: VideoLimits | None = None
) -> tuple[list[Clip], DecodeSummary]:
    *clips, summary = decode_plan(data, plan, limits or VideoLimits())
    assert isinstance(summary, DecodeSummary)
    return clips, summary


def expected_picks(seconds: Sequence[float], fps: float, num_ticks: int) -> list[int]:
    """The rule, the slow way: the last frame on screen at each tick (1 ms early is fine)."""
    relative = np.asarray(seconds) - min(seconds)
    return [
        int(np.flatnonzero(relative <= tick / fps + 0.001 + 1e-9)[-1]) for tick in range(num_ticks)
    ]
