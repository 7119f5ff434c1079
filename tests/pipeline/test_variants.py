"""``sampling.variant``: mirrored and cropped views of the same frames."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.decode import decode_plan
from pipeline.decode_image import decode_image
from pipeline.records import Clip, ClipPlan, SamplingMode, Variant, VideoLimits
from pipeline.resolve import identity
from tests.pipeline import runs
from tests.pipeline.media import encode, plan_of
from tests.pipeline.pictures import image as encoded

SIZE = 32
LIMITS = VideoLimits()
Frames = npt.NDArray[np.uint8]


def draw(width: int, height: int) -> Frames:
    """No two columns and no two rows are alike."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    channels = (across * 255 // width, down * 255 // height, across ^ down)
    return np.stack(channels, axis=-1).astype(np.uint8)


WIDE = encode(range(40), draw=lambda k: np.roll(draw(96, 48), 2 * k, axis=1))
TALL = encode(range(40), draw=lambda k: np.roll(draw(48, 96), 2 * k, axis=0))
SQUARE = encode(range(40), draw=lambda k: np.roll(draw(64, 64), 2 * k, axis=0))


def plan(variant: Variant, **changes: object) -> ClipPlan:
    return plan_of(8.0, buckets=((SIZE, SIZE),), variant=variant, **changes)


def frames(video: bytes, variant: Variant, **changes: object) -> Frames:
    clips = decode_plan(video, plan(variant, **changes), LIMITS)
    return np.concatenate([clip.frames for clip in clips if isinstance(clip, Clip)])


@pytest.mark.parametrize(
    ("straight", "flipped"),
    [
        (Variant.none, Variant.flip),
        (Variant.crop_start, Variant.flip_crop_start),
        (Variant.crop_end, Variant.flip_crop_end),
    ],
)
@pytest.mark.parametrize("video", [WIDE, TALL, SQUARE], ids=["wide", "tall", "square"])
def test_a_flip_is_the_mirror_image(video: bytes, straight: Variant, flipped: Variant) -> None:
    assert np.array_equal(frames(video, flipped), frames(video, straight)[:, :, ::-1])


@pytest.mark.parametrize(("video", "axis"), [(WIDE, 2), (TALL, 1)], ids=["wide", "tall"])
def test_crops_are_windows_of_the_whole_picture(video: bytes, axis: int) -> None:
    size = [SIZE, SIZE]
    size[axis - 1] = 2 * SIZE
    whole = np.concatenate([
        clip.frames
        for clip in decode_plan(video, plan_of(8.0, buckets=(tuple(size),)), LIMITS)  # type: ignore[arg-type]
        if isinstance(clip, Clip)
    ])  # fmt: skip
    first, last = np.split(whole, 2, axis=axis)
    assert np.array_equal(frames(video, Variant.crop_start), first)
    assert np.array_equal(frames(video, Variant.crop_end), last)
    middle = np.take(whole, range(SIZE // 2, SIZE // 2 + SIZE), axis=axis)
    assert np.array_equal(frames(video, Variant.none), middle)


def test_of_a_square_picture_all_crops_are_the_same() -> None:
    found = [frames(SQUARE, one) for one in (Variant.none, Variant.crop_start, Variant.crop_end)]
    assert all(np.array_equal(one, other) for one, other in itertools.pairwise(found))


def test_whole_videos_are_mirrored_too() -> None:
    straight = frames(WIDE, Variant.none, mode=SamplingMode.whole)
    assert np.array_equal(frames(WIDE, Variant.flip, mode=SamplingMode.whole), straight[:, :, ::-1])


def test_images_are_mirrored_and_cropped_too() -> None:
    png = encoded(draw(96, 48))

    def image(variant: Variant) -> Frames:
        found = (one for _, one in decode_image(png, [plan(variant)], LIMITS))
        return next(one.frames for one in found if isinstance(one, Clip))

    assert np.array_equal(image(Variant.flip), image(Variant.none)[:, :, ::-1])
    assert np.array_equal(image(Variant.flip_crop_end), image(Variant.crop_end)[:, :, ::-1])
    assert not np.array_equal(image(Variant.crop_start), image(Variant.crop_end))


def test_only_other_views_change_the_fingerprint() -> None:
    base = ("+dataset=demo", "+tokenizer=demo", "cluster=inline")
    plain, flip, end = (
        identity(runs.config(*base, f"sampling.variant={name}"), "digest")
        for name in ("none", "flip", "crop_end")
    )
    assert "variant" not in plain.material["sampling"]
    assert plain.material["transform"]["crop"] == flip.material["transform"]["crop"] == "centre"
    assert flip.material["sampling"]["variant"] == "flip"
    assert end.material["transform"]["crop"] == "end"
    assert len({one.fingerprint for one in (plain, flip, end)}) == 3
