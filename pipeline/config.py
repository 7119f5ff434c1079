"""The configuration of a run: every field, its unit, its default.

Plain dataclasses that Hydra fills (`conf/run.yaml` and its groups hold values only). They are read
by ``compose`` and turned into the small frozen records that the steps take; nothing below the
composer sees them. Not frozen, because OmegaConf cannot fill frozen ones: treat as read-only.
"""

from __future__ import annotations

import enum
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from pipeline.quality_config import QualityConfig
from pipeline.records import CanaryMode, Retry
from pipeline.sampling_config import SamplingConfig
from tokenizer import Precision, TokenizerConfig


class DatasetKind(enum.Enum):
    """Where videos come from."""

    tar = "tar"
    folder = "folder"
    demo = "demo"


class Device(enum.Enum):
    """Where the encoder runs."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


class LatentDtype(enum.Enum):
    """How continuous latents are stored."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Packing(enum.Enum):
    """How FSQ indices are stored."""

    packed = "packed"
    plain = "plain"


class Compression(enum.Enum):
    """What is done to packed latents."""

    none = "none"
    planes = "planes"


class ClusterKind(enum.Enum):
    """Where workers run."""

    inline = "inline"
    local = "local"
    ray = "ray"
    array = "array"


class Numerics(enum.Enum):
    """What to do when OUT holds tokens of another numeric environment."""

    warn = "warn"
    strict = "strict"


class ChangedInputs(enum.Enum):
    """What to do with a shard whose source is not what its receipts say."""

    keep = "keep"
    redo = "redo"


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """Which videos are read; chosen by ``+dataset=NAME``."""

    name: str
    """Names the data set in paths and messages."""
    kind: DatasetKind = DatasetKind.tar
    """tar: WebDataset shards; folder: plain video files; demo: the clips shipped here."""
    shards: Any = None
    """tar: a pattern or a list of them: paths or URLs, brace ranges, globs, @file."""
    path: str | None = None
    """folder: where the video files are; searched in depth."""
    num_buckets: int = 16
    """folder: hash buckets, the shards of a folder."""
    video_extensions: list[str] = field(
        default_factory=lambda: "mp4 m4v mov webm mkv avi mpg mpeg ts m2ts 3gp flv wmv ogv".split()
    )
    """Endings that make a member a video."""
    image_extensions: list[str] = field(default_factory=list)
    """Endings that make a member an image, a clip of one frame: [jpg, jpeg, png, webp]; tokenizers
    that take one frame only. A key that has a video, too, is that video."""
    caption_key: str = "caption"
    """Key of the caption in a sample's JSON; a .txt member comes first."""
    spans: str | None = None
    """Table (.parquet, .csv, .jsonl; path or URL) of what is tokenised: key, start_seconds,
    end_seconds, caption and more columns. Clips lie within one span; other videos are left out."""
    spans_key: str | None = None
    """Or where the spans stand in a sample's JSON: a list of [start, end], or of such objects."""
    spans_sha256: str | None = None
    """Of the table; null: filled in by the run. A table that is another one is refused."""
    columns: Any = None
    """Columns of rows, name -> float, int, bool or string, from the table or a sample's JSON."""
    captions: list[str] = field(default_factory=list)
    """Further captions by name: columns of type string, from which a loader chooses."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options for reading; prefer the environment for credentials."""
    license: str | None = None
    """For OUT/README.md: an identifier such as cc-by-4.0, or a name; it decides nothing here."""

    def __post_init__(self) -> None:
        """Check what one field alone can tell."""
        if self.num_buckets < 1:
            raise ValueError(f"dataset.num_buckets must be at least 1, got {self.num_buckets}")


