"""The published protocol: which frames are compared, in which clips, and how means are taken."""

from __future__ import annotations

import doctest
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.video_files import VideoReader
from tokenizer import (
    ConfigError,
    DtypeError,
    MissingPart,
    ShapeError,
    build,
    evaluation,
    get_config,
)
from tokenizer.evaluation import (
    Judge,
    Mode,
    Quality,
    clip_groups,
    frame_step,
    mean_quality,
    pixels,
    whole_groups,
)
from tokenizer.metrics import codebook
from tokenizer.metrics.distortion import frames, psnr, ssim
from tokenizer.metrics.lpips import LPIPS
from tokenizer.model import VideoTokenizer

BUNNY = Path(__file__).parents[2] / "pipeline" / "demo_clips" / "bunny.mp4"
SMALL = {"ch": 8, "num_res_blocks": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models as small as these lose more to a second thread than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bunny() -> list[Tensor]:
    """40 pictures of a real clip, 64 x 96."""
    with VideoReader(BUNNY, height=64, width=96) as reader:
        pictures = [torch.from_numpy(picture) for _, picture in reader.frames(lambda _: None)]
    return pictures[:40]


def model(name: str = "demo", **overrides: object) -> VideoTokenizer:
    torch.manual_seed(0)
    built = build(get_config(name, **{**SMALL, **overrides}))
    return built.eval()


@pytest.mark.parametrize("module", [evaluation, codebook])
def test_examples_in_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("native", "fps", "step"),
    [(30, 30, 1), (29.97, 30, 1), (25, 30, 1), (60, 30, 2), (45, 30, 2), (75, 30, 2), (30, 3, 10)],
)
def test_the_step_between_frames_is_rounded_half_to_even(
    native: float, fps: float, step: int
) -> None:
    assert frame_step(native, fps) == step


@pytest.mark.parametrize("native", [15, 12, 1])
def test_a_video_of_half_the_rate_or_less_is_refused(native: float) -> None:
    with pytest.raises(ConfigError, match=rf"evaluate\.fps 30 is .* the {native} frames/s"):
        frame_step(native, 30)


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [(0, []), (1, [[0] * 17]), (17, [[*range(17)]]), (20, [[*range(17)], [17, 18] + [19] * 15])],
)
def test_a_last_clip_is_filled_with_its_last_frame(
    num_frames: int, expected: list[list[int]]
) -> None:
    assert list(clip_groups(range(num_frames), 17)) == expected


@pytest.mark.parametrize("num_frames", [0, 1, 16, 17, 32, 33, 100, 150])
def test_a_whole_video_is_cut_to_one_more_than_a_multiple_of_the_chunk(num_frames: int) -> None:
    kept = [item for group in whole_groups(range(num_frames), 16) for item in group]
    length = 16 * ((num_frames - 1) // 16) + 1 if num_frames > 16 else 0
    assert kept == list(range(length))


def shrunk(rows: np.ndarray, size: int) -> np.ndarray:
    """Along the first axis, by a triangle as wide as two steps, from the definition."""
    scale = len(rows) / size
    support = max(1.0, scale)
    out = []
    for at in range(size):
        centre = (at + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs((np.arange(len(rows)) + 0.5 - centre) / support))
        out.append(np.tensordot(weights / weights.sum(), rows, axes=1))
    return np.stack(out)


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (96, 64), (90, 161), (32, 47), (20, 30)])
def test_pixels_are_resized_by_a_wide_triangle_and_cut_at_the_centre(
    bunny: list[Tensor], rows: int, columns: int
) -> None:
    picture = bunny[7].repeat(2, 2, 1)[:rows, :columns]
    x = pixels(picture[None], 32, 32)
    short = min(rows, columns)
    size = (int(32 * rows / short), int(32 * columns / short))
    wanted = shrunk(picture.numpy() / 255.0, size[0])
    wanted = shrunk(wanted.swapaxes(0, 1), size[1]).swapaxes(0, 1)
    top, left = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
    wanted = (wanted[top : top + 32, left : left + 32] - 0.5) / 0.5
    assert x.shape == (1, 3, 1, 32, 32)
    np.testing.assert_allclose(x[0, :, 0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)


def test_a_crop_wider_than_the_picture_has_black_sides() -> None:
    x = pixels(torch.full((2, 40, 20, 3), 255, dtype=torch.uint8), 16, 27)
    black = (x[0, 0, 0] == -1).all(dim=0)
    assert black.nonzero().flatten().tolist() == [*range(5), *range(21, 27)]


@pytest.mark.parametrize(
    ("picture", "error"),
    [
        (torch.zeros(1, 8, 8, 3), DtypeError),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), ShapeError),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ShapeError),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), ShapeError),
    ],
)
def test_what_is_no_picture_is_refused(picture: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="frames"):
        pixels(picture, 8, 8)


