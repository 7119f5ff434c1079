"""A few lines from a video file to tokens and back, for notebooks and first looks.

One video that you trust, in this process, with the pipeline's own decoder: the clips are those that
a run cuts out, so their tokens are those of the run. The ten lines stand in README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.decode import decode_plan
from pipeline.errors import ConfigError
from pipeline.film import film, in_a_row, spread
from pipeline.png import png
from pipeline.records import Clip, ClipPlan, TailPolicy, VideoLimits
from pipeline.reporting.pictures import index_colours, latent_colours
from tokenizer import Encoded, TokenizerConfig, VideoTokenizer

GAP = 2
"""White pixels between two pictures."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that notebooks show; ``save`` writes it."""

    pixels: npt.NDArray[np.uint8]
    """uint8 ``[H, W, 3]``, RGB."""

    def png(self) -> bytes:
        """As a PNG file, without loss."""
        return png(self.pixels)

    def save(self, path: str | Path) -> None:
        """Write a PNG file."""
        Path(path).write_bytes(self.png())

    _repr_png_ = png  # what IPython asks for


def read_clips(
    path: str | Path,
    config: TokenizerConfig,
    fps: Sequence[float] = (8.0,),
    *,
    tail: str = "drop",
    max_clips: int | None = None,
) -> list[Clip]:
    """Clips of a video at reduced rates, as a tokenizer wants them; one decoding pass.

    Args:
        path: of a video file.
        config: says how many frames a clip has, and its rows and columns: ``model.config``.
        fps: target rates, in frames per second.
        tail: ``pad`` an incomplete last clip with its last frame, or ``drop`` it.
        max_clips: of each rate; None: all.

    Returns:
        Rate by rate, in the order of ``fps``, then of time. ``clip.frames`` is uint8
        ``[T, H, W, 3]``; ``clip.fps``, ``clip.start_seconds``, ``clip.frame_seconds`` say when.

    Raises:
        ConfigError: a rate, or ``tail``, that cannot be; or the video has no clip at a rate.
        VideoError: no video, or a broken one.
        OSError: the file cannot be read.
    """
    if tail not in ("drop", "pad"):
        raise ConfigError(f"tail must be drop or pad, got {tail!r}")
    if not fps or min(fps) <= 0:
        raise ConfigError(f"fps must be a list of rates above 0, got {list(fps)}")
    plan = ClipPlan(
        fps=tuple(map(float, fps)),
        clip_frames=config.clip_frames,
        stride_frames=config.clip_frames,
        max_clips_per_video=max_clips,
        tail=TailPolicy[tail],
        buckets=((config.resolution, config.resolution),),
    )
    *found, summary = decode_plan(Path(path).read_bytes(), plan, VideoLimits())
    clips = [clip for clip in found if isinstance(clip, Clip)]
    assert not isinstance(summary, Clip)
    for rate in plan.fps:
        if not any(clip.fps == rate for clip in clips):
            raise ConfigError(
                f"{path} has no clip of {config.clip_frames} frames at {rate:g} fps: it lasts "
                f"{summary.source.duration_seconds:.2f} s at {summary.source.fps:g} fps; "
                "try another rate, or tail='pad'"
            )
    return sorted(clips, key=lambda clip: (plan.fps.index(clip.fps), clip.clip_index))


def tokenise(model: VideoTokenizer, clips: Sequence[Clip]) -> Encoded:
    """Tokens of clips, all in one batch.

    Args:
        model: of ``tokenizer.load_tokenizer``.
        clips: of ``read_clips``, N of them.

    Returns:
        ``indices``, int32 ``[N, t, h, w]`` (FSQ), or ``latents``, float32 ``[N, c, t, h, w]``; on
        the device of the model.
    """
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    return model.encode_uint8(frames.to(next(model.parameters()).device))


def reconstruct(model: VideoTokenizer, tokens: Encoded) -> npt.NDArray[np.uint8]:
    """The videos that tokens stand for.

    Returns:
        uint8 ``[N, T, H, W, 3]``, T as the model's clips have it.
    """
    with torch.inference_mode():
        x_hat = model.decode(tokens.latents)[:, :, -model.config.clip_frames :]
    frames = ((x_hat.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return frames.permute(0, 2, 3, 4, 1).cpu().numpy()


def token_map(tokens: Tensor, *, pixels: int = 6) -> Picture:
    """The tokens of one clip as coloured squares: time from left to right.

    Args:
        tokens: integers ``[t, h, w]``: a colour for every index, the same wherever it stands; or
            floats ``[c, t, h, w]``: the first three channels as red, green and blue, each from its
            2nd to its 98th percentile.
        pixels: side of a square.
    """
    values = tokens.cpu().numpy()
    if values.ndim not in (3, 4) or (values.ndim == 3) != np.issubdtype(values.dtype, np.integer):
        raise ConfigError(
            f"tokens of one clip are integers [t, h, w] or floats [c, t, h, w], "
            f"got {values.dtype} {list(values.shape)}"
        )
    colours = index_colours(values) if values.ndim == 3 else latent_colours(values)
    return Picture(in_a_row(colours.repeat(pixels, 1).repeat(pixels, 2), gap=GAP))


def film_strip(*videos: npt.NDArray[np.uint8], num_frames: int = 6) -> Picture:
    """Frames of videos side by side, one video above the other.

    Args:
        videos: uint8 ``[T, H, W, 3]`` each, of one size: a source, its reconstruction.
        num_frames: how many of each are shown, the first and the last among them.
    """
    return Picture(film(*videos, shown=spread(len(videos[0]), num_frames), gap=GAP))
