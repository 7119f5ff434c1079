"""What a tokenizer is: the fields of its configuration, and the arithmetic that follows from them.

Standard library only, so that a command line can read it without loading torch. The classes double
as Hydra/omegaconf schemas, hence not frozen, enums with lower-case members, lists instead of
tuples; treat them as read-only all the same. Defaults live here, ``conf/tokenizer/<name>.yaml``
says what differs.
"""

import enum
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenizer.errors import ConfigError, ShapeError
from tokenizer.protocol import TokenSpec

WEIGHTS = Path(__file__).parent / "weights"
"""Weights that come with the project; README.md there is their model card."""

_NOT_THE_MODEL = {
    "official",
    "checkpoint_file",
    "published",
    "default_checkpoint",
    "clip_frames",
    "resolution",
}
"""Fields that change no token by themselves."""


class QuantizerKind(enum.Enum):
    """How the encoder's output becomes tokens."""

    fsq = "fsq"
    kl = "kl"


class Version(enum.Enum):
    """Generation of the published models: they differ in time padding and temporal upsampling."""

    v1_0 = "v1_0"
    v1_1 = "v1_1"


class NormKind(enum.Enum):
    """Normalisation before every convolution; all published models use layernorm."""

    layernorm = "layernorm"
    groupnorm = "groupnorm"


class PadMode(enum.Enum):
    """How a clip is lengthened at its front when its length does not fit (causal models)."""

    replicate = "replicate"
    constant = "constant"
    reflect = "reflect"


class Precision(enum.Enum):
    """Arithmetic of convolutions and attention; norms and quantiser are always float32."""

    fp32 = "fp32"
    tf32 = "tf32"  # CUDA: products rounded to 10 bits of mantissa; elsewhere the same as fp32
    bf16 = "bf16"


@dataclass(kw_only=True, slots=True)
class QuantizerConfig:
    """The bottleneck: finite scalar quantisation (integers) or a diagonal Gaussian (floats)."""

    kind: QuantizerKind
    """fsq gives integers, kl gives floats."""
    levels: list[int] = field(default_factory=list)
    """fsq only: steps per latent channel; the codebook has prod(levels) entries."""

    def __post_init__(self) -> None:
        path = "tokenizer.quantizer.levels"
        if self.kind is QuantizerKind.kl and self.levels:
            raise ConfigError(path, f"is for kind=fsq only, got {self.levels} with kind=kl")
        if self.kind is QuantizerKind.fsq:
            if not self.levels:
                raise ConfigError(path, "is required for kind=fsq, for example [8, 8, 8, 8]")
            if min(self.levels) < 2:
                raise ConfigError(path, f"must all be at least 2, got {self.levels}")
            if math.prod(self.levels) > 2**24:
                # Above this, float32 no longer holds every index exactly.
                raise ConfigError(path, f"must have a product of at most 2**24, got {self.levels}")


