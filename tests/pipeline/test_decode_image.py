"""Images to clips of one frame: formats, orientation, transparency, depth, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.decode_image import decode_image
from pipeline.errors import VideoError
from pipeline.exif import exif_orientation
from pipeline.gif import is_whole_gif
from pipeline.pixel_stats import pixel_columns
from pipeline.records import IMAGE_FPS, Clip, DecodeSummary, TimeSpan, VideoLimits
from pipeline.transforms import Orientation
from tests.pipeline import media, pictures

ROW_ZERO = {  # of EXIF 2.3: where row 0 and column 0 of what is stored are seen
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def decoded(data: bytes, limits: VideoLimits | None = None, **plan) -> tuple[Clip, DecodeSummary]:
    (_, clip), (_, summary) = decode_image(
        data, (media.plan_of(8.0, **plan),), limits or VideoLimits()
    )
    assert isinstance(clip, Clip)
    assert isinstance(summary, DecodeSummary)
    return clip, summary


def pixels(data: bytes, **plan) -> np.ndarray:
    return decoded(data, **plan)[0].frames[0].astype(int)


@pytest.mark.parametrize("encode", [pictures.jpeg, pictures.image, pictures.webp])
def test_every_format_gives_one_clip_of_one_frame_with_its_colours(encode) -> None:
    picture = pictures.corners()
    clip, summary = decoded(encode(picture))
    assert clip.frames.shape == (1, 64, 64, 3)
    assert (clip.fps, clip.clip_index, clip.frame_seconds) == (IMAGE_FPS, 0, (0.0,))
    assert (clip.start_seconds, clip.end_seconds, clip.span_index) == (0.0, 0.0, None)
    assert summary.num_clips == {IMAGE_FPS: 1}
    assert (summary.source.width, summary.source.height, summary.source.fps) == (64, 64, 0.0)
    inner = np.abs(clip.frames[0].astype(int) - picture)[8:24, 8:24]
    assert inner.max() <= 3


def test_a_large_webp_is_of_the_colour_matrix_that_webp_has_at_every_size() -> None:
    green = np.zeros((800, 800, 3), np.uint8) + np.array([0, 200, 40], np.uint8)
    found = pixels(pictures.image(green, "libwebp", "yuv420p", quality="95"))
    assert np.abs(found - [0, 200, 40]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("of", ["jpg", "png"])
def test_exif_turns_the_picture(orientation: int, of: str) -> None:
    stored = pictures.corners(64, 128)
    data = (
        pictures.turned_jpeg(pictures.jpeg(stored), orientation)
        if of == "jpg"
        else pictures.turned_png(pictures.image(stored), orientation)
    )
    row_zero, column_zero = ROW_ZERO[orientation]
    shown = stored.swapaxes(0, 1) if row_zero in ("left", "right") else stored
    shown = shown[::-1] if "bottom" in (row_zero, column_zero) else shown
    shown = shown[:, ::-1] if "right" in (row_zero, column_zero) else shown
    bucket = shown.shape[:2]
    clip, summary = decoded(data, buckets=(bucket,))
    assert (summary.source.height, summary.source.width) == bucket
    assert np.abs(clip.frames[0].astype(int) - shown)[4:20, 4:20].max() <= 3
    assert np.abs(clip.frames[0].astype(int) - shown)[-20:-4, -20:-4].max() <= 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\x00\x00",
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 40,
        pictures.turned_jpeg(b"\xff\xd8", 99),
        b"\xff\xd8\xff\xe1\x00\x12Exif\0\0II*\0\xff\xff\xff\xff",
        b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff",
    ],
)
def test_exif_that_cannot_be_followed_turns_nothing(data: bytes) -> None:
    assert exif_orientation(data) == Orientation()


@pytest.mark.parametrize("encode", [pictures.image, pictures.webp])
def test_what_is_transparent_is_laid_on_white(encode) -> None:
    picture = np.dstack([pictures.corners(), np.full((64, 64), 255, np.uint8)])
    picture[:32, :32, 3] = 0
    picture[:32, 32:, 3] = 128
    data = pictures.image(picture, "png", "rgba") if encode is pictures.image else encode(picture)
    found = pixels(data)
    assert np.abs(found[4:28, 4:28] - 255).max() <= 1
    assert np.abs(found[4:28, 36:60] - [127, 253, 127]).max() <= 2
    assert np.abs(found[36:60, 4:28] - [0, 0, 250]).max() <= 1


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    indices = np.zeros((64, 64), int)
    indices[:, 32:] = 1
    data = pictures.palette_png(np.array([[10, 20, 30], [200, 0, 0]]), [255, 0], indices)
    found = pixels(data)
    assert np.abs(found[8:-8, 4:28] - [10, 20, 30]).max() <= 1
    assert np.abs(found[8:-8, 36:60] - 255).max() <= 1


@pytest.mark.parametrize("pix_fmt", ["gray", "gray16be", "ya8"])
def test_grey_stays_the_grey_that_it_is(pix_fmt: str) -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 64, 3))
    found = pixels(pictures.image(np.ascontiguousarray(ramp), "png", pix_fmt))
    assert np.abs(found - ramp).max() <= 2


def test_sixteen_bits_become_eight() -> None:
    found = pixels(pictures.image(pictures.corners(), "png", "rgb48be"))
    assert np.abs(found - pictures.corners())[4:28, 4:28].max() <= 1


def test_the_first_picture_of_an_animation_counts() -> None:
    assert pixels(pictures.moving(5)).max() <= 4
    assert pixels(pictures.moving(5, "apng", "apng", "rgb24")).max() <= 4


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_beside_the_frames_of_a_video_turns_them(orientation: int) -> None:
    data = pictures.turned_jpeg(pictures.jpeg(pictures.corners()), orientation)
    plan = media.plan_of(8.0, clip_frames=1)
    (clip,), _ = media.decoded(data, plan)  # as one reads it whose video_extensions have jpg
    assert np.abs(clip.frames[0].astype(int) - pixels(data)).max() <= 1


def test_an_image_with_spans_belongs_to_the_first() -> None:
    spans = (TimeSpan(0.0), TimeSpan(1.0, 2.0))
    data = pictures.jpeg(pictures.corners())
    _, clip = next(decode_image(data, (media.plan_of(8.0),), VideoLimits(), spans=spans))
    assert clip.span_index == 0


@pytest.mark.parametrize(("shade", "black"), [(0, 1.0), (200, 0.0)])
def test_an_image_says_how_bright_and_how_black_it_is(shade: int, black: float) -> None:
    clip, _ = decoded(pictures.image(np.full((64, 64, 3), shade, np.uint8)))
    assert clip.pixels is not None
    found = pixel_columns([clip.pixels])
    assert found == {"luma_mean": shade, "frame_difference": None, "black_fraction": black}


def gif() -> bytes:
    return pictures.moving(3)


def test_a_gif_is_whole_when_its_trailer_is_there_whatever_stands_behind_it() -> None:
    data = gif()
    assert is_whole_gif(data)
    assert is_whole_gif(data + b"\0\0 and more")
    whole = [size for size in range(len(data)) if is_whole_gif(data[:size])]
    assert whole == [], "no beginning of it is"
    assert not is_whole_gif(data[: len(data) // 2] + bytes(len(data))), "zeros are no rest"
    assert pixels(data).max() <= 4


def large() -> bytes:
    return pictures.image(np.zeros((300, 300, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (b"", {}, "empty"),
        (b"no picture at all", {}, "not_a_video"),
        (large(), {"pixels": 89_999}, "too_many_pixels"),
        (large(), {"video_bytes": 100}, "too_large"),
        (pictures.jpeg(pictures.corners())[:-300], {}, "decode_error"),
        (pictures.image(pictures.corners())[:-40], {}, "decode_error"),
        (gif()[: len(gif()) // 2], {}, "truncated"),
        (gif()[:-1], {}, "truncated"),
        (media.encode([0, 1, 2]), {}, "not_an_image"),
        (pictures.moving(3, "webp", "libwebp_anim", "bgra"), {}, "not_an_image"),
    ],
)
def test_what_is_refused(data: bytes, limits: dict, reason: str) -> None:
    with pytest.raises(VideoError) as caught:
        decoded(data, VideoLimits(**limits))
    assert caught.value.reason == reason
