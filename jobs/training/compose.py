"""From the command line to a checked ``TrainConfig``: the place of a training that knows Hydra."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

import pipeline.compose
from jobs.training.config import TrainConfig
from pipeline.compose import require_groups, to_dataclasses
from pipeline.errors import ConfigError

CHOSEN_GROUPS = pipeline.compose.CHOSEN_GROUPS | {"stage": "train.stage"}
"""Groups that the user must choose with a plus, and the key that each of them sets."""

TEXT_KEYS = ("train.run", "train.start", "lpips.weights")
"""Keys of a training whose values are paths."""


def register_schema() -> None:
    """Make ``train_schema`` known to Hydra."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def arguments() -> list[str]:
    """As ``pipeline.compose.arguments``, of a training."""
    return pipeline.compose.arguments(TEXT_KEYS)


def check_command(arguments: Sequence[str]) -> None:
    """As ``pipeline.compose.check_command``, of a training."""
    pipeline.compose.check_command(arguments, to_train_config, "train", CHOSEN_GROUPS)


def compose_overrides(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """What a command line composes, without Hydra's running anything.

    Args:
        overrides: with their paths quoted.
        config_dir: a further folder of options.

    Raises:
        ConfigError: an unknown group, option or key, a bad value, or nothing chosen.
    """
    config = pipeline.compose.compose_overrides(overrides, config_dir, "train")
    require_groups(config, CHOSEN_GROUPS)
    return config


def to_train_config(config: DictConfig) -> TrainConfig:
    """Dataclasses of a composed configuration.

    Raises:
        ConfigError: a value that cannot work, or no RUN.
    """
    require_groups(config, CHOSEN_GROUPS)
    if OmegaConf.is_missing(config.train, "run") or not config.train.run.strip():
        raise ConfigError("no run folder; add train.run=RUN, for example train.run=runs/one")
    train = to_dataclasses(config)
    assert isinstance(train, TrainConfig)
    return train
