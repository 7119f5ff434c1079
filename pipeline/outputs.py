"""``outputs=[{…}, {…}]``: several outputs of one decoding pass, each configured like a run.

An entry says what differs from the rest of the command line: its tokenizer, its resolution and
rates, its variant. Its OUT holds what a run of this entry alone would write, and can be continued
by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline import compose
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.suggest import nearest
from pipeline.sweep_places import place_part

SHORT_KEYS = {
    "resolution": "sampling.resolution",
    "buckets": "sampling.buckets",
    "fps": "sampling.fps",
    "mode": "sampling.mode",
    "variant": "sampling.variant",
    "root": "output.root",
}
"""Keys of an entry, and what they stand for; ``tokenizer`` and ``name`` are its others."""

OWN_SECTIONS = ("tokenizer", "sampling", "encoder", "output", "quality")
"""Sections whose keys an entry may give with their section; others are of the whole run."""

FREE_FORM = (r"tokenizer\.options", r"output\.storage_options")
"""Among them, keys that hold whatever is given."""

OF_THE_PROCESS = ("device", "threads", "decoders")
"""Keys of ``encoder`` that no entry has for itself: one process serves all outputs."""

MOST = 16
"""Outputs of a run: each has a model of its own in the memory of every worker."""


def runs_of(config: DictConfig, arguments: Sequence[str]) -> list[RunConfig]:
    """The configuration of every output that a command line asks for.

    Args:
        config: what it composes.
        arguments: the command line with its paths quoted.

    Raises:
        ConfigError: a value or a combination that cannot work; the message names the output.
    """
    if config.outputs is None:
        return [compose.to_run_config(config)]
    entries = OmegaConf.to_container(config.outputs) if OmegaConf.is_list(config.outputs) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST:
        raise ConfigError(
            f"outputs must be a list of 1 to {MOST} entries like "
            "[{tokenizer: fsq_4x8x8, fps: [3,8]}, {tokenizer: kl_4x8x8_4chn}], "
            f"got {config.outputs!r}"
        )
    overrides, config_dir = compose.overrides_of(arguments)
    runs = []
    for number, entry in enumerate(entries):
        try:
            runs.append(_run_of(entry, overrides, config_dir))
        except ConfigError as error:
            raise ConfigError(f"outputs[{number}]: {error}") from error
    _check_places(runs)
    _check_process(runs)
    return runs


def _run_of(entry: Any, overrides: Sequence[str], config_dir: str | None) -> RunConfig:
    """What an entry composes, on top of the command line."""
    if not isinstance(entry, dict) or not entry:
        given = "an empty one" if entry == {} else repr(entry)
        raise ConfigError(f"an entry like {{tokenizer: fsq_4x8x8}} is needed, got {given}")
    own = dict(entry)
    name = str(own.pop("name", None) or name_of(entry))
    tokenizer = own.pop("tokenizer", None)
    lines = [line for line in overrides if not re.match(r"\+{0,2}outputs=", line)]
    if tokenizer is not None:
        lines = [line for line in lines if not re.match(r"\+?tokenizer=", line)]
        lines.append(f"{'' if _has_tokenizer(lines, config_dir) else '+'}tokenizer={tokenizer}")
    keys = _keys(own)
    if "output.root" not in keys and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+,-]*", name):
        raise ConfigError(f"name must be letters, digits and ._=+,- only, got {name!r}")
    lines += ["outputs=null", *(f"{_plus(key)}{key}={spelled(own[keys[key]])}" for key in keys)]
    config = compose.compose_overrides(lines, config_dir)
    compose.require_groups(config)
    compose.check_root(config.output.root)
    if "output.root" not in keys:
        usual = f"outputs/{config.dataset.name}/{config.tokenizer.name}"
        root = config.output.root
        place = f"{f'outputs/{config.dataset.name}' if root == usual else root}/{name}"
        lines.append(f"output.root={spelled(place)}")
        config = compose.compose_overrides(lines, config_dir)
    return compose.to_run_config(config)


def name_of(entry: Mapping[str, Any]) -> str:
    """What an entry is called unless it has a name: what it says, in letters that suit any storage.

    >>> name_of({"tokenizer": "fsq_4x8x8", "fps": [3, 8], "variant": "flip"})
    'fsq_4x8x8,fps=3+8,variant=flip'
    """
    parts = [str(entry["tokenizer"])] if "tokenizer" in entry else []
    for key, value in entry.items():
        if key not in ("tokenizer", "name", "root", "output.root"):
            parts.append(place_part(str(key), value))
    return ",".join(parts)


def spelled(value: Any) -> str:
    """A value in the grammar of Hydra's command line.

    >>> spelled([3, 8.5]), spelled(None), spelled(True), spelled("s3://b/{x}")
    ('[3,8.5]', 'null', 'true', '"s3://b/{x}"')
    """
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{spelled(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return compose.quote_paths([f"output.root={value}"])[0].removeprefix("output.root=")
    return json.dumps(value)


def _keys(entry: Mapping[Any, Any]) -> dict[str, Any]:
    """The configuration's name for each key of an entry -> the key as it is written there."""
    keys: dict[str, Any] = {}
    for key in entry:
        name = _key(key)
        if name in keys:
            raise ConfigError(f"{name} is given twice: as {keys[name]} and as {key}")
        keys[name] = key
    return keys


def _plus(key: str) -> str:
    """What Hydra needs in front of a key that no schema has."""
    return "++" if re.match(rf"(?:{'|'.join(FREE_FORM)})(?:\.|$)", key) else ""


def _key(key: Any) -> str:
    """The configuration's name for a key of an entry."""
    text = str(key)
    if text in SHORT_KEYS:
        return SHORT_KEYS[text]
    section, _, rest = text.partition(".")
    if rest and section in OWN_SECTIONS:
        return text
    hint = f"; {section} is of the whole run" if rest else ""
    if meant := nearest(text, ("name", "tokenizer", *SHORT_KEYS)):
        hint = f" (did you mean {meant}?)"
    raise ConfigError(
        f"no key {text!r} in an output{hint}; it takes name, tokenizer, {', '.join(SHORT_KEYS)}, "
        f"and keys of {', '.join(f'{one}.*' for one in OWN_SECTIONS)}"
    )


def _has_tokenizer(overrides: Sequence[str], config_dir: str | None) -> bool:
    """Whether something else on the command line, an experiment, chooses a tokenizer."""
    others = [line for line in overrides if not re.match(r"\+{0,2}tokenizer\.", line)]
    config = compose.compose_overrides([*others, "outputs=null"], config_dir)
    return not OmegaConf.is_missing(config, "tokenizer") and not OmegaConf.is_missing(
        config.tokenizer, "name"
    )


def _check_places(runs: Sequence[RunConfig]) -> None:
    """Whether every output has an OUT of its own.

    Raises:
        ConfigError: two of them have the same.
    """
    seen: dict[str, int] = {}
    for number, run in enumerate(runs):
        other = seen.setdefault(run.output.root.rstrip("/"), number)
        if other != number:
            raise ConfigError(
                f"outputs[{other}] and outputs[{number}] would both write to {run.output.root}: "
                "give one of them a name"
            )


def _check_process(runs: Sequence[RunConfig]) -> None:
    """Whether all outputs ask for the same process: torch's threads, a GPU, decoder children.

    Raises:
        ConfigError: they do not.
    """
    for name in OF_THE_PROCESS:
        if len({getattr(run.encoder, name) for run in runs}) > 1:
            raise ConfigError(
                f"encoder.{name} is of the process that serves all outputs: give it once, outside "
                "of outputs"
            )
