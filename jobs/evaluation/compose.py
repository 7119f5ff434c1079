"""From the command line to a checked ``EvaluationConfig``: the place here that knows Hydra."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

import pipeline.compose
from jobs.evaluation.config import EvaluationConfig
from pipeline.compose import (
    check_places,
    check_root,
    compose_overrides,
    quote_paths,
    require_groups,
    to_dataclasses,
)
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from tokenizer.config import Version
from tokenizer.evaluation import Mode

TEXT_KEYS = ("evaluate.i3d", "evaluate.lpips_weights", "evaluate.videos")
"""Keys of an evaluation whose values are paths, or @ and a path."""


def register_schema() -> None:
    """Make ``evaluate_schema`` known to Hydra."""
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluationConfig)


def arguments() -> list[str]:
    """As ``pipeline.compose.arguments``, of an evaluation."""
    return pipeline.compose.arguments(TEXT_KEYS)


def check_command(arguments: Sequence[str]) -> None:
    """As ``pipeline.compose.check_command``, of an evaluation."""
    pipeline.compose.check_command(arguments, to_evaluation, "evaluate")


def composed(overrides: Sequence[str]) -> EvaluationConfig:
    """The configuration of a command line, for programs.

    Raises:
        ConfigError: as ``to_evaluation``.
    """
    register_schema()
    quoted = quote_paths(overrides, TEXT_KEYS)
    return to_evaluation(compose_overrides(quoted, None, "evaluate"))


def to_evaluation(config: DictConfig) -> EvaluationConfig:
    """Dataclasses of a composed configuration, with every rule between sections checked.

    Raises:
        ConfigError: a value or a combination that cannot work.
    """
    require_groups(config)
    evaluation = to_dataclasses(config)
    assert isinstance(evaluation, EvaluationConfig)
    check_places(as_run(evaluation))
    check_root(evaluation.output.root)
    _check_model(evaluation)
    return evaluation


def as_run(evaluation: EvaluationConfig) -> RunConfig:
    """What an evaluation has in common with a run, for what only looks at that."""
    return RunConfig(
        dataset=evaluation.dataset,
        tokenizer=evaluation.tokenizer,
        limits=evaluation.limits,
        cluster=evaluation.cluster,
    )


def mode_of(evaluation: EvaluationConfig) -> Mode:
    """Clips or whole videos; as the model was published where nothing is said."""
    is_long = evaluation.tokenizer.version is Version.v1_1
    return evaluation.evaluate.mode or (Mode.whole if is_long else Mode.clips)


def _check_model(evaluation: EvaluationConfig) -> None:
    section, tokenizer = evaluation.evaluate, evaluation.tokenizer
    if mode_of(evaluation) is Mode.whole and not tokenizer.is_causal:
        raise ConfigError(
            f"evaluate.mode=whole: {tokenizer.name} is not causal, a video cannot be streamed "
            "through it; use evaluate.mode=clips"
        )
    size = section.resolution or tokenizer.resolution
    try:
        tokenizer.check_clip(tokenizer.clip_frames, size, size)
    except ValueError as error:
        raise ConfigError(
            f"evaluate.resolution does not suit tokenizer {tokenizer.name}: {error}"
        ) from error