@dataclass(kw_only=True, slots=True)
class TokenizerSection(TokenizerConfig):
    """Which tokenizer runs; chosen by ``+tokenizer=NAME``."""

    checkpoint: str | None = None
    """.ckpt or .safetensors, path or URL (with @sha256:HEX it is checked); ``auto``: the published
    file, fetched once per machine; ``random``: for dry runs; null: what the tokenizer brings."""
    seed: int = 0
    """Seed of the weights of ``checkpoint=random``."""
    precision: Precision = Precision.fp32
    """fp32, tf32 (GPUs), or bf16: convolutions and attention in bfloat16, the rest in float32."""
    plugin: str | None = None
    """A tokenizer of your own: ``package.module:factory``, or the name of an entry point."""
    options: dict[str, Any] = field(default_factory=dict)
    """What its factory is given; all of it counts for the fingerprint."""

    def __post_init__(self) -> None:
        """Check the family's fields, or that a plugin is not given any of them."""
        if self.plugin == "":
            raise ValueError(
                "tokenizer=plugin needs tokenizer.plugin=package.module:factory, or the name of an "
                "entry point"
            )
        if self.plugin is None:
            if self.options:
                raise ValueError("tokenizer.options is for tokenizer.plugin")
            TokenizerConfig.__post_init__(self)
            return
        for item in fields(TokenizerConfig):
            default = None if item.default is MISSING else item.default
            if item.default_factory is not MISSING:
                default = item.default_factory()
            if item.name not in ("name", "quantizer") and getattr(self, item.name) != default:
                raise ValueError(
                    f"tokenizer.{item.name} is for tokenizers of the family; plugin {self.plugin} "
                    f"takes +tokenizer.options.KEY=VALUE"
                )


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """How a worker encodes; part of the numeric environment."""

    device: Device = Device.auto
    """auto: GPUs if there are any, else CPUs."""
    batch_clips: int | None = None
    """B, clips in a batch; every batch is padded to it; null: 1 on a CPU, measured on a GPU."""
    compiled: bool | None = None
    """Kernels of whole clips written by torch.compile; null: on a GPU. Needs a C compiler."""
    threads: int = 2
    """CPU threads of one encoder; set explicitly because results depend on it."""
    decoders: int | None = None
    """Decoder children of one worker; null: as many as the measured waiting calls for."""
    canary: CanaryMode = CanaryMode.commit
    """Check the encoder's arithmetic with a known clip at start and before every commit (commit),
    at start only (start), or never (off)."""

    def __post_init__(self) -> None:
        """Check numbers."""
        for name in ("batch_clips", "threads", "decoders"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"encoder.{name} must be at least 1, got {value}")


@dataclass(kw_only=True, slots=True)
class OutputConfig:
    """Where and how tokens are stored."""

    root: str = "outputs/${dataset.name}/${tokenizer.name}"
    """OUT: a local path or s3://bucket/prefix."""
    packing: Packing = Packing.packed
    """packed: as many bits as the codebook needs; plain: int32 for other tools."""
    latent_dtype: LatentDtype = LatentDtype.fp16
    """Continuous tokenizers: how mean and log-variance are stored."""
    compression: Compression = Compression.none
    """Continuous tokenizers: planes stores byte planes under Zstandard, bit-exact: smaller, and
    slower to read."""
    row_group_rows: int = 256
    """Most clips in a Parquet row group: what a loader reads at once."""
    row_group_bytes: int = 8 << 20
    """Most bytes of tokens and text in one; a single clip may have more."""
    keep_quarantined: bool = True
    """Write tars of quarantined originals to OUT/quarantine/."""
    max_quarantine_bytes: int = 256 << 20
    """Size of originals kept per segment; beyond it only the reason is recorded."""
    report: bool = True
    """Write OUT/report/index.html at the end, as ``python -m pipeline.report OUT`` does."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options for OUT; prefer the environment for credentials."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.row_group_rows < 1:
            raise ValueError(f"output.row_group_rows must be at least 1, got {self.row_group_rows}")
        if self.row_group_bytes < 1:
            raise ValueError(
                f"output.row_group_bytes must be at least 1, got {self.row_group_bytes}"
            )


@dataclass(kw_only=True, slots=True)
class CommitConfig:
    """How much work a kill can cost."""

    max_clips: int = 4096
    """A segment is committed when it holds this many clips."""
    max_seconds: float = 300.0
    """Or when this much time has passed since the last commit of the shard."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.max_clips < 1 or self.max_seconds <= 0:
            raise ValueError(
                f"commit.max_clips and commit.max_seconds must be positive, "
                f"got {self.max_clips} and {self.max_seconds}"
            )


