"""Which tokenizer a run uses, and what follows from it: of the family, or a plugin."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from pipeline.config import Compression, Packing, RunConfig
from pipeline.errors import ConfigError
from pipeline.packing import index_packing
from pipeline.shards import normalise_url
from tokenizer import (
    AnyConfig,
    PluginConfig,
    Tokenizer,
    TokenizerConfig,
    TokenizerError,
    TokenSpec,
    open_tokenizer,
)


def model_config(run: RunConfig) -> AnyConfig:
    """The tokenizer's own fields, without the run's."""
    section = run.tokenizer
    if section.plugin is not None:
        return PluginConfig(name=section.name, plugin=section.plugin, options=dict(section.options))
    return TokenizerConfig(
        **{field.name: getattr(section, field.name) for field in fields(TokenizerConfig)}
    )


def tokenizer_of(run: RunConfig) -> Tokenizer:
    """The tokenizer, without its weights.

    Raises:
        ConfigError: a plugin that cannot be had, or does not keep the Protocol.
    """
    try:
        return open_tokenizer(
            model_config(run),
            checkpoint_path(run),
            seed=run.tokenizer.seed,
            precision=run.tokenizer.precision.name,
        )
    except TokenizerError as error:
        raise ConfigError(str(error)) from error


def token_spec(run: RunConfig) -> TokenSpec:
    """What is known of the tokens before there are weights."""
    return tokenizer_of(run).spec


def packing(run: RunConfig) -> str:
    """How ``tokens`` is packed."""
    size = token_spec(run).codebook_size
    if size is None:
        return run.output.latent_dtype.name
    return index_packing(size, plain=run.output.packing is Packing.plain)


def compression(run: RunConfig) -> str:
    """What is done to packed latents.

    Raises:
        ConfigError: asked for indices, which hold no more than they must already.
    """
    if run.output.compression is not Compression.none and token_spec(run).is_discrete:
        raise ConfigError(
            f"output.compression={run.output.compression.name} is for continuous tokenizers; "
            f"tokenizer {run.tokenizer.name} gives indices, which are stored in as many bits as "
            "they need: use output.compression=none"
        )
    return run.output.compression.name


def tokenizer_material(run: RunConfig) -> dict[str, Any]:
    """What the fingerprint has of the tokenizer besides its weights."""
    spec, section = token_spec(run), run.tokenizer
    if section.plugin is None:
        return dict(spec.fingerprint)
    not_the_model = ("clip_frames", "resolution", "can_stream")
    facts = {name: value for name, value in asdict(spec).items() if name not in not_the_model}
    return {**facts, "plugin": section.plugin, "options": dict(section.options)}


def checkpoint_path(run: RunConfig) -> str | None:
    """``tokenizer.checkpoint``, absolute: workers have another working directory."""
    checkpoint = run.tokenizer.checkpoint
    return checkpoint if checkpoint in (None, "random", "auto") else normalise_url(str(checkpoint))
