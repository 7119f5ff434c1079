"""The decoder child of training: a video and its draws come in, clips of fixed length go out.

It is `pipeline.decode_child` with another choice of frames. All clips of a video come out of one
pass, which ends with the last picture that a clip wants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.decode import Item, NewFrames
from pipeline.decode_child import main
from pipeline.decode_pictures import Pictures, Work, described, scanned
from pipeline.records import (
    Clip,
    ClipPlan,
    DecodeSummary,
    SourceInfo,
    TimeSpan,
    VideoLimits,
    chosen_outputs,
)
from pipeline.scaling import RgbFrame, RgbScaler
from pipeline.scan import DEFAULT_RATE, Announced, open_video
from pipeline.training.draws import Draw, split_draws
from pipeline.training.frames import SlotPicker, clip_slots, num_slots, with_ends
from pipeline.transforms import center_crop_offset, drawn_offset


def decode_drawn(
    job: bytes,
    plans: Sequence[ClipPlan],
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
    new_frames: NewFrames | None = None,
    spans: Sequence[TimeSpan] | None = None,
    outputs: Sequence[int] | None = None,
) -> Iterator[Item]:
    """The drawn clips of a video in the order of the draws, then one ``DecodeSummary``.

    Args:
        job: of ``pipeline.training.draws.with_draws``.
        plans: one; its ``fps`` holds all rates that are drawn, T and the one size of clips count.
        limits: bounds on the video.
        on_progress: as in `pipeline.decode.decode_clips`.
        new_frames: as there.
        spans: None; the draws say where clips lie.
        outputs: the one output, or None.

    Raises:
        VideoError: with one of `pipeline.decode.REASONS`.
    """
    assert spans is None
    [output], [plan] = chosen_outputs(outputs, len(plans)), plans
    drawn, data = split_draws(job)
    work = Work(limits)
    announced = scanned(data, limits, on_progress)
    scaler = RgbScaler(plan, announced.pixel_aspect, limits)
    pickers = [_picker(one, announced, plan, limits) for one in drawn]
    source: SourceInfo | None = None

    def note_source(stream: VideoStream, frame: VideoFrame) -> None:
        nonlocal source
        source = described(announced, scaler.geometry(frame), stream, frame)

    pictures = Pictures(announced, limits, work, on_progress, note_source)
    with open_video(data, limits) as container:
        for frame, until in with_ends(pictures.shown(container)):
            for picker in pickers:
                picker.show(frame, until=until)
            if all(picker.is_done for picker in pickers):
                break
    counts: Counter[float] = Counter()
    for one, picker in zip(drawn, pickers, strict=True):
        yield output, _clip(one, picker, counts[one.fps], new_frames)
        counts[one.fps] += 1
    assert source is not None
    yield (
        output,
        DecodeSummary(
            source=replace(source, num_frames=pictures.num_frames),
            num_clips=dict(counts),
            decode_seconds=work.cpu_seconds,
            num_dropped_frames=pictures.num_dropped,
        ),
    )


def _picker(
    draw: Draw, announced: Announced, plan: ClipPlan, limits: VideoLimits
) -> SlotPicker[VideoFrame, RgbFrame]:
    rate = announced.mean_rate or DEFAULT_RATE
    slots = clip_slots(
        num_slots(announced.duration_seconds, announced.mean_rate),
        float(rate),
        plan.clip_frames,
        draw.fps,
        draw.start,
    )
    # The picture is scaled to a larger square, of which the clip is a part.
    sizes = [
        (round(height * draw.zoom), round(width * draw.zoom)) for height, width in plan.buckets
    ]
    scaler = RgbScaler(replace(plan, buckets=tuple(sizes)), announced.pixel_aspect, limits)
    return SlotPicker(slots, rate, lambda frame: _rgb(frame, draw, scaler, plan.buckets[0]))


def _rgb(frame: VideoFrame, draw: Draw, scaler: RgbScaler, size: tuple[int, int]) -> RgbFrame:
    picture = scaler.rgb(frame, across=draw.across, down=draw.down)
    top, left = (
        drawn_offset(whole, part, chance, centre=center_crop_offset(whole, part))
        for whole, part, chance in zip(picture.shape, size, (draw.down, draw.across), strict=False)
    )
    picture = picture[top : top + size[0], left : left + size[1]]
    return picture[:, ::-1] if draw.mirrored else picture


def _clip(
    draw: Draw,
    picker: SlotPicker[VideoFrame, RgbFrame],
    index: int,
    new_frames: NewFrames | None,
) -> Clip:
    shape = (len(picker.frames), *picker.frames[0].shape)
    start = float(picker.starts_at)
    return Clip(
        fps=draw.fps,
        clip_index=index,
        num_real_frames=len(picker.frames),
        start_seconds=start,
        end_seconds=start + len(picker.frames) / draw.fps,
        frame_seconds=(),
        frames=np.stack(picker.frames, out=new_frames(shape) if new_frames else None),
    )


if __name__ == "__main__":
    main(decode_drawn)
