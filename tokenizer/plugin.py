"""Tokenizers of others: from the name of a factory to a tokenizer that keeps the Protocol.

``package.module:factory`` is imported; a name without a colon is an entry point that an installed
package declares::

    [project.entry-points."vidtok.tokenizers"]
    wan = "our_models.wan:WanVae"
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tokenizer.config import TokenizerConfig
from tokenizer.errors import ConfigError, TokenizerError
from tokenizer.protocol import Setting, Tokenizer, TokenSpec

if TYPE_CHECKING:
    from pathlib import Path

ENTRY_POINTS = "vidtok.tokenizers"
"""Group of the entry points."""
WANTED = "tokenizer.plugin"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """Which tokenizer, in place of a ``TokenizerConfig``."""

    name: str
    """Ours for it."""
    plugin: str
    """``package.module:factory``, or an entry point."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its own."""


AnyConfig = TokenizerConfig | PluginConfig
"""What names a tokenizer."""


def open_tokenizer(
    config: AnyConfig,
    checkpoint: str | Path | None = None,
    *,
    seed: int = 0,
    precision: str = "fp32",
    decoder: bool = False,
) -> Tokenizer:
    """A tokenizer that has read no weights yet.

    Args:
        config: of the family, or a plugin.
        checkpoint: as for ``load_tokenizer``; a plugin gets it as it is.
        seed: for random weights.
        precision: fp32, tf32 or bf16.
        decoder: whether ``load`` makes ``decode`` possible; plugins decide for themselves.

    Raises:
        ConfigError: no such plugin, one whose code fails, or that lacks what the Protocol wants.
        TokenizerError: what else a plugin raises of these.
    """
    source = None if checkpoint is None else str(checkpoint)
    if isinstance(config, TokenizerConfig):
        from tokenizer.vidtok import VidTok

        return VidTok(config, source, seed=seed, precision=precision, decoder=decoder)
    setting = Setting(
        name=config.name,
        checkpoint=source,
        seed=seed,
        precision=precision,
        options=dict(config.options),
    )
    made = _call(_factory(config.plugin), setting, config.plugin)
    _check_members(made, config.plugin)
    return cast(Tokenizer, made)


def _factory(plugin: str) -> Callable[[Setting], Any]:
    module, colon, name = plugin.partition(":")
    if not colon:
        return _entry_point(plugin)
    if not module or module.startswith("."):
        raise ConfigError(WANTED, f"{plugin!r} names no module: package.module:factory is needed")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            WANTED,
            f"{plugin}: cannot import {module}: {error}; install its package, or put its folder "
            "into PYTHONPATH (on every machine)",
        ) from error
    except Exception as error:  # it is somebody's code, which runs when it is imported
        raise ConfigError(WANTED, f"{plugin}: importing {module} failed: {_said(error)}") from error
    if not callable(made := getattr(found, name, None)):
        raise ConfigError(WANTED, f"{plugin}: module {module} has no function or class {name!r}")
    return cast("Callable[[Setting], Any]", made)


def _entry_point(name: str) -> Callable[[Setting], Any]:
    known = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in known:
        installed = ", ".join(sorted(known)) or "none"
        raise ConfigError(
            WANTED,
            f"{name!r} is neither package.module:factory nor an entry point of group "
            f"{ENTRY_POINTS}; installed are: {installed}",
        )
    try:
        return cast("Callable[[Setting], Any]", known[name].load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            WANTED, f"entry point {name} = {known[name].value}: {error}; reinstall its package"
        ) from error
    except Exception as error:
        raise ConfigError(
            WANTED, f"entry point {name} = {known[name].value}: importing failed: {_said(error)}"
        ) from error


def _call(factory: Callable[[Setting], Any], setting: Setting, plugin: str) -> Any:
    try:
        return factory(setting)
    except TokenizerError:
        raise  # it is one line already
    except Exception as error:  # somebody's code may raise anything
        raise ConfigError(
            WANTED,
            f"{plugin} cannot be made with options {dict(setting.options)}: {_said(error)}; "
            "it is called with one tokenizer.Setting",
        ) from error


def _said(error: Exception) -> str:
    """What is wrong, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _check_members(made: Any, plugin: str) -> None:
    methods = ["weights", "load", "encode"]
    spec = getattr(made, "spec", None)
    if not isinstance(spec, TokenSpec):
        kind = type(spec).__name__
        raise ConfigError(WANTED, f"{plugin}: its spec must be a tokenizer.TokenSpec, it is {kind}")
    if spec.can_stream:
        methods.append("encode_chunk")
    for name in methods:
        if not callable(getattr(made, name, None)):
            reason = ", which spec.can_stream promises" if name == "encode_chunk" else ""
            raise ConfigError(
                WANTED,
                f"{plugin}: {type(made).__name__} has no method {name}{reason}; "
                "tokenizer/protocol.py says what it does",
            )
