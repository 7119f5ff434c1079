"""From a checked ``RunConfig`` to the small records that the steps take, and to the fingerprint.

Below this file nobody sees the configuration.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.balance import bounds
from pipeline.chosen_tokenizer import (
    checkpoint_path,
    compression,
    model_config,
    packing,
    token_spec,
    tokenizer_material,
)
from pipeline.config import DatasetKind, Device, Numerics, RunConfig
from pipeline.encode import EncoderSpec
from pipeline.errors import ConfigError
from pipeline.fingerprint import digest_of
from pipeline.reader import ReadRules
from pipeline.records import ClipPlan, SamplingMode, VideoLimits
from pipeline.resolve_quality import quality_identity, quality_rules
from pipeline.resolve_sampling import sampling_identity
from pipeline.resolve_spans import selection_rules, spans_identity, stored_columns
from pipeline.sampling_config import Cuts
from pipeline.schedule import RetryRules
from pipeline.schema import FORMAT_VERSION, TokenFormat
from pipeline.segments import CommitRules
from pipeline.shards import normalise_url
from pipeline.worker_spec import WorkerSpec

if TYPE_CHECKING:
    from tokenizer import CheckpointInfo, TokenSpec

CPU_BATCH_CLIPS, GPU_BATCH_CLIPS = 1, 8
"""Default B: a CPU gains nothing from more than one clip."""
WHOLE_PIECE_FRAMES = 16
"""Default frames of a piece in sampling.mode=whole, as in the published streaming mode."""

_BLOT = "***"
_SECRET = re.compile(r"key|secret|token$|password|credential", re.IGNORECASE)


def shard_patterns(run: RunConfig) -> list[str]:
    """``dataset.shards`` as a list of patterns.

    Raises:
        ConfigError: neither text nor a list of texts.
    """
    shards = run.dataset.shards
    patterns = [shards] if isinstance(shards, str) else list(shards or [])
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"dataset.shards must be a pattern or a list of patterns, got {shards!r}")
    return [pattern for pattern in patterns if pattern]


def clip_plan(run: RunConfig) -> ClipPlan:
    """Sampling with every null replaced by what the tokenizer wants.

    Raises:
        ConfigError: a combination that the tokenizer cannot serve.
    """
    sampling, tokenizer = run.sampling, token_spec(run)
    is_whole = sampling.mode is SamplingMode.whole
    if is_whole:
        check_whole(run)
    frames = sampling.clip_frames or (WHOLE_PIECE_FRAMES if is_whole else tokenizer.clip_frames)
    plan = ClipPlan(
        fps=tuple(float(rate) for rate in sampling.fps),
        mode=sampling.mode,
        clip_frames=frames,
        stride_frames=sampling.stride_frames or frames,
        time_factor=tokenizer.stride[0],
        max_clips_per_video=sampling.max_clips_per_video,
        tail=sampling.tail,
        buckets=buckets(run),
        cut_threshold=sampling.cut_threshold if sampling.cuts is Cuts.detect else None,
        variant=sampling.variant,
    )
    try:
        for height, width in plan.buckets:
            tokenizer.check_clip(frames + 1 if is_whole else frames, height, width)
    except ValueError as error:
        raise ConfigError(f"sampling does not suit tokenizer {tokenizer.name}: {error}") from error
    if run.dataset.image_extensions:
        check_images(tokenizer, plan)
    return plan


def check_images(tokenizer: TokenSpec, plan: ClipPlan) -> None:
    """Whether the tokenizer takes clips of one frame.

    Raises:
        ConfigError: it does not.
    """
    try:
        for height, width in plan.buckets:
            tokenizer.check_clip(1, height, width)
    except ValueError as error:
        raise ConfigError(
            f"dataset.image_extensions: an image is a clip of one frame, which tokenizer "
            f"{tokenizer.name} does not take ({error}); use a causal tokenizer, or leave images "
            "out with dataset.image_extensions=[]"
        ) from error


def check_whole(run: RunConfig) -> None:
    """Whether whole videos can be streamed through the tokenizer.

    Raises:
        ConfigError: they cannot.
    """
    sampling, tokenizer = run.sampling, token_spec(run)
    if not tokenizer.can_stream:
        reason = "is not causal: its tokens depend on later frames"
        if run.tokenizer.plugin is not None:
            reason = "cannot stream (TokenSpec.can_stream)"
        raise ConfigError(
            f"sampling.mode=whole: {tokenizer.name} {reason}, so that a video cannot be encoded "
            "piece by piece; use a causal tokenizer"
        )
    if sampling.max_clips_per_video is not None or sampling.stride_frames is not None:
        raise ConfigError(
            "sampling.mode=whole makes one row of a video: sampling.stride_frames and "
            "sampling.max_clips_per_video are for mode=clips"
        )


def buckets(run: RunConfig) -> tuple[tuple[int, int], ...]:
    """(H, W) of clips.

    Raises:
        ConfigError: not a list of pairs, or given together with a resolution.
    """
    sampling = run.sampling
    if sampling.buckets is None:
        side = sampling.resolution or token_spec(run).resolution
        return ((side, side),)
    if sampling.resolution is not None:
        raise ConfigError("give sampling.resolution or sampling.buckets, not both")
    pairs = sampling.buckets if isinstance(sampling.buckets, list) else []
    is_right = all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int) and n > 0 for n in pair)
        for pair in pairs
    )
    if not pairs or not is_right:
        raise ConfigError(
            f"sampling.buckets must be a list of [H, W] like [[256,256],[192,336]], "
            f"got {sampling.buckets!r}"
        )
    found = tuple((height, width) for height, width in pairs)
    if len(set(found)) != len(found):
        raise ConfigError(f"sampling.buckets names a size twice: {sampling.buckets}")
    return found


def video_limits(run: RunConfig) -> VideoLimits:
    """Bounds for one video."""
    limits = run.limits
    return VideoLimits(**{field.name: getattr(limits, field.name) for field in fields(VideoLimits)})


def read_rules(run: RunConfig) -> ReadRules:
    """What the reader takes for a sample.

    Raises:
        ConfigError: an ending of videos and of images.
    """
    videos, images = (
        frozenset(name.lower().lstrip(".") for name in names)
        for names in (run.dataset.video_extensions, run.dataset.image_extensions)
    )
    if both := sorted(videos & images):
        raise ConfigError(
            f"dataset.image_extensions and dataset.video_extensions both name {', '.join(both)}: "
            "keep each ending in one of them"
        )
    return ReadRules(
        video_extensions=videos,
        image_extensions=images,
        caption_key=run.dataset.caption_key,
        video_bytes=run.limits.video_bytes,
        sidecar_bytes=run.limits.sidecar_bytes,
    )


def commit_rules(run: RunConfig) -> CommitRules:
    """When segments are cut."""
    return CommitRules(
        max_clips=run.commit.max_clips,
        max_seconds=run.commit.max_seconds,
        row_group_rows=run.output.row_group_rows,
        row_group_bytes=run.output.row_group_bytes,
        max_quarantine_bytes=run.output.max_quarantine_bytes if run.output.keep_quarantined else 0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What decides every row of OUT and its encoding."""

    material: dict[str, Any]
    """By section; shown when it differs."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the material."""
        return digest_of(self.material)


