"""Weights: reads published files without running their code, checks and names them by digest."""

import hashlib
import logging
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from tokenizer.checks import parse_name
from tokenizer.config import Precision, TokenizerConfig
from tokenizer.errors import (
    BadWeights,
    CheckpointMismatch,
    MissingCheckpoint,
    UnreadableCheckpoint,
)
from tokenizer.fetch import fetch, without_secrets
from tokenizer.model import VideoTokenizer, make_quantizer
from tokenizer.registry import get_config, list_tokenizers

logger = logging.getLogger(__name__)

RANDOM = "random"
AUTO = "auto"
IGNORED_PREFIXES = ("loss.", "model_ema.")
"""Parts of a training checkpoint that encoding and decoding do not need."""

_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch's readers raise for files that are cut or of another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """Where the weights of a model come from."""

    source: str
    """Path or URL as given (``auto``: that of the published file), or ``random``."""
    digest: str
    """SHA-256 (hex) over the encoder and decoder tensors, equal for .ckpt and .safetensors."""
    num_ignored: int = 0
    """Tensors of the file that belong to training only."""
    is_random: bool = False
    """True for weights that were never trained."""
    seed: int | None = None
    """Seed of random weights; None for a file."""


def load_tokenizer(
    name: str | TokenizerConfig,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Precision | str = Precision.fp32,
    seed: int = 0,
    *,
    decoder: bool = True,
    **overrides: object,
) -> VideoTokenizer:
    """Model with its weights, in eval mode and not asking for gradients.

    To train it further, call ``requires_grad_(True)`` on it.

    Args:
        name: name of a tokenizer, or a complete configuration.
        checkpoint: path or URL of a .ckpt or .safetensors file, with or without
            ``@sha256:<hex>`` (see ``fetch``); "auto" for the published file; "random"; None takes
            ``config.default_checkpoint``.
        device: where the model shall be.
        precision: fp32, tf32 or bf16.
        seed: for random weights; the same seed gives the same weights in every process.
        decoder: False leaves the decoder out of the model; the whole file is checked all the same.
        overrides: fields of ``TokenizerConfig`` to replace, when a name is given.

    Raises:
        UnknownName: no such tokenizer, override or precision.
        ConfigError: overrides that contradict each other.
        CheckpointError: no checkpoint, or one that is out of reach, unreadable, for another
            model, or broken.
    """
    precision = parse_name("precision", precision, Precision)
    if isinstance(name, str):
        config = get_config(name, **overrides)
    elif overrides:
        raise TypeError("overrides go with the name of a tokenizer, not with a configuration")
    else:
        config = name
    tensors, info = _weights(config, checkpoint, seed)
    with torch.device("meta"):
        model = VideoTokenizer(config, decoder=decoder)
    kept = model.state_dict().keys()
    # Copied, so that the model does not depend on the mapped file.
    weights = {key: tensors[key].to(device, torch.float32, copy=True) for key in kept}
    model.load_state_dict(weights, assign=True)
    with torch.device("cpu"):
        model.quantizer = make_quantizer(config)
    model.checkpoint = info
    model.set_precision(precision)
    return model.to(device).eval().requires_grad_(False)


def checkpoint_digest(
    config: TokenizerConfig, checkpoint: str | Path | None = None, seed: int = 0
) -> CheckpointInfo:
    """Check a checkpoint and name it, as ``load_tokenizer`` would, without keeping a model.

    Raises:
        CheckpointError: no checkpoint, or one that is out of reach, unreadable, for another
            model, or broken.
    """
    return _weights(config, checkpoint, seed)[1]