@dataclass(kw_only=True, slots=True)
class LimitsConfig:
    """Bounds on what one video, one sample and one run may cost."""

    video_bytes: int = 2 << 30
    """Size of one encoded video."""
    sidecar_bytes: int = 16 << 20
    """Size of one .json or .txt."""
    pixels: int = 8192 * 8192
    """Rows times columns of a picture."""
    frames: int = 1_000_000
    """Decoded frames of one video."""
    streams: int = 64
    """Streams of all kinds in one file."""
    clips: int = 250_000
    """Clips of one video (whole: pieces), all target rates together."""
    duration_seconds: float = 6 * 3600.0
    """Length of one video."""
    cpu_seconds: float = 6 * 3600.0
    """CPU time of decoding one video; short ones are allowed less."""
    no_progress_seconds: float = 30.0
    """Time without a new frame before a decoder is killed."""
    child_memory_bytes: int = 4 << 30
    """Memory of one decoder child beyond what it has at its start."""
    read_ahead_bytes: int = 256 << 20
    """Held by one worker ahead of its decoders: half in ranges of tars, half as encoded videos."""
    range_bytes: int = 32 << 20
    """Asked for by one request to an object store; several are on their way at once."""
    max_bad_fraction: float = 0.5
    """The run stops when more than this share of the videos so far was quarantined..."""
    min_videos: int = 100
    """...and at least this many were seen."""

    def __post_init__(self) -> None:
        """Check numbers."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "max_bad_fraction" and value <= 0:
                raise ValueError(f"limits.{item.name} must be above 0, got {value}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f"limits.max_bad_fraction must be between 0 and 1, got {self.max_bad_fraction}"
            )


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where workers run; ``cluster=local`` unless said otherwise."""

    kind: ClusterKind = ClusterKind.local
    """inline: this process; local: Ray started here; ray: a running cluster; array: this process,
    one of several that share the shards without Ray."""
    address: str | None = None
    """ray: HOST:PORT of the head, or auto."""
    rank: int | None = None
    """array: which process this is, from 0; null: what Slurm, Kubernetes or SkyPilot says."""
    ranks: int | None = None
    """array: number of processes; null: what Slurm or SkyPilot says (Kubernetes does not)."""
    num_workers: int | None = None
    """null: one per GPU, without GPUs as many as the cores carry, at any time: machines may join
    and leave. A number is asked for even where there is no room yet, for an autoscaler to make."""
    cpus_per_worker: float | None = None
    """Cores that Ray counts for a worker; null: threads + decoders, at most a node's cores."""
    gpus_per_worker: float = 1.0
    """GPUs, or a fraction of one, for a worker where there are any."""
    open_shards: int = 2
    """Shards that one worker has open at once."""
    max_attempts: int = 3
    """Attempts at a shard before it is given up for this run."""
    retry_seconds: float = 2.0
    """Wait before the second attempt; doubled for each further one, with jitter."""
    lease_seconds: float = 1800.0
    """A worker that has shards and whose counters stand still for so long is replaced."""
    grace_seconds: float = 30.0
    """Ctrl-C or SIGTERM: time for open segments to be committed."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"cluster.rank must be at least 0, got {self.rank}")
        for name in ("ranks", "num_workers", "open_shards", "max_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"cluster.{name} must be at least 1, got {value}")
        for name in ("cpus_per_worker", "gpus_per_worker", "lease_seconds", "grace_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"cluster.{name} must be positive, got {value}")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """``python -m pipeline.run``."""

    dataset: DatasetConfig
    tokenizer: TokenizerSection
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    commit: CommitConfig = field(default_factory=CommitConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    numerics: Numerics = Numerics.warn
    """warn about tokens of another numeric environment in OUT, or refuse them (strict)."""
    changed_inputs: ChangedInputs = ChangedInputs.keep
    """keep what was made of a source that has changed since, or redo it."""
    retry: Retry | None = None
    """Also try again: quarantined (videos that could not be tokenised, with the limits of now), or
    incomplete (what lay behind the cut of a tar). Only adds rows; repeat it as often as wanted."""
    outputs: Any = None
    """Several outputs of one decoding pass: a list of what each has of its own, [{tokenizer: NAME,
    fps: [3, 8]}, {tokenizer: NAME, variant: flip}]; pipeline/README.md says which keys."""
    dry_run: bool = False
    """Plan and print, change nothing."""
