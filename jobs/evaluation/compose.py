"""From the command line to a checked ``EvaluationConfig``: the place here that knows Hydra."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from jobs.evaluation.config import EvaluationConfig
from pipeline.compose import (
    check_places,
    compose_overrides,
    quote_paths,
    require_groups,
    to_dataclasses,
)
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from tokenizer.config import Version
from tokenizer.evaluation import Mode

_TEXT_KEYS = re.compile(r"^evaluate\.(i3d|lpips_weights|videos)=(?=[^\[])")
_STAND_IN = "dataset.path="
"""A key whose values ``quote_paths`` quotes."""


def register_schema() -> None:
    """Make ``evaluate_schema`` known to Hydra."""
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluationConfig)


def arguments() -> list[str]:
    """The command line with its paths quoted; ``sys.argv`` is set to it, as Hydra reads that."""
    sys.argv[1:] = [_quoted(argument) for argument in quote_paths(sys.argv[1:])]
    return sys.argv[1:]


def _quoted(argument: str) -> str:
    match = _TEXT_KEYS.match(argument)
    if match is None:
        return argument
    (quoted,) = quote_paths([_STAND_IN + argument[match.end() :]])
    return match[0] + quoted.removeprefix(_STAND_IN)


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
    config = compose_overrides(known.overrides, known.config_dir, "evaluate")
    if known.cfg:
        require_groups(config)
    else:
        to_evaluation(config)


def composed(overrides: Sequence[str]) -> EvaluationConfig:
    """The configuration of a command line, for programs.

    Raises:
        ConfigError: as ``to_evaluation``.
    """
    register_schema()
    quoted = [_quoted(argument) for argument in quote_paths(overrides)]
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
