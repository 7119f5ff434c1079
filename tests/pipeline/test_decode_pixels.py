"""From decoded pictures to RGB: formats, colours, geometry, and parity with the reference."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation

from pipeline.records import VideoLimits
from pipeline.scaling import RgbScaler
from tests.pipeline.media import (
    SIZE,
    constant_yuv,
    decoded,
    encode,
    numbered,
    plan_of,
    read_numbers,
)

KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
DEMO_CLIPS = Path(__file__).parents[2] / "pipeline" / "demo_clips"


def rgb_by_formula(y, u, v, *, matrix, full):
    """ITU-R BT.601/709/2020: Y'CbCr to R'G'B', 8 bits."""
    kr, kb = KR_KB[matrix]
    luma = y / 255 if full else (y - 16) / 219
    cb, cr = ((c - 128) / (255 if full else 224) for c in (u, v))
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.array([red, green, blue]) * 255, 0, 255)


@pytest.mark.parametrize(
    ("tag", "full", "height", "matrix"),
    [
        (2, 0, 480, 5),  # untagged: BT.601, limited
        (2, 0, 720, 1),  # untagged: BT.709 from 720 rows
        (1, 1, 480, 1),  # a tag wins over the size
        (5, 1, 720, 5),
        (6, 1, 720, 5),
        (7, 1, 480, 7),
        (9, 1, 480, 9),
        (1, 2, 480, 1),  # full range
        (2, 2, 480, 5),
    ],
)
def test_colours_follow_tags_and_size(tag, full, height, matrix):
    yuv = (120, 90, 170)
    frame = constant_yuv(*yuv, height=height, matrix=tag, full=full)
    pixels = RgbScaler(plan_of(8), None, VideoLimits()).rgb(frame)
    expected = rgb_by_formula(*yuv, matrix=matrix, full=full == 2)
    assert np.abs(pixels - expected).max() <= 1.5
    assert frame.colorspace == tag  # the decoder's frame is left alone


@pytest.mark.parametrize(("tag", "matrix"), [(1, 1), (2, 5)])
def test_colours_survive_a_container(tag, matrix):
    def set_up(stream):
        stream.codec_context.colorspace = tag
        stream.codec_context.color_range = 1

    data = encode(
        range(4),
        container="matroska",
        codec="ffv1",
        pix_fmt="yuv444p",
        frame_of=lambda k: constant_yuv(120, 90, 170, matrix=tag, full=1),
        set_up=set_up,
    )
    pixels = decoded(data, plan_of(30))[0][0].frames
    assert np.abs(pixels - rgb_by_formula(120, 90, 170, matrix=matrix, full=False)).max() <= 1.5


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "container"),
    [
        ("yuv420p10le", "libx264", "mp4"),
        ("yuv444p", "libx264", "mp4"),
        ("yuv422p", "ffv1", "matroska"),
        ("gray", "ffv1", "matroska"),
        ("gray16le", "ffv1", "matroska"),
        ("yuva420p", "ffv1", "matroska"),
        ("rgb24", "qtrle", "mov"),
        ("rgb24", "png", "mov"),
        ("bgr0", "ffv1", "matroska"),
        ("yuvj420p", "mjpeg", "avi"),
    ],
)
def test_pixel_formats(pix_fmt, codec, container):
    data = encode(range(12), pix_fmt=pix_fmt, codec=codec, container=container)
    clips, _ = decoded(data, plan_of(30))
    assert [number for clip in clips for number in read_numbers(clip)] == list(range(12))
    assert clips[0].frames.min() <= 6
    assert clips[0].frames.max() >= 249


def test_palette():
    data = encode(
        range(0, 40, 4), codec="gif", container="gif", pix_fmt="rgb8", time_base=Fraction(1, 100)
    )
    clips, summary = decoded(data, plan_of(25))
    assert [number for clip in clips for number in read_numbers(clip)] == list(range(8))
    assert summary.source.codec == "gif"


def corner(_):
    """White in the upper left quarter."""
    picture = np.zeros((48, SIZE, 3), np.uint8)
    picture[:24, :32] = 255
    return picture


@pytest.mark.parametrize(
    ("turn", "flips", "white"),
    [
        (0, (False, False), (0, 0)),
        (90, (False, False), (1, 0)),  # counterclockwise: upper left goes to lower left
        (180, (False, False), (1, 1)),
        (-90, (False, False), (0, 1)),
        (0, (True, False), (0, 1)),
    ],
)
def test_rotation_tags_are_applied(turn, flips, white):
    data = encode(
        range(4), draw=corner, set_up=lambda stream: stream.set_display_rotation(turn, *flips)
    )
    clips, summary = decoded(data, plan_of(30, buckets=((48, 48),)))
    quarters = clips[0].frames[0].reshape(2, 24, 2, 24, 3).mean(axis=(1, 3, 4))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == white
    size = (summary.source.width, summary.source.height)
    assert size == ((48, 64) if turn in (90, -90) else (64, 48))


def test_pixel_aspect_is_applied():
    def set_up(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    data = encode(range(4), draw=lambda k: numbered(k, 64, 128), set_up=set_up)
    clips, summary = decoded(data, plan_of(30, buckets=((128, 128),)))
    assert (summary.source.width, summary.source.height) == (128, 128)
    assert read_numbers(clips[0]) == [0, 1, 2, 3]


def test_size_may_change_in_mid_stream():
    def jpeg(number, size):
        return encode(
            [0],
            container="mjpeg",
            codec="mjpeg",
            pix_fmt="yuvj420p",
            draw=lambda _: numbered(number, *size),
        )

    data = jpeg(1, (64, 64)) + jpeg(2, (128, 96)) + jpeg(3, (64, 64)) + jpeg(4, (48, 80))
    clips, _ = decoded(data, plan_of(25, buckets=((48, 48),)))
    assert clips[0].frames.shape == (4, 48, 48, 3)
    assert clips[0].frames[0].std() > 50


def reference(frame, size):
    """Float RGB in full size, antialiased bilinear to the short side, centre crop; 0 to 255."""
    matrix, color_range = RgbScaler._source_colours(frame)
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=matrix,
        src_color_range=color_range,
        dst_color_range=2,
        # Without these the scaler's fast path is 1.2 of 255 off on its own.
        interpolation=Interpolation.BILINEAR
        | Interpolation.ACCURATE_RND
        | Interpolation.FULL_CHR_H_INT,
    ).to_ndarray()
    height, width = rgb.shape[:2]
    short = min(width, height)
    scaled = (int(size * height / short), int(size * width / short))
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    x = torch.nn.functional.interpolate(
        x, scaled, mode="bilinear", antialias=True, align_corners=False
    )
    top, left = (round((s - size) / 2) for s in scaled)
    return x[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("name", ["bunny.mp4", "cup_portrait.mp4", "cockatoo.mp4", "city.mp4"])
def test_pixels_match_the_reference_preprocessing(name, size):
    """Measured on four clips: mean difference 0.14 to 0.56 of 255, PSNR 48.6 to 60 dB."""
    with av.open(io.BytesIO((DEMO_CLIPS / name).read_bytes())) as container:
        frame = next(container.decode(video=0))
        ours = RgbScaler(plan_of(8, buckets=((size, size),)), None, VideoLimits()).rgb(frame)
        difference = ours.astype(np.float32) - reference(frame, size)
    psnr = 10 * np.log10(255**2 / np.square(difference).mean())

    assert np.abs(difference).mean() < 0.7
    assert psnr > 47.5
    assert abs(difference.mean()) < 0.3
