"""From the command line to a checked ``TrainConfig``: the place of a training that knows Hydra."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

import pipeline.compose
from jobs.training.config import TrainConfig
from pipeline.compose import options_of, quote_paths, to_dataclasses
from pipeline.errors import ConfigError

CHOSEN_GROUPS = {"dataset": "dataset.name", "tokenizer": "tokenizer.name", "stage": "train.stage"}
"""Groups that the user must choose with a plus, and the key that each of them sets."""

_TEXT_KEYS = re.compile(r"^(\+{0,2}(?:train\.(?:run|start)|lpips\.weights))=(.*)$")


def register_schema() -> None:
    """Make ``train_schema`` known to Hydra."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def arguments() -> list[str]:
    """The command line with its paths quoted; ``sys.argv`` is set to it, as Hydra reads that."""
    sys.argv[1:] = [_quoted(argument) for argument in quote_paths(sys.argv[1:])]
    return sys.argv[1:]


def _quoted(argument: str) -> str:
    match = _TEXT_KEYS.match(argument)
    if not match or not match[2] or match[2][0] in "[\"'" or match[2] == "null":
        return argument
    quoted = quote_paths([f"dataset.path={match[2]}"])[0].removeprefix("dataset.path=")
    return f"{match[1]}={quoted}"


def check_command(arguments: Sequence[str]) -> None:
    """Compose once, so that a mistake is answered in one line instead of Hydra's several.

    Raises:
        ConfigError: an unknown group, option or key, a bad value, or nothing chosen.
    """
    known, unknown = get_args_parser().parse_known_args(list(arguments))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; see --help")
    if known.help or known.hydra_help or known.info or known.multirun:
        return
    config = compose_overrides(known.overrides, known.config_dir)
    if not known.cfg:
        to_train_config(config)


def compose_overrides(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """What a command line composes, without Hydra's running anything.

    Args:
        overrides: with their paths quoted.
        config_dir: a further folder of options.

    Raises:
        ConfigError: an unknown group, option or key, a bad value, or nothing chosen.
    """
    config = pipeline.compose.compose_overrides(overrides, config_dir, "train")
    _require_groups(config)
    return config


def _require_groups(config: DictConfig) -> None:
    """Name what must be chosen and the options.

    Raises:
        ConfigError: ``+dataset``, ``+tokenizer`` or ``+stage`` is missing.
    """
    for group, key in CHOSEN_GROUPS.items():
        section, field = key.split(".")
        if OmegaConf.is_missing(config, section) or OmegaConf.is_missing(config[section], field):
            names = ", ".join(options_of(group))
            raise ConfigError(f"no {group} chosen; add +{group}=NAME, one of: {names}")


def to_train_config(config: DictConfig) -> TrainConfig:
    """Dataclasses of a composed configuration.

    Raises:
        ConfigError: a value that cannot work, or no RUN.
    """
    _require_groups(config)
    if OmegaConf.is_missing(config.train, "run"):
        raise ConfigError("no run folder; add train.run=RUN, for example train.run=runs/one")
    train = to_dataclasses(config)
    assert isinstance(train, TrainConfig)
    return train