def identity(run: RunConfig, checkpoint_digest: str) -> Identity:
    """The fingerprint's material of a run."""
    rules = read_rules(run)
    dataset: dict[str, Any] = {
        "video_extensions": sorted(rules.video_extensions),
        "caption_key": rules.caption_key,
        "kind": "folder" if run.dataset.kind is DatasetKind.folder else "tar",
    }
    if rules.image_extensions:
        dataset["image_extensions"] = sorted(rules.image_extensions)
    if run.dataset.kind is DatasetKind.folder:
        dataset["num_buckets"] = run.dataset.num_buckets
    dataset |= spans_identity(run)
    return Identity(
        material=plain(
            quality_identity(run)
            | sampling_identity(clip_plan(run))
            | {
                "format_version": FORMAT_VERSION,
                "tokenizer": tokenizer_material(run),
                "checkpoint_digest": checkpoint_digest,
                "precision": run.tokenizer.precision.name,
                "dataset": dataset,
                "packing": packing(run),
                "compression": compression(run),
                "decode": "pyav",
            }
        )
    )


def redacted(run: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, with storage credentials blotted out."""

    def blot(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: blot(inner, str(name)) for name, inner in value.items()}
        return _BLOT if _SECRET.search(key) and value not in (None, "") else value

    config: dict[str, Any] = plain(asdict(run))
    config["tokenizer"]["checkpoint"] = without_secrets(run.tokenizer.checkpoint)
    for section in ("dataset", "output"):
        config[section]["storage_options"] = blot(config[section]["storage_options"])
    return config


def without_blots(value: Any) -> Any:
    """What ``redacted`` gave, without the keys whose values are blotted out.

    >>> without_blots({"key": "***", "client_kwargs": {"region_name": "x"}})
    {'client_kwargs': {'region_name': 'x'}}
    """
    if not isinstance(value, Mapping):
        return value
    return {key: without_blots(inner) for key, inner in value.items() if inner != _BLOT}


def without_secrets(url: str | None) -> str | None:
    """A URL without user, password, query and fragment; anything else as it is.

    >>> without_secrets("https://me:pw@host/x.ckpt?token=1")
    'https://host/x.ckpt'
    """
    if url is None or "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def plain(value: Any) -> Any:
    """Enums to their names, tuples to lists: what JSON gives back as it was."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.name if isinstance(value, enum.Enum) else value


def token_format(run: RunConfig, weights: CheckpointInfo) -> TokenFormat:
    """What the footer of every part says."""
    spec = token_spec(run)
    return TokenFormat(
        format_version=FORMAT_VERSION,
        tokenizer=spec.name,
        checkpoint_digest=weights.digest,
        random_weights=weights.is_random,
        packing=packing(run),
        compression=compression(run),
        axes="t h w" if spec.is_discrete else "c t h w",
        codebook_size=spec.codebook_size,
        levels=spec.levels,
        channels=spec.channels,
        has_log_variance=spec.has_log_variance or spec.is_discrete,
        fingerprint=identity(run, weights.digest).fingerprint,
        columns=stored_columns(run),
    )


def worker_spec(
    run: RunConfig,
    weights: CheckpointInfo,
    *,
    has_gpus: bool,
    cores: float,
    recorded_batch: int | None,
) -> WorkerSpec:
    """What every worker is told.

    Args:
        run: the configuration.
        weights: the checkpoint that tokens must come from.
        has_gpus: whether workers have a GPU.
        cores: of the node, shared by its workers, for the number of decoders.
        recorded_batch: B of the runs before in this OUT.

    Raises:
        ConfigError: a device that is not there.
    """
    encoder, plan = run.encoder, clip_plan(run)
    if encoder.device is Device.cuda and not has_gpus:
        raise ConfigError("encoder.device=cuda, but there is no GPU here; use auto or cpu")
    device = "cuda" if has_gpus and encoder.device is not Device.cpu else "cpu"
    default_batch = GPU_BATCH_CLIPS if device == "cuda" else CPU_BATCH_CLIPS
    own_cores = int(min(cores, run.cluster.cpus_per_worker or cores))
    start, most = bounds(given=encoder.decoders, cores=own_cores, threads=encoder.threads)
    return WorkerSpec(
        encoder=EncoderSpec(
            tokenizer=model_config(run),
            checkpoint=checkpoint_path(run),
            seed=run.tokenizer.seed,
            precision=run.tokenizer.precision.name,
            device=device,
            threads=encoder.threads,
            batch_clips=encoder.batch_clips or recorded_batch or default_batch,
            clip_frames=plan.clip_frames,
            buckets=plan.buckets,
            token_format=token_format(run, weights),
            has_decoder=run.quality.columns and run.quality.sample_fraction > 0,
            compiled=device == "cuda" if encoder.compiled is None else encoder.compiled,
        ),
        plan=plan,
        limits=video_limits(run),
        read_rules=read_rules(run),
        read_ahead_bytes=run.limits.read_ahead_bytes,
        range_bytes=run.limits.range_bytes,
        decoders=start,
        most_decoders=most,
        commit_rules=commit_rules(run),
        output_root=normalise_url(run.output.root),
        output_options=dict(run.output.storage_options),
        input_options=dict(run.dataset.storage_options),
        strict_numerics=run.numerics is Numerics.strict,
        canary=encoder.canary,
        selection=selection_rules(run),
        quality=quality_rules(run, is_random=weights.is_random),
    )


def retry_rules(run: RunConfig) -> RetryRules:
    """When shards are tried again, and when the run stops."""
    return RetryRules(
        max_attempts=run.cluster.max_attempts,
        retry_seconds=run.cluster.retry_seconds,
        max_bad_fraction=run.limits.max_bad_fraction,
        min_videos=run.limits.min_videos,
        lease_seconds=run.cluster.lease_seconds,
        grace_seconds=run.cluster.grace_seconds,
    )
