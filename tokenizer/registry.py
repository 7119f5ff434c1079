"""Names to configurations: reads ``conf/tokenizer/*.yaml`` without Hydra and without torch."""

import dataclasses
from importlib import resources
from importlib.resources.abc import Traversable
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokenizer.config import TokenizerConfig
from tokenizer.errors import ConfigError, UnknownName

PLUGIN = "plugin"
"""The file that stands for tokenizers of others, see ``plugin.py``."""


def list_tokenizers() -> list[str]:
    """Names of all tokenizers of the family, sorted: one per file in ``conf/tokenizer``."""
    names = (entry.name.removesuffix(".yaml") for entry in _folder().iterdir()
             if entry.name.endswith(".yaml"))  # fmt: skip
    return sorted(name for name in names if name != PLUGIN)


def get_config(name: str, **overrides: object) -> TokenizerConfig:
    """Configuration of a named tokenizer, with some fields replaced.

    >>> get_config("fsq_4x8x8", ch=16).stride
    (4, 8, 8)

    Args:
        name: one of ``list_tokenizers()``.
        overrides: fields of ``TokenizerConfig``; ``quantizer`` takes a dict with fields of
            ``QuantizerConfig``.

    Raises:
        UnknownName: no such tokenizer or field; the message lists near matches.
        ConfigError: a value of the wrong type, or fields that contradict each other.
    """
    known = list_tokenizers()
    if name not in known:
        raise UnknownName("tokenizer", name, known)
    fields = [field.name for field in dataclasses.fields(TokenizerConfig)]
    for key in overrides:
        if key not in fields:
            raise UnknownName("tokenizer field", key, fields)
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    node = OmegaConf.merge(OmegaConf.structured(TokenizerConfig), OmegaConf.create(text))
    for key, value in overrides.items():
        try:
            node = OmegaConf.merge(node, {key: value})
        except OmegaConfBaseException as error:
            problem = str(error).splitlines()[0]
            raise ConfigError(f"tokenizer.{key}", f"cannot be {value!r}: {problem}") from error
    return cast(TokenizerConfig, OmegaConf.to_object(node))


def _folder() -> Traversable:
    return resources.files("conf") / "tokenizer"
