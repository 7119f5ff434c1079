"""VidTok video tokenizers as a library: names to models, video to tokens and back.

The names below are loaded on first use: configurations can be listed and read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizer.checkpoint import (
        CheckpointInfo,
        checkpoint_digest,
        load_tokenizer,
        tensors_digest,
    )
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
    from tokenizer.plugin import AnyConfig, PluginConfig, open_tokenizer
    from tokenizer.protocol import Setting, Tokenizer, TokenSpec, check_tokens
    from tokenizer.registry import get_config, list_tokenizers
    from tokenizer.streaming import EncoderState
    from tokenizer.vidtok import VidTok

__all__ = [
    "AnyConfig",
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
    "PluginConfig",
    "Precision",
    "PublishedMetrics",
    "QuantizerConfig",
    "QuantizerKind",
    "RangeError",
    "Setting",
    "ShapeError",
    "TokenSpec",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerError",
    "UnknownName",
    "UnreadableCheckpoint",
    "Version",
    "VidTok",
    "VideoTokenizer",
    "WrongDigest",
    "build",
    "check_tokens",
    "checkpoint_digest",
    "decode_flops",
    "encode_flops",
    "get_config",
    "list_tokenizers",
    "load_tokenizer",
    "num_parameters",
    "open_tokenizer",
    "state_bytes",
    "tensors_digest",
]

_MODULES = {
    "checkpoint": ("CheckpointInfo", "checkpoint_digest", "load_tokenizer", "tensors_digest"),
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
    "plugin": ("AnyConfig", "PluginConfig", "open_tokenizer"),
    "protocol": ("Setting", "TokenSpec", "Tokenizer", "check_tokens"),
    "registry": ("get_config", "list_tokenizers"),
    "streaming": ("EncoderState",),
    "vidtok": ("VidTok",),
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