@dataclass(kw_only=True, slots=True)
class PublishedMetrics:
    """Quality that the authors of VidTok state for a model; it decides nothing here.

    On the 30 videos of MCL-JCV at 30 frames per second and 256 x 256 pixels: v1.0 in clips of 17
    (non-causal: 16) frames, v1.1 whole videos in chunks with overlap.
    """

    psnr: float
    """dB, higher is better."""
    ssim: float
    """Up to 1."""
    lpips: float
    """Lower is better."""
    fvd: float
    """Lower is better."""


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """One video autoencoder of the VidTok family (arXiv 2412.13061).

    Levels are counted from the pixels: level i has ``ch * ch_mult[i]`` channels.
    """

    name: str
    """Our name, which is that of the YAML file."""
    quantizer: QuantizerConfig
    """What turns latents into tokens."""
    official: str | None = None
    """Name of the published configuration; null for our own."""
    checkpoint_file: str | None = None
    """Name of the published file with the weights, of our own configurations of that in
    tokenizer/weights; null where there is none."""
    published: PublishedMetrics | None = None
    """Published quality; null where none is stated."""
    default_checkpoint: str | None = None
    """Checkpoint to use when none is given; null: one must be given."""
    is_causal: bool = True
    """True: no latent depends on later frames than its own."""
    version: Version = Version.v1_0
    """Generation of the model; v1_1 exists as causal only."""
    ch: int = 128
    """Base number of channels."""
    ch_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    """Channel factor of each level."""
    num_res_blocks: int = 2
    """Residual units per encoder level; the decoder has one more."""
    z_channels: int | None = None
    """Latent channels; null: one per FSQ level. Required for kl."""
    spatial_ds: list[int] | None = None
    """Encoder levels that halve height and width; null: all but the last."""
    tempo_ds: list[int] | None = None
    """Encoder levels that halve time, among spatial_ds; null: the two before the last."""
    spatial_us: list[int] | None = None
    """Decoder levels that double height and width; null: all but the first."""
    tempo_us: list[int] | None = None
    """Decoder levels that double time, among spatial_us; null: levels 1 and 2."""
    time_downsample_factor: int = 4
    """Frames per latent frame: 2 ** len(tempo_ds)."""
    norm: NormKind = NormKind.layernorm
    """Kind of normalisation."""
    init_pad_mode: PadMode = PadMode.replicate
    """Front padding of clips whose length does not fit (causal models only)."""
    clip_frames: int = 17
    """Clip length that the model was trained with."""
    resolution: int = 256
    """Height and width that the model is meant for."""

    def __post_init__(self) -> None:
        for key in ("ch", "num_res_blocks", "time_downsample_factor", "clip_frames", "resolution"):
            if getattr(self, key) < 1:
                raise ConfigError(f"tokenizer.{key}", f"must be positive, got {getattr(self, key)}")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ConfigError("tokenizer.ch_mult", f"must be positive, got {self.ch_mult}")
        if self.version is Version.v1_1 and not self.is_causal:
            raise ConfigError("tokenizer.is_causal", "must be true for version=v1_1")
        if self.norm is NormKind.groupnorm and self.ch % 32:
            raise ConfigError("tokenizer.ch", f"must be a multiple of 32 for groupnorm: {self.ch}")
        self._check_latent_channels()
        self._check_levels("ds", self.spatial_levels_down, self.time_levels_down)
        self._check_levels("us", self.spatial_levels_up, self.time_levels_up)
        if len(self.spatial_levels_down) != len(self.spatial_levels_up):
            raise ConfigError(
                "tokenizer.spatial_us",
                f"must have as many levels as spatial_ds {list(self.spatial_levels_down)}, "
                f"got {list(self.spatial_levels_up)}",
            )

    def _check_latent_channels(self) -> None:
        levels = self.quantizer.levels
        if self.quantizer.kind is QuantizerKind.fsq:
            if self.z_channels not in (None, len(levels)):
                raise ConfigError(
                    "tokenizer.z_channels",
                    f"must equal the number of quantizer.levels ({len(levels)}), "
                    f"got {self.z_channels}",
                )
        elif self.z_channels is None or self.z_channels < 1:
            raise ConfigError("tokenizer.z_channels", "must be given and positive for kind=kl")

    def _check_levels(self, suffix: str, spatial: tuple[int, ...], tempo: tuple[int, ...]) -> None:
        # The published network only visits a temporal resampling at a level with a spatial one.
        known = range(len(self.ch_mult))
        for key, levels, allowed in (
            (f"spatial_{suffix}", spatial, tuple(known)),
            (f"tempo_{suffix}", tempo, spatial),
        ):
            if len(set(levels)) != len(levels) or not set(levels) <= set(allowed):
                raise ConfigError(
                    f"tokenizer.{key}",
                    f"must be distinct levels out of {list(allowed)}, got {list(levels)}",
                )
        if 2 ** len(tempo) != self.time_downsample_factor:
            raise ConfigError(
                "tokenizer.time_downsample_factor",
                f"must be 2 ** len(tempo_{suffix}) = {2 ** len(tempo)}, "
                f"got {self.time_downsample_factor}",
            )

    @property
    def spatial_levels_down(self) -> tuple[int, ...]:
        """Encoder levels that halve height and width."""
        if self.spatial_ds is not None:
            return tuple(self.spatial_ds)
        return tuple(range(len(self.ch_mult) - 1))

    @property
    def time_levels_down(self) -> tuple[int, ...]:
        """Encoder levels that halve time."""
        if self.tempo_ds is not None:
            return tuple(self.tempo_ds)
        return (len(self.ch_mult) - 2, len(self.ch_mult) - 3)

    @property
    def spatial_levels_up(self) -> tuple[int, ...]:
        """Decoder levels that double height and width."""
        if self.spatial_us is not None:
            return tuple(self.spatial_us)
        return tuple(range(1, len(self.ch_mult)))

    @property
    def time_levels_up(self) -> tuple[int, ...]:
        """Decoder levels that double time; 1 and 2 whatever the depth, as published."""
        return (1, 2) if self.tempo_us is None else tuple(self.tempo_us)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent: z_channels, or the number of FSQ levels."""
        return len(self.quantizer.levels) if self.z_channels is None else self.z_channels

    @property
    def double_z(self) -> bool:
        """Whether the encoder puts out two values per latent channel (mean and log-variance)."""
        return self.quantizer.kind is QuantizerKind.kl

    @property
    def stride(self) -> tuple[int, int, int]:
        """Input frames, rows and columns per latent frame, row and column."""
        space = 2 ** len(self.spatial_levels_down)
        return self.time_downsample_factor, space, space

    @property
    def codebook_size(self) -> int | None:
        """Number of different tokens; None for a continuous model."""
        if self.quantizer.kind is QuantizerKind.kl:
            return None
        return math.prod(self.quantizer.levels)

    @property
    def checkpoint_url(self) -> str | None:
        """Where the published weights lie, or those shipped here; None where there are none."""
        if self.checkpoint_file is None:
            return None
        if self.official is None:
            return str(WEIGHTS / self.checkpoint_file)
        folder = "checkpoints" if self.version is Version.v1_0 else "checkpoints/vidtok_v1_1"
        return f"hf://microsoft/VidTok/{folder}/{self.checkpoint_file}"

    @property
    def dropped_frames(self) -> int:
        """Frames at the start of a clip that the decoder makes and drops."""
        is_dropping = self.is_causal and self.version is Version.v1_0
        return self.time_downsample_factor - 1 if is_dropping else 0

    def front_padding(self, num_frames: int, *, is_first: bool = True) -> int:
        """Frames that the encoder puts before a clip of this length; 0 where the length fits.

        Args:
            num_frames: length of the clip, or of one chunk of a stream.
            is_first: False for a later chunk of a stream.

        >>> from tokenizer import get_config
        >>> [get_config("fsq_4x8x8").front_padding(n) for n in (16, 17, 18)]
        [0, 3, 3]
        >>> [get_config("fsq_4x8x8").front_padding(n, is_first=False) for n in (16, 17, 18)]
        [0, 3, 2]
        """
        factor = self.time_downsample_factor
        rest = num_frames % factor
        if not self.is_causal or rest == 0:
            return 0
        # v1.0 always adds factor - 1 frames, whatever is missing: the weights were trained so.
        if self.version is Version.v1_0 and is_first:
            return factor - 1
        return factor - rest

    def latent_shape(
        self, num_frames: int, height: int, width: int, *, is_first: bool = True
    ) -> tuple[int, int, int]:
        """Shape [t, h, w] of the tokens of one clip of num_frames x height x width.

        Rows, columns and (after front padding) frames that do not fill a stride are dropped.
        ``is_first=False`` is for the later chunks of a stream.

        Raises:
            ShapeError: nothing would be left.
        """
        time, rows, columns = self.stride
        shape = (
            (num_frames + self.front_padding(num_frames, is_first=is_first)) // time,
            height // rows,
            width // columns,
        )
        if min(num_frames, *shape) < 1:
            least = (
                f"at least {1 if self.is_causal else time}x{rows}x{columns} frames x rows x columns"
            )
            raise ShapeError("clip", least, f"{num_frames}x{height}x{width}")
        return shape

    def decoded_frames(self, num_latent_frames: int) -> int:
        """Frames that ``decode`` gives for this many latent frames."""
        return num_latent_frames * self.time_downsample_factor - self.dropped_frames

    def state_bytes(self, height: int, width: int, precision: Precision = Precision.fp32) -> int:
        """Memory that one stream of height x width takes between two chunks while encoding."""
        from tokenizer.cost import state_bytes  # not above: it needs this file

        return state_bytes(self, height, width, precision)

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Refuse clip sizes that the model would silently lengthen or cut.

        For the place where a run is composed; ``encode`` itself takes what the published model
        takes.

        Raises:
            ShapeError: num_frames is not 1 + k * t (causal) or k * t, or a size is no multiple of
                its stride.
        """
        self.token_spec.check_clip(num_frames, height, width)

    @property
    def token_spec(self) -> TokenSpec:
        """What the pipeline is told of the tokens."""
        is_kl = self.quantizer.kind is QuantizerKind.kl
        fields = {name: getattr(self, name) for name in TokenizerConfig.__dataclass_fields__}
        return TokenSpec(
            name=self.name,
            stride=self.stride,
            first_frames=1 if self.is_causal else 0,
            clip_frames=self.clip_frames,
            resolution=self.resolution,
            codebook_size=self.codebook_size,
            levels=tuple(self.quantizer.levels),
            channels=self.latent_channels if is_kl else None,
            has_log_variance=is_kl,
            can_stream=self.is_causal,
            fingerprint={
                # a field that a later version adds is null here, and changes no token
                name: asdict(value) if isinstance(value, QuantizerConfig) else value
                for name, value in fields.items()
                if name not in _NOT_THE_MODEL and value is not None
            },
        )
