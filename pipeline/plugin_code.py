"""What goes wrong in the code of a plugin, told in one line: it may raise anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ConfigError, PipelineError
from tokenizer import AnyConfig, PluginConfig, TokenizerError


@contextmanager
def plugin_code(
    config: AnyConfig, call: str, *, besides: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Name the tokenizer and the call where a plugin's own code fails; the cause is chained.

    What a tokenizer of the family raises stays as it is: that code is this project's.

    Args:
        config: of the tokenizer.
        call: what is called, for the message.
        besides: errors that are not the code's, and pass.

    Raises:
        ConfigError: the plugin raised something.
    """
    try:
        yield
    except Exception as error:
        is_told = isinstance(error, (PipelineError, TokenizerError, *besides))
        if is_told or not isinstance(config, PluginConfig):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"tokenizer {config.name!r}: {call} failed: {said}") from error
