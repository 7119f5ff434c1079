"""From a video to tokens and back in a few lines."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipeline.dataset import TokenDataset
from pipeline.errors import ConfigError, VideoError
from pipeline.notebook import Picture, film_strip, read_clips, reconstruct, token_map, tokenise
from tests.pipeline import runs
from tokenizer import VideoTokenizer, get_config, load_tokenizer

CLIPS = Path(__file__).parents[2] / "pipeline/demo_clips"


@pytest.fixture(scope="module")
def model() -> VideoTokenizer:
    return load_tokenizer("demo", device="cpu")


def test_clips_come_rate_by_rate_at_the_times_of_the_source() -> None:
    clips = read_clips(CLIPS / "cockatoo.mp4", get_config("demo"), fps=[8, 3])
    assert [(clip.fps, clip.clip_index) for clip in clips] == [(8, 0), (8, 1), (8, 2), (3, 0)]
    for clip in clips:
        assert clip.frames.shape == (17, 128, 128, 3)
        assert clip.frames.dtype == np.uint8
        steps = np.diff(clip.frame_seconds)
        assert steps == pytest.approx(1 / clip.fps, abs=0.051)  # 20 fps: half a frame and a bit
    assert clips[2].start_seconds == pytest.approx(2 * 17 / 8)


def test_the_tokens_are_those_of_a_run(model: VideoTokenizer, tmp_path: Path) -> None:
    content = (CLIPS / "city.mp4").read_bytes()
    (tmp_path / "in.tar").write_bytes(runs.tar_bytes([("city.mp4", content)]))
    words = ("+dataset=tars", f"dataset.shards={tmp_path}/in.tar", "+tokenizer=demo")
    out = f"output.root={tmp_path}/out"
    assert runs.execute_here(*words, out, "encoder.threads=1") == 0
    stored = {
        clip_id: tokens
        for batch in TokenDataset(str(tmp_path / "out"), batch_size=1)
        for clip_id, tokens in zip(batch["clip_id"], batch["tokens"], strict=True)
    }
    clips = read_clips(CLIPS / "city.mp4", model.config, fps=[8])
    indices = tokenise(model, clips).indices
    assert indices is not None
    assert len(stored) == len(clips) == 2
    for clip, tokens in zip(clips, indices, strict=True):
        of_run = next(t for name, t in stored.items() if name.endswith(f"#{clip.clip_index}"))
        agreement = (of_run == tokens).float().mean()  # batches of other sizes round differently
        assert agreement > 0.999


def test_a_reconstruction_has_the_frames_of_its_clip(model: VideoTokenizer) -> None:
    clips = read_clips(CLIPS / "city.mp4", model.config, max_clips=1)
    video = reconstruct(model, tokenise(model, clips))
    assert video.shape == (1, 17, 128, 128, 3)
    assert video.dtype == np.uint8
    expected = model.decode(model.encode_uint8(torch.from_numpy(clips[0].frames[None])).latents)
    middle = expected.detach().clamp(-1, 1)[0, :, 8].permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert np.abs(video[0, 8] - middle).max() <= 0.51


def read_png(picture: Picture) -> np.ndarray:
    with av.open(io.BytesIO(picture.png())) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_a_picture_is_a_png_that_others_read(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    picture = Picture(dice.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    assert (read_png(picture) == picture.pixels).all()
    assert picture._repr_png_() == picture.png()
    picture.save(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == picture.png()


def test_a_token_map_shows_an_index_by_the_same_colour_everywhere() -> None:
    indices = torch.tensor([[[5, 6], [7, 5]], [[7, 7], [6, 1000]]])
    pixels = token_map(indices, pixels=3).pixels
    assert pixels.shape == (2 * 3, 2 * 2 * 3 + 2, 3)
    at = {(t, y, x): pixels[3 * y, 8 * t + 3 * x] for t in (0, 1) for y in (0, 1) for x in (0, 1)}
    assert (at[0, 0, 0] == at[0, 1, 1]).all()
    assert (at[0, 1, 0] == at[1, 0, 0]).all()
    different = {tuple(at[place]) for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 1))}
    assert len(different) == 4
    assert (pixels[:6, 6:8] == 255).all()  # the gap


def test_a_map_of_latents_spans_the_colours() -> None:
    latents = torch.linspace(-1, 1, 4 * 2 * 8 * 8).reshape(4, 2, 8, 8)
    pixels = token_map(latents, pixels=1).pixels
    assert pixels.shape == (8, 18, 3)
    assert pixels[0, 0].max() == 0
    assert pixels[7, 17].min() == 255
    assert token_map(latents[:1], pixels=1).pixels.shape == (8, 18, 3)


def test_a_strip_begins_and_ends_with_its_video() -> None:
    video = (
        np.arange(17, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    )
    pixels = film_strip(video, 255 - video, num_frames=3).pixels
    assert pixels.shape == (10, 16, 3)
    assert [pixels[0, 6 * k, 0] for k in range(3)] == [0, 8, 16]
    assert [pixels[6, 6 * k, 0] for k in range(3)] == [255, 247, 239]


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("short.mp4", {}, ConfigError, "no clip of 17 frames at 8 fps: it lasts 1."),
        ("city.mp4", {"fps": [8, 3]}, ConfigError, "no clip of 17 frames at 3 fps: it lasts 4.6"),
        ("city.mp4", {"fps": [60]}, ConfigError, "at 60 fps: it lasts 4.60 s at 25 fps"),
        ("city.mp4", {"fps": []}, ConfigError, "fps must be a list of rates above 0, got []"),
        ("city.mp4", {"tail": "cut"}, ConfigError, "tail must be drop or pad, got 'cut'"),
        ("damaged.mp4", {}, VideoError, "not_a_video"),
        ("none.mp4", {}, FileNotFoundError, "none.mp4"),
    ],
)
def test_what_cannot_be_read_is_said(
    name: str, options: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as refusal:
        read_clips(CLIPS / name, get_config("demo"), **options)  # type: ignore[arg-type]
    assert text in str(refusal.value)


def test_a_short_video_may_be_padded() -> None:
    (clip,) = read_clips(CLIPS / "short.mp4", get_config("demo"), tail="pad")
    assert (clip.frames[-1] == clip.frames[-2]).all()


def test_tokens_of_a_batch_are_not_of_one_clip() -> None:
    with pytest.raises(ConfigError, match=r"got int64 \[1, 5, 16, 16\]"):
        token_map(torch.zeros(1, 5, 16, 16, dtype=torch.int64))
