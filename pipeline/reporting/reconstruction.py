"""A few clips of an OUT, decoded from their tokens and laid beside their source."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline import resolve
from pipeline.chosen_tokenizer import checkpoint_path, model_config
from pipeline.config import DatasetKind, RunConfig
from pipeline.draw import Sources
from pipeline.errors import ConfigError
from pipeline.film import film, spread
from pipeline.manifest import Line
from pipeline.receipts import read_receipt, receipt_name
from pipeline.reconstruction import frame_psnr
from pipeline.records import SamplingMode
from pipeline.reencode import recorded_run, recorded_spec
from pipeline.reporting.frames import decode_frames
from pipeline.reporting.pictures import jpeg
from pipeline.reporting.row_sample import TokenClip
from pipeline.reporting.strips import NUM_FRAMES, Strip
from pipeline.storage import Storage
from pipeline.worker_spec import WorkerSpec

if TYPE_CHECKING:
    from tokenizer import VideoTokenizer

MAX_VIDEO_BYTES = 256 << 20
"""A larger source is not decoded for the report."""


def reconstruct(
    storage: Storage,
    record: Mapping[str, Any],
    clips: Sequence[TokenClip],
    *,
    source_options: Mapping[str, Any],
    seconds: float,
) -> tuple[list[Strip], str | None]:
    """Strips of these clips, as many as can be made in time.

    Args:
        storage: OUT.
        record: its ``run.json``.
        clips: drawn.
        source_options: fsspec options for the source, over those in the record.
        seconds: for all together; a clip that was begun is finished.

    Returns:
        The strips, and in words why there are not more of them.

    Raises:
        PipelineError, TokenizerError: the decoder cannot be had, or a part cannot be trusted.
    """
    until = time.monotonic() + seconds
    run = recorded_run(record, source_options, {})
    if resolve.clip_plan(run).mode is SamplingMode.whole:
        return [], "whole videos are not reconstructed here"
    if run.dataset.spans is not None or run.dataset.spans_key is not None:
        return [], "clips of spans are not reconstructed here"
    spec, model = recorded_spec(run, record), _decoder(run)
    sources = Sources(
        storage=storage,
        rules=spec.read_rules,
        options=spec.input_options,
        num_buckets=run.dataset.num_buckets if run.dataset.kind is DatasetKind.folder else None,
    )
    strips: list[Strip] = []
    missing: str | None = None
    for clip in clips:
        if time.monotonic() > until:
            return strips, f"{seconds:.0f} s were spent"
        frames = _source_frames(storage, sources, spec, clip, until - time.monotonic())
        if isinstance(frames, str):
            missing = frames
            continue
        strips.append(_strip(clip, frames, _decoded(model, clip)))
    return strips, missing


def _decoder(run: RunConfig) -> VideoTokenizer:
    """The model with its decoder, on the processor: its precision is then fp32."""
    from tokenizer import TokenizerConfig, load_tokenizer

    config = model_config(run)
    if not isinstance(config, TokenizerConfig):
        raise ConfigError(f"tokenizer {config.name} is a plugin: the report shows its samples only")
    return load_tokenizer(config, checkpoint_path(run), "cpu", seed=run.tokenizer.seed)


def _source_frames(
    storage: Storage, sources: Sources, spec: WorkerSpec, clip: TokenClip, seconds: float
) -> npt.NDArray[np.uint8] | str:
    """Frames of the clip, from its video; or in words why there are none."""
    line: Line = clip.line
    receipt = read_receipt(storage, receipt_name(line.shard, line.segment, line.generation))
    key, place = clip.row["key"], (clip.row["fps"], clip.row["clip_index"])
    for found in sources.read(receipt, {key}):
        if isinstance(found, str):
            return found
        if len(found.sample.video) > MAX_VIDEO_BYTES:
            return f"{clip.row['clip_id']}: its video has {len(found.sample.video):,} bytes"
        clips = decode_frames(
            {0: found.sample.video},
            spec.plan,
            spec.limits,
            seconds=seconds,
            images={0} if found.sample.is_image else (),
        )
        if place in clips.get(0, {}):
            return clips[0][place]
    return f"{clip.row['clip_id']}: its video was not decoded in time"


def _decoded(model: VideoTokenizer, clip: TokenClip) -> npt.NDArray[np.uint8]:
    """Frames uint8 ``[T, H, W, 3]`` from the tokens; of latents, from their means."""
    import torch

    with torch.inference_mode():
        if clip.tokens.ndim == 3:
            video = model.decode_indices(torch.from_numpy(clip.tokens)[None])
        else:
            channels = len(clip.tokens) // 2
            means = np.ascontiguousarray(clip.tokens[:channels], dtype=np.float32)
            video = model.decode(torch.from_numpy(means)[None])
        frames = ((video[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return frames.permute(1, 2, 3, 0).numpy()


def _strip(clip: TokenClip, source: npt.NDArray[np.uint8], decoded: npt.NDArray[np.uint8]) -> Strip:
    decoded = decoded[-len(source) :]  # models that pad put frames in front
    row, shown = clip.row, spread(len(source), NUM_FRAMES)
    return Strip(
        clip_id=row["clip_id"],
        caption=row["caption"],
        fps=row["fps"],
        bucket=row["bucket"],
        psnr=frame_psnr(source, decoded),
        pictures={
            "source": jpeg(film(source, shown=shown)),
            "reconstruction": jpeg(film(decoded, shown=shown)),
        },
    )
