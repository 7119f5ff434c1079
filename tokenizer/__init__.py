"""VidTok video tokenizers as a library: names to models, video to tokens and back.

The names below are loaded on first use: configurations can be listed and read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizer.checkpoint import CheckpointInfo, checkpoint_digest, load_tokenizer
    from tokenizer.config import (
        NormKind,
        PadMode,
        Precision,
        PublishedMetrics,
        QuantizerConfig,
        QuantizerKind,
        TokenizerConfig,
        Version,
    )
    from tokenizer.cost import decode_flops, encode_flops, num_parameters, state_bytes
    from tokenizer.errors import (
        BadWeights,
        CheckpointError,
        CheckpointMismatch,
        CheckpointUnavailable,
        ConfigError,
        DivergedTraining,
        DtypeError,
        IndexRangeError,
        InputError,
        MissingCheckpoint,
        MissingNetwork,
        MissingPart,
        NonFiniteError,
        RangeError,
        ShapeError,
        TokenizerError,
        UnknownName,
        UnreadableCheckpoint,
        WrongDigest,
    )
    from tokenizer.model import Encoded, VideoTokenizer, build
    from tokenizer.registry import get_config, list_tokenizers
    from tokenizer.streaming import EncoderState

__all__ = [
    "BadWeights",
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointMismatch",
    "CheckpointUnavailable",
    "ConfigError",
    "DivergedTraining",
    "DtypeError",
    "Encoded",
    "EncoderState",
    "IndexRangeError",
    "InputError",
    "MissingCheckpoint",
    "MissingNetwork",
    "MissingPart",
    "NonFiniteError",
    "NormKind",
    "PadMode",
    "Precision",
    "PublishedMetrics",
    "QuantizerConfig",
    "QuantizerKind",
    "RangeError",
    "ShapeError",
    "TokenizerConfig",
    "TokenizerError",
    "UnknownName",
    "UnreadableCheckpoint",
    "Version",
    "VideoTokenizer",
    "WrongDigest",
    "build",
    "checkpoint_digest",
    "decode_flops",
    "encode_flops",
    "get_config",
    "list_tokenizers",
    "load_tokenizer",
    "num_parameters",
    "state_bytes",
]

_MODULES = {
    "checkpoint": ("CheckpointInfo", "checkpoint_digest", "load_tokenizer"),
    "config": (
        "NormKind",
        "PadMode",
        "Precision",
        "PublishedMetrics",
        "QuantizerConfig",
        "QuantizerKind",
        "TokenizerConfig",
        "Version",
    ),
    "cost": ("decode_flops", "encode_flops", "num_parameters", "state_bytes"),
    "model": ("Encoded", "VideoTokenizer", "build"),
    "registry": ("get_config", "list_tokenizers"),
    "streaming": ("EncoderState",),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'tokenizer' has no attribute {name!r}")
    modules = (module for module, names in _MODULES.items() if name in names)
    # What is in none of these modules is an error class.
    value: object = getattr(import_module(f"tokenizer.{next(modules, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
