"""From a composed ``TrainConfig`` to the plan of a training; below nobody sees the configuration.

Rules between sections are checked here, before anything is started.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from jobs.training.checkpoints import latest_checkpoint, start_weights
from jobs.training.config import LpipsNet, LpipsSection, TrainConfig
from jobs.training.plan import FeedRules, SaveRules, ShowRules, TrainingPlan
from pipeline.config import ClusterKind, DatasetConfig, DatasetKind, LimitsConfig
from pipeline.errors import ConfigError
from pipeline.inputs import list_folder, list_tars
from pipeline.reader import ReadRules
from pipeline.records import VideoLimits
from pipeline.resolve import plain
from pipeline.shards import Shard
from pipeline.training.recipe import ClipRecipe
from tokenizer import Precision, TokenizerConfig
from tokenizer.fetch import file_digest
from tokenizer.training.fsq_entropy import FsqPenalty
from tokenizer.training.objective import ObjectiveConfig
from tokenizer.training.stages import StageConfig

_DECIDES_NOTHING = {
    "train": ("run", "stage", "device"),
    "sampling": ("prefetch_bytes", "decoders"),
    "dataset": ("name", "shards", "path", "storage_options"),
    "tokenizer": (
        "official",
        "checkpoint_file",
        "published",
        "default_checkpoint",
        "checkpoint",
        "precision",
        "seed",
    ),
}
"""Keys that no step depends on, or (shards) that the record has in another form."""


def cluster_kind(config: TrainConfig, num_gpus: int) -> ClusterKind:
    """Where it runs: inline without GPUs and for one worker, unless said otherwise.

    Raises:
        ConfigError: no address, or several workers in one process.
    """
    cluster = config.cluster
    several = (cluster.workers or 1) > 1 or (cluster.workers is None and num_gpus > 1)
    kind = cluster.kind or (ClusterKind.local if several else ClusterKind.inline)
    if kind is ClusterKind.array:
        raise ConfigError(
            "cluster=array is for tokenising, whose workers need not talk to each other: use "
            "cluster=inline, local or ray"
        )
    if kind is ClusterKind.inline and (cluster.workers or 1) > 1:
        raise ConfigError(
            f"cluster=inline is one process, got cluster.workers={cluster.workers}: use "
            "cluster=local or cluster=ray"
        )
    if kind is ClusterKind.ray and not cluster.address:
        raise ConfigError("cluster=ray needs cluster.address=HOST:PORT, or auto")
    return kind


def training_plan(config: TrainConfig, *, num_gpus: int, workers: int) -> TrainingPlan:
    """The plan, with every null replaced.

    Args:
        config: as composed.
        num_gpus: that workers could have.
        workers: processes that share a batch.

    Raises:
        ConfigError: a combination that cannot work.
        StorageError: shards cannot be listed.
    """
    train = config.train
    if config.tokenizer.checkpoint is not None:
        raise ConfigError("tokenizer.checkpoint is for runs; a training begins at train.start=FILE")
    if train.batch % (workers * train.accumulate):
        raise ConfigError(
            f"train.batch={train.batch} must be a multiple of cluster.workers={workers} times "
            f"train.accumulate={train.accumulate}"
        )
    if train.device == "cuda" and num_gpus == 0:
        raise ConfigError("train.device=cuda, but there is no GPU here; use auto or cpu")
    return TrainingPlan(
        run=Path(train.run).expanduser().absolute(),
        steps=train.steps,
        batch=train.batch,
        tokenizer=model_config(config),
        start=start_of(config),
        stage=stage_config(config),
        lpips_net=config.lpips.net.name if config.lpips.weight else None,
        lpips_weights=_lpips_file(config.lpips),
        feed=feed_rules(config),
        save=SaveRules(
            every_steps=config.save.every_steps,
            every_seconds=60 * config.save.every_minutes,
            keep=config.save.keep,
            fp16=config.save.fp16,
        ),
        show=ShowRules(**asdict(config.show)),
        seed=train.seed,
        threads=train.threads,
        deterministic=train.deterministic,
        device="cuda" if num_gpus and train.device != "cpu" else "cpu",
        workers=workers,
    )


def _lpips_file(section: LpipsSection) -> str | None:
    """Absolute: workers have another working directory; None: the shipped ones, or no network."""
    if not section.weight:
        return None
    if section.weights is None:
        if section.net is LpipsNet.vgg:
            raise ConfigError(
                "lpips.net=vgg needs lpips.weights=FILE.safetensors; alex is the one that is "
                "shipped"
            )
        return None
    path = Path(section.weights).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"lpips.weights={section.weights}: no such file")
    return str(path)


def start_of(config: TrainConfig) -> str | None:
    """File or URL of the first weights; a RUN that has begun does not need them any more."""
    train = config.train
    if train.start is None or latest_checkpoint(Path(train.run).expanduser()) is not None:
        return None
    return start_weights(train.start)


def extra(plan: TrainingPlan) -> dict[str, Any]:
    """What ``run.json`` says for people."""
    return {
        "start": plan.start,
        "shards": [shard.url for shard in plan.feed.shards],
        "device": plan.device,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def model_config(config: TrainConfig) -> TokenizerConfig:
    """The tokenizer's own fields.

    Raises:
        ConfigError: it is a plugin, which this does not know how to train.
    """
    if config.tokenizer.plugin is not None:
        raise ConfigError(
            f"tokenizer {config.tokenizer.name} is a plugin; VidTok models are trained"
        )
    names = [item.name for item in fields(TokenizerConfig)]
    return TokenizerConfig(**{name: getattr(config.tokenizer, name) for name in names})


def stage_config(config: TrainConfig) -> StageConfig:
    """How a step is computed."""
    train, loss = config.train, config.loss
    return StageConfig(
        steps=train.steps,
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_steps,
        final_rate=train.final_rate,
        judge_from_start=loss.judge_from_start,
        adam_beta2=train.adam_beta2,
        encoder_fixed=train.encoder_fixed,
        precision=Precision[train.precision.name],
        accumulate=train.accumulate,
        clip_norm=train.clip_norm,
        ema_decay=train.ema_decay,
        activation_checkpointing=train.activation_checkpointing,
        kl_weight=train.kl_weight,
        objective=ObjectiveConfig(
            perceptual_weight=config.lpips.weight,
            initial_log_variance=loss.initial_log_variance,
            adversarial_weight=loss.adversarial_weight,
            adversarial_start=loss.adversarial_start,
            lecam_weight=loss.lecam_weight,
            dims=loss.dims,
            discriminator_loss=loss.discriminator,
            generator_loss=loss.generator,
        ),
        penalty=FsqPenalty(
            entropy_weight=loss.entropy_weight,
            annealing_batches=loss.annealing_steps,
            annealing_factor=loss.annealing_factor,
            commitment_weight=loss.commitment_weight,
            diversity_gamma=loss.diversity_gamma,
        ),
    )


def feed_rules(config: TrainConfig) -> FeedRules:
    """What is read, with the shards listed.

    Raises:
        ConfigError: sizes that the tokenizer cannot serve, or no shards.
    """
    sampling, tokenizer, limits = config.sampling, config.tokenizer, config.limits
    frames = sampling.clip_frames or tokenizer.clip_frames
    side = sampling.resolution or tokenizer.resolution
    try:
        tokenizer.check_clip(frames, side, side)
    except ValueError as error:
        raise ConfigError(f"sampling does not suit tokenizer {tokenizer.name}: {error}") from error
    rules = read_rules(config.dataset, limits)
    return FeedRules(
        shards=tuple(shards(config.dataset, rules)),
        recipe=ClipRecipe(
            clip_frames=frames,
            resolution=side,
            fps=tuple(float(rate) for rate in sampling.fps),
            seed=config.train.seed,
            clips_per_video=sampling.clips_per_video,
            random_crop=sampling.random_crop,
            mirror=sampling.mirror,
            max_zoom=sampling.max_zoom,
            window_bytes=sampling.window_bytes,
        ),
        options=dict(config.dataset.storage_options),
        read_rules=rules,
        limits=VideoLimits(
            **{item.name: getattr(limits, item.name) for item in fields(VideoLimits)}
        ),
        max_bad_fraction=limits.max_bad_fraction,
        min_videos=limits.min_videos,
        decoders=sampling.decoders,
        prefetch_bytes=sampling.prefetch_bytes,
    )


def read_rules(dataset: DatasetConfig, limits: LimitsConfig) -> ReadRules:
    """What the reader takes for a sample."""
    return ReadRules(
        video_extensions=frozenset(name.lower().lstrip(".") for name in dataset.video_extensions),
        caption_key=dataset.caption_key,
        video_bytes=limits.video_bytes,
        sidecar_bytes=limits.sidecar_bytes,
    )


def shards(dataset: DatasetConfig, rules: ReadRules) -> list[Shard]:
    """What the data set names.

    Raises:
        ConfigError: nothing, or what is not there.
    """
    if dataset.kind is DatasetKind.folder:
        if not dataset.path:
            raise ConfigError("dataset folder has no path: give dataset.path=DIR")
        return list_folder(
            dataset.path,
            rules.video_extensions,
            num_buckets=dataset.num_buckets,
            options=dataset.storage_options,
        )
    given = dataset.shards
    patterns = [given] if isinstance(given, str) else list(given or [])
    if dataset.kind is DatasetKind.demo:
        from pipeline.demo import SHARDS, demo_shards

        patterns = [str(path) for path in demo_shards(SHARDS)]
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ConfigError(
            f"dataset {dataset.name} has no shards: give dataset.shards=PATTERN, for example "
            f"/data/{{00000..00999}}.tar, s3://bucket/*.tar or @list.txt (got {given!r})"
        )
    return list_tars(patterns, dataset.storage_options)


def material(config: TrainConfig, plan: TrainingPlan) -> dict[str, Any]:
    """All that decides what a step computes, by section: what a RUN must keep."""
    sections: dict[str, Any] = plain(asdict(config))
    for name in ("cluster", "save", "show", "dry_run"):
        del sections[name]
    for section, keys in _DECIDES_NOTHING.items():
        for key in keys:
            del sections[section][key]
    if plan.lpips_net is None:
        sections["lpips"] = {"weight": 0}
    elif plan.lpips_weights is not None:
        sections["lpips"]["weights"] = file_digest(Path(plan.lpips_weights))
    sections["dataset"]["shards"] = plan.feed.recipe.digest(plan.feed.shards)
    sections["cluster"] = {"workers": plan.workers}
    return sections
