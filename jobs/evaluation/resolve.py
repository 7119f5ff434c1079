"""From a checked ``EvaluationConfig`` to what workers are told, and to the settings that count."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.evaluation.compose import as_run, mode_of
from jobs.evaluation.config import EvaluationConfig
from jobs.evaluation.records import JudgeSpec
from pipeline import resolve
from pipeline.chosen_tokenizer import checkpoint_path, model_config
from pipeline.errors import ConfigError
from tokenizer import CheckpointInfo, TokenizerConfig
from tokenizer.fetch import file_digest


def judge_spec(config: EvaluationConfig) -> JudgeSpec:
    """What every worker is told; the device is chosen where it starts.

    Raises:
        ConfigError: a list of videos or a file that cannot be read.
    """
    section, tokenizer, run = config.evaluate, config.tokenizer, as_run(config)
    model = model_config(run)
    if not isinstance(model, TokenizerConfig):
        raise ConfigError(f"tokenizer {model.name} is a plugin; VidTok models only are judged")
    return JudgeSpec(
        tokenizer=model,
        checkpoint=checkpoint_path(run),
        seed=tokenizer.seed,
        precision=tokenizer.precision,
        device="cpu",
        threads=section.threads,
        mode=mode_of(config),
        fps=section.fps,
        size=section.resolution or tokenizer.resolution,
        lpips=section.lpips,
        lpips_weights=_file("lpips_weights", section.lpips_weights),
        i3d=_file("i3d", section.i3d),
        is_sampled=section.sample,
        num_pictures=section.pictures,
        videos=video_names(section.videos),
        rules=resolve.read_rules(run),
        limits=resolve.video_limits(run),
        storage_options=dict(config.dataset.storage_options),
    )


def video_names(given: Any) -> tuple[str, ...] | None:
    """``evaluate.videos`` as names; None for all videos.

    Raises:
        ConfigError: neither a list of texts nor @FILE, an empty one, or a file that is not there.
    """
    if given is None:
        return None
    if isinstance(given, str) and given.startswith("@"):
        try:
            given = Path(given[1:]).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"evaluate.videos: cannot read the list: {error}") from error
        given = [line.strip() for line in given if line.strip()]
    if isinstance(given, str):
        given = [given]
    names = tuple(str(name) for name in given)
    if not names or any(isinstance(name, (dict, list)) for name in given):
        raise ConfigError(f"evaluate.videos must be a list of names or @FILE, got {given!r}")
    return names


def _file(field: str, path: str | None) -> str | None:
    """Absolute: workers have another working directory."""
    if path is None:
        return None
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise ConfigError(f"evaluate.{field}={path}: no such file")
    return str(found)


def settings_of(spec: JudgeSpec, weights: CheckpointInfo) -> dict[str, Any]:
    """Everything that a figure depends on, as plain values; files by their digests.

    What is read and what it may cost belong to it: they decide which videos are bad.
    """
    tokenizer = resolve.plain(asdict(spec.tokenizer))
    for key in ("official", "checkpoint_file", "published", "default_checkpoint", "resolution"):
        del tokenizer[key]
    return {
        "tokenizer": tokenizer,
        "checkpoint": weights.digest,
        "random_weights": weights.is_random,
        "precision": spec.precision.name,
        "evaluate": {
            "mode": spec.mode.name,
            "fps": spec.fps,
            "resolution": spec.size,
            "lpips": spec.lpips,
            "lpips_weights": _digest(spec.lpips_weights),
            "i3d": _digest(spec.i3d),
            "sample": spec.is_sampled,
            "pictures": spec.num_pictures,
            "videos": None if spec.videos is None else sorted(spec.videos),
        },
        "reading": {name: _sorted(value) for name, value in asdict(spec.rules).items()},
        "limits": asdict(spec.limits),
    }


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def _digest(path: str | None) -> str | None:
    return None if path is None else file_digest(Path(path))
