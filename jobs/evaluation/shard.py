"""Judges the videos of one shard, one after the other, in the process of a worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.pictures import shown_pictures, strip
from jobs.evaluation.records import (
    JudgeSpec,
    ShardJudged,
    Strip,
    VideoJudged,
    extremes,
)
from pipeline.errors import VideoError
from pipeline.reader import Sample, ShardEnd, read_shard, source_of
from pipeline.shards import Shard
from tokenizer import load_tokenizer
from tokenizer.evaluation import Judge, Judged, Quality
from tokenizer.metrics.fvd import VideoFeatures
from tokenizer.metrics.lpips import LPIPS


def is_named(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is meant by a name: itself, its file name, or either without its ending.

    >>> is_named("a/dog.mp4", ("dog",)), is_named("dog", ("dog.mp4",)), is_named("dog", ("do",))
    (True, False, False)
    """
    return not names_of(key).isdisjoint(names)


def names_of(key: str) -> set[str]:
    """All names that mean a key."""
    path = PurePosixPath(key)
    return {key, path.name, str(path.with_suffix("")), path.stem} if path.name else {key}


class ShardJudge:
    """A worker's model and networks."""

    def __init__(self, spec: JudgeSpec) -> None:
        """Load them all.

        Raises:
            TokenizerError: weights that cannot be had or do not fit.
        """
        torch.set_num_threads(spec.threads)
        self._spec = spec
        model = load_tokenizer(
            spec.tokenizer, spec.checkpoint, spec.device, spec.precision, spec.seed
        )
        lpips = None
        if spec.lpips != "none":
            lpips = LPIPS(spec.lpips, spec.lpips_weights).to(spec.device)
        features = VideoFeatures(spec.i3d, spec.device) if spec.i3d is not None else None
        self._judge = Judge(model, lpips=lpips, features=features, is_sampled=spec.is_sampled)

    def judge(
        self, shard: Shard, on_video: Callable[[VideoJudged], None] = lambda video: None
    ) -> ShardJudged:
        """Every video of the shard that is asked for.

        Args:
            shard: which.
            on_video: told of each video when it is done.

        Raises:
            StorageError: the shard cannot be read.
        """
        spec = self._spec
        source = source_of(shard, spec.storage_options)
        found = _Found(spec.num_pictures)
        reader = read_shard(shard, rules=spec.rules, options=spec.storage_options, source=source)
        cut: str | None = None
        with contextlib.closing(reader):
            for sample in reader:
                if isinstance(sample, ShardEnd):
                    cut = sample.cut
                elif spec.videos is None or is_named(sample.key, spec.videos):
                    on_video(self._video(sample, found))
        return found.result(shard.name, source.version, cut)

    def _video(self, sample: Sample, found: _Found) -> VideoJudged:
        """A video that is found bad half way counts nowhere."""
        self._judge.new_counts()
        its_own = _Found(self._spec.num_pictures)
        clips: list[Quality] = []
        try:
            for judged in self._clips(sample):
                its_own.add_clip(sample.key, len(clips), judged)
                clips.append(judged.quality)
        except VideoError as error:
            video = VideoJudged(key=sample.key, problem=str(error))
        else:
            video = VideoJudged(key=sample.key, clips=tuple(clips))
            found.take(its_own, self._judge.index_counts)
        found.videos.append(video)
        return video

    def _clips(self, sample: Sample) -> Iterator[Judged]:
        if sample.defect is not None:
            raise sample.defect
        spec = self._spec
        pictures = shown_pictures(sample.video, spec.limits, spec.fps)
        return self._judge.clips(pictures, spec.mode, spec.size, spec.size)


class _Found:
    """What videos have given so far."""

    def __init__(self, num_pictures: int) -> None:
        self._num_pictures = num_pictures
        self.videos: list[VideoJudged] = []
        self._strips: list[Strip] = []
        self._features: list[Tensor] = []
        self._counts: Tensor | None = None

    def add_clip(self, key: str, clip: int, judged: Judged) -> None:
        if judged.features is not None:
            self._features.append(judged.features)
        bare = Strip(key=key, clip=clip, psnr=judged.quality.psnr, png=b"")
        # A picture takes longer to write than to choose.
        if bare in extremes([*self._strips, bare], self._num_pictures):
            self._keep([replace(bare, png=strip(judged.source, judged.output))])

    def take(self, other: _Found, counts: Tensor | None) -> None:
        self._keep(other._strips)
        self._features += other._features
        if counts is not None:
            self._counts = counts if self._counts is None else self._counts + counts

    def _keep(self, strips: Sequence[Strip]) -> None:
        self._strips = extremes([*self._strips, *strips], self._num_pictures)

    def result(self, name: str, version: str, cut: str | None) -> ShardJudged:
        codes = np.zeros((2, 0), np.int64)
        if self._counts is not None:
            used = self._counts.nonzero()[:, 0]
            codes = torch.stack([used, self._counts[used]]).numpy()
        features = np.zeros((2, 0, 0), np.float32)
        if self._features:
            features = torch.stack(self._features, dim=1).numpy()
        return ShardJudged(
            name=name,
            version=version,
            videos=tuple(self.videos),
            strips=tuple(self._strips),
            cut=cut,
            codes=codes,
            features=features,
        )
