"""From the shards' results to a table, a JSON record, and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from jobs.evaluation.records import ShardJudged, Strip, VideoJudged, extremes
from tokenizer import MissingNetwork, PublishedMetrics, TokenizerConfig
from tokenizer.evaluation import Quality, mean_quality
from tokenizer.metrics.codebook import num_used, perplexity
from tokenizer.metrics.fvd import I3D_SOURCE, frechet_distance

PUBLISHED_SOURCE = (
    "README of github.com/microsoft/VidTok, commit d6ad92d: 30 videos of MCL-JCV, 30 frames/s, "
    "256x256, LPIPS with VGG16; v1.0 in clips, v1.1 as whole videos"
)
COLUMNS = {"psnr": ("PSNR dB", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4), "fvd": ("FVD", 1)}
"""Of the table: heading and digits."""
MAX_ROWS = 40
"""Videos with a row of their own in the table; the record has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookUse:
    """Of all tokens of all videos."""

    size: int
    used: int
    perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Everything that was found."""

    videos: tuple[VideoJudged, ...]
    """By key."""
    quality: Quality | None
    """Mean over all frames; None: no video could be judged."""
    fvd: float | None
    """None: no network, or fewer than two clips."""
    codebook: CodebookUse | None
    """FSQ only."""
    strips: tuple[Strip, ...]
    """The worst, then the best clips."""
    cut: dict[str, str]
    """Shards that could not be read to their end, and why."""

    @property
    def judged(self) -> list[VideoJudged]:
        """Videos that have a quality."""
        return [video for video in self.videos if video.clips]

    @property
    def too_short(self) -> list[str]:
        """Keys of videos without a single piece."""
        return [video.key for video in self.videos if not video.clips and not video.problem]

    @property
    def bad(self) -> dict[str, str]:
        """Keys of videos that could not be judged, and why."""
        return {video.key: video.problem for video in self.videos if video.problem}


def evaluation_of(
    shards: Iterable[ShardJudged], codebook_size: int | None, num_pictures: int
) -> Evaluation:
    """Put the results of shards together; their order does not matter."""
    shards = sorted(shards, key=lambda shard: shard.name)
    videos = sorted((v for shard in shards for v in shard.videos), key=lambda video: video.key)
    clips = [clip for video in videos for clip in video.clips]
    features = [shard.features for shard in shards if shard.features.shape[1]]
    fvd = None
    if sum(part.shape[1] for part in features) >= 2:
        source, output = torch.from_numpy(np.concatenate(features, axis=1))
        fvd = frechet_distance(output, source)
    return Evaluation(
        videos=tuple(videos),
        quality=mean_quality(clips) if clips else None,
        fvd=fvd,
        codebook=_codebook([shard.codes for shard in shards], codebook_size),
        strips=tuple(extremes((strip for shard in shards for strip in shard.strips), num_pictures)),
        cut={shard.name: shard.cut for shard in shards if shard.cut},
    )


def _codebook(codes: Sequence[Any], size: int | None) -> CodebookUse | None:
    if size is None or not any(part.size for part in codes):
        return None
    counts = torch.zeros(size, dtype=torch.int64)
    for part in codes:
        counts.index_add_(0, torch.from_numpy(part[0]), torch.from_numpy(part[1]))
    return CodebookUse(size=size, used=num_used(counts), perplexity=perplexity(counts))


def measured(evaluation: Evaluation) -> dict[str, float | None]:
    """The four figures of the table."""
    quality = evaluation.quality
    assert quality is not None
    return {
        "psnr": quality.psnr,
        "ssim": quality.ssim,
        "lpips": quality.lpips,
        "fvd": evaluation.fvd,
    }


def differences(
    found: dict[str, float | None], published: PublishedMetrics, lpips: str
) -> dict[str, float | None]:
    """Measured minus published; None where one is missing, or LPIPS is of another network."""
    stated = asdict(published)
    return {
        key: None if value is None or (key == "lpips" and lpips != "vgg") else value - stated[key]
        for key, value in found.items()
    }


def table(
    evaluation: Evaluation, config: TokenizerConfig, title: str, lpips: str, *, has_i3d: bool
) -> str:
    """What is printed at the end: videos, their mean, the published figures, what is missing."""
    assert evaluation.quality is not None
    clips = sum(len(video.clips) for video in evaluation.judged)
    found = measured(evaluation)
    lines = [
        f"{title}: {len(evaluation.judged)} videos, {clips} clips, "
        f"{evaluation.quality.num_frames} frames",
        _row("", [heading for heading, _ in COLUMNS.values()]),
    ]
    if 1 < len(evaluation.judged) <= MAX_ROWS:
        for video in evaluation.judged:
            lines.append(_figures(video.key, {**asdict(mean_quality(video.clips)), "fvd": None}))
    lines.append(_figures("measured", found))
    if config.published is not None:
        lines.append(_figures("published", asdict(config.published)))
        lines.append(_figures("difference", differences(found, config.published, lpips), sign="+"))
    lines += _remarks(evaluation, config, lpips)
    if evaluation.fvd is None:
        lines.append(missing_fvd(has_i3d))
    return "\n".join(lines)


def _remarks(evaluation: Evaluation, config: TokenizerConfig, lpips: str) -> list[str]:
    lines = []
    if config.published is not None:
        lines.append(f"published: {PUBLISHED_SOURCE}")
        if lpips == "alex":
            lines.append("LPIPS here is with AlexNet: not to be compared; evaluate.lpips=vgg is")
    if evaluation.codebook is not None:
        use = evaluation.codebook
        lines.append(
            f"codebook: {use.used:,} of {use.size:,} codes used ({use.used / use.size:.1%}), "
            f"perplexity {use.perplexity:,.1f}"
        )
    if evaluation.too_short:
        lines.append(f"too short: {', '.join(evaluation.too_short)}")
    lines += [f"bad: {key}: {problem}" for key, problem in evaluation.bad.items()]
    lines += [f"cut: {name}: {reason}" for name, reason in evaluation.cut.items()]
    return lines


def missing_fvd(has_i3d: bool) -> str:
    """Why the column is empty, and what would fill it."""
    if has_i3d:
        return "no FVD: it takes at least two clips"
    return f"no FVD: {MissingNetwork('FVD', 'evaluate.i3d=PATH', I3D_SOURCE)}"


def _figures(name: str, values: dict[str, Any], sign: str = "") -> str:
    return _row(
        name,
        [
            "-" if values[key] is None else f"{values[key]:{sign}.{digits}f}"
            for key, (_, digits) in COLUMNS.items()
        ],
    )


def _row(name: str, cells: Sequence[str]) -> str:
    shown = name if len(name) <= 32 else f"…{name[-31:]}"
    return f"{shown:<32}" + "".join(f"{cell:>10}" for cell in cells)


def record(
    evaluation: Evaluation, config: TokenizerConfig, lpips: str, *, has_i3d: bool
) -> dict[str, Any]:
    """What ``evaluation.json`` says of the results."""
    found = measured(evaluation)
    published = config.published
    return {
        "measured": found,
        "published": None if published is None else asdict(published),
        "published_source": None if published is None else PUBLISHED_SOURCE,
        "difference": None if published is None else differences(found, published, lpips),
        "num_videos": len(evaluation.judged),
        "num_clips": sum(len(video.clips) for video in evaluation.judged),
        "num_frames": evaluation.quality.num_frames if evaluation.quality else 0,
        "codebook": None if evaluation.codebook is None else asdict(evaluation.codebook),
        "no_fvd": missing_fvd(has_i3d) if evaluation.fvd is None else None,
        "videos": [
            {
                "key": video.key,
                **asdict(mean_quality(video.clips)),
                "clips": [asdict(clip) for clip in video.clips],
            }
            for video in evaluation.judged
        ],
        "too_short": evaluation.too_short,
        "bad": evaluation.bad,
        "cut": evaluation.cut,
    }