def _weights(
    config: TokenizerConfig, checkpoint: str | Path | None, seed: int
) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Verified encoder and decoder tensors on the CPU, and where they come from."""
    source = str(checkpoint) if checkpoint is not None else config.default_checkpoint
    if source == AUTO:
        source = config.checkpoint_url
    if source is None:
        raise MissingCheckpoint(config.name, config.checkpoint_url)
    if source == RANDOM:
        tensors = _random_weights(config, seed)
        info = CheckpointInfo(
            source=RANDOM, digest=tensors_digest(tensors), is_random=True, seed=seed
        )
        logger.warning(
            "tokenizer %s has RANDOM weights (seed %d): for dry runs only", config.name, seed
        )
        return tensors, info
    path, source = fetch(source), without_secrets(source)
    every = read_tensors(path)
    ignored = [key for key in every if key.startswith(IGNORED_PREFIXES)]
    tensors = {key: tensor for key, tensor in every.items() if key not in set(ignored)}
    _check_fit(config, source, tensors)
    _check_values(source, tensors)
    info = CheckpointInfo(source=source, digest=tensors_digest(tensors), num_ignored=len(ignored))
    logger.info(
        "checkpoint %s: sha256 %s, ignored %d tensors of training",
        source,
        info.digest,
        len(ignored),
    )
    return tensors, info


def _random_weights(config: TokenizerConfig, seed: int) -> dict[str, Tensor]:
    # Only the CPU generator is used and restored; torch.manual_seed would also touch the GPU's.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return {key: value.detach() for key, value in VideoTokenizer(config).state_dict().items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by key, without executing anything that it holds.

    Raises:
        UnreadableCheckpoint: no such file, damaged, or of another format.
    """
    if not path.is_file():
        problem = "it is a folder" if path.is_dir() else "no such file"
        raise UnreadableCheckpoint(str(path), problem)
    if path.stat().st_size == 0:
        raise UnreadableCheckpoint(str(path), "the file is empty")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    tensors = {key.replace("_orig_mod.", ""): tensor for key, tensor in found.items()}
    if len(tensors) != len(found):
        raise UnreadableCheckpoint(str(path), "it holds compiled and plain copies of a tensor")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, *_DAMAGE) as error:
        problem = "the file is cut, damaged or no .safetensors"
        raise UnreadableCheckpoint(str(path), problem) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(2) not in (b"PK", b"\x80\x02"):
            raise UnreadableCheckpoint(
                str(path), "it is neither a torch checkpoint nor .safetensors"
            )
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise UnreadableCheckpoint(str(path), _pickle_problem(error)) from error
    except _DAMAGE as error:
        raise UnreadableCheckpoint(str(path), "the file is cut or damaged") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise UnreadableCheckpoint(str(path), "it holds no state dict")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UnreadableCheckpoint(str(path), f"entry {key!r} is of type {kind}, not a tensor")
    return dict(state)


def _pickle_problem(error: pickle.UnpicklingError) -> str:
    if "GLOBAL" in str(error) or "Unsupported class" in str(error):
        return (
            "it holds Python objects besides tensors, and loading them could run foreign code; "
            "where you trust it, save its 'state_dict' alone with torch.save or as .safetensors"
        )
    return "the file is cut or damaged"


def _shapes(config: TokenizerConfig) -> dict[str, list[int]]:
    """Published keys and shapes; nothing is allocated."""
    with torch.device("meta"):
        state = VideoTokenizer(config).state_dict()
    return {key: list(tensor.shape) for key, tensor in state.items()}


def _check_fit(config: TokenizerConfig, source: str, tensors: Mapping[str, Tensor]) -> None:
    expected = _shapes(config)
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    if expected == found:
        return
    raise CheckpointMismatch(
        source,
        config.name,
        [key for key in expected if key not in found],
        [key for key in found if key not in expected],
        [
            f"{key} {found[key]} instead of {shape}"
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
        [name for name in list_tokenizers() if _shapes(get_config(name)) == found],
    )


def _check_values(source: str, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise BadWeights(source, key, f"is {tensor.dtype}, not a float dtype")
        if not bool(torch.isfinite(tensor).all()):
            raise BadWeights(source, key, "holds NaN or infinity")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and values, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