def test_a_mean_counts_every_frame_once() -> None:
    short = Quality(num_frames=1, psnr=10, ssim=0.5, lpips=0.4)
    long = Quality(num_frames=3, psnr=30, ssim=0.9, lpips=0.0)
    both = mean_quality([short, long])
    assert (both.num_frames, both.psnr, both.lpips) == (4, 25, pytest.approx(0.1))
    assert mean_quality([mean_quality([short, long]), short]) == mean_quality([short, long, short])
    assert mean_quality([short, Quality(num_frames=1, psnr=1, ssim=1, lpips=None)]).lpips is None
    with pytest.raises(ShapeError, match="at least one frame"):
        mean_quality([])


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "fsq_4x8x8_noncausal",
        "fsq_4x8x8_32768_v1_1",
        "kl_4x8x8_4chn",
        "fsq_8x8x8_32768_v1_1",
    ],
)
def test_clips_get_the_quality_of_the_models_own_reconstruction(
    bunny: list[Tensor], name: str
) -> None:
    tokenizer = model(name, clip_frames=4 if name.endswith("noncausal") else 5)
    size = tokenizer.config.clip_frames
    judged = list(Judge(tokenizer, lpips=None).clips(iter(bunny[:12]), Mode.clips, 32, 32))
    assert len(judged) == math.ceil(12 / size)
    for clip, group in zip(judged, clip_groups(bunny[:12], size), strict=True):
        x = pixels(torch.stack(group), 32, 32)
        with torch.no_grad():
            a, b = frames(tokenizer(x)), frames(x)
        assert clip.quality.num_frames == size
        assert clip.quality.psnr == pytest.approx(float(psnr(a, b).mean()), abs=1e-4)
        assert clip.quality.ssim == pytest.approx(float(ssim(a, b).mean()), abs=1e-5)


@pytest.mark.parametrize("name", ["demo"])
def test_a_whole_video_gets_the_quality_of_one_pass(bunny: list[Tensor], name: str) -> None:
    tokenizer = model(name)
    judged = list(Judge(tokenizer, lpips=None).clips(iter(bunny), Mode.whole, 32, 32))
    assert [clip.quality.num_frames for clip in judged] == [17, 16]
    x = pixels(torch.stack(bunny[:33]), 32, 32)
    with torch.no_grad():
        x_hat = tokenizer(x)
    torch.testing.assert_close(
        torch.cat([clip.output for clip in judged], dim=2), x_hat.clamp(-1, 1), atol=1e-4,
        rtol=0,
    )  # fmt: skip
    torch.testing.assert_close(torch.cat([clip.source for clip in judged], dim=2), x)


@pytest.mark.parametrize("name", ["fsq_4x8x8_32768_v1_1", "fsq_8x8x8_32768_v1_1"])
def test_v1_1_videos_are_decoded_with_overlap_as_published(bunny: list[Tensor], name: str) -> None:
    tokenizer = model(name)
    judged = list(Judge(tokenizer, lpips=None).clips(iter(bunny), Mode.whole, 32, 32))
    x = pixels(torch.stack(bunny[:33]), 32, 32)
    latents = torch.cat([part.latents for part in tokenizer.stream_encode(x, 16)], dim=2)
    chunk = 16 // tokenizer.config.time_downsample_factor
    published = torch.cat(list(tokenizer.stream_decode(latents, chunk, "overlap")), dim=2)
    found = torch.cat([clip.output for clip in judged], dim=2)
    torch.testing.assert_close(found, published[:, :, -33:].clamp(-1, 1), atol=1e-5, rtol=0)


def test_a_short_video_has_no_piece_of_a_whole_one(bunny: list[Tensor]) -> None:
    assert list(Judge(model(), lpips=None).clips(iter(bunny[:16]), Mode.whole, 32, 32)) == []


def test_a_model_that_is_not_causal_refuses_whole_videos(bunny: list[Tensor]) -> None:
    judge = Judge(model("fsq_4x8x8_noncausal"), lpips=None)
    with pytest.raises(MissingPart, match="causal"):
        next(judge.clips(iter(bunny), Mode.whole, 32, 32))


def test_memory_does_not_hold_the_video(bunny: list[Tensor]) -> None:
    given = 0

    def pictures() -> Iterator[Tensor]:
        nonlocal given
        for picture in bunny:
            given += 1
            yield picture

    clips = Judge(model(), lpips=None).clips(pictures(), Mode.clips, 32, 32)
    next(clips)
    assert given == 17


def test_drawn_latents_are_the_same_every_time_and_not_the_mean(bunny: list[Tensor]) -> None:
    tokenizer = model("kl_4x8x8_4chn", clip_frames=5)

    def psnrs(is_sampled: bool) -> list[float]:
        judge = Judge(tokenizer, lpips=None, is_sampled=is_sampled)
        return [clip.quality.psnr for clip in judge.clips(iter(bunny[:5]), Mode.clips, 32, 32)]

    assert psnrs(True) == psnrs(True)
    assert psnrs(True) != psnrs(False)


def test_codes_are_counted_once_each(bunny: list[Tensor]) -> None:
    judge = Judge(model(), lpips=None)
    list(judge.clips(iter(bunny[:18]), Mode.clips, 32, 32))
    assert judge.index_counts is not None
    assert int(judge.index_counts.sum()) == 2 * 5 * 4 * 4
    judge.new_counts()
    assert int(judge.index_counts.sum()) == 0


def test_lpips_is_the_mean_over_frames(bunny: list[Tensor]) -> None:
    tokenizer, lpips = model(), LPIPS("alex")
    (clip,) = Judge(tokenizer, lpips=lpips).clips(iter(bunny[:17]), Mode.clips, 32, 32)
    a, b = frames(clip.output), frames(clip.source)
    assert clip.quality.lpips == pytest.approx(float(lpips(2 * a - 1, 2 * b - 1).mean()), abs=1e-6)
