"""From the command line to a checked ``RunConfig``: the place that knows Hydra.

Cross-field rules that need more than one section are checked here, before anything is started.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.compose_errors import one_line
from pipeline.config import ChangedInputs, ClusterKind, DatasetKind, RunConfig
from pipeline.errors import ConfigError
from pipeline.resolve import clip_plan, shard_patterns
from pipeline.resolve_spans import check_spans
from pipeline.suggest import did_you_mean
from pipeline.sweep_places import own_places

CHOSEN_GROUPS = {"dataset": "dataset.name", "tokenizer": "tokenizer.name"}
"""Groups that the user must choose with a plus, and the key that each of them sets."""

TEXT_KEYS = (
    "dataset.shards",
    "dataset.path",
    "dataset.spans",
    "output.root",
    "tokenizer.checkpoint",
)
"""Keys whose values are paths or patterns."""


class _HydraOptions(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, not a page."""
        raise ConfigError(f"{message}; see --help")


def hydra_options() -> argparse.ArgumentParser:
    """Hydra's parser of a command line; raises ConfigError where its own prints a page."""
    return _HydraOptions(add_help=False, parents=[get_args_parser()])


def register_schema() -> None:
    """Make ``run_schema`` known to Hydra."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def quote_paths(arguments: Sequence[str], own_keys: Sequence[str] = ()) -> list[str]:
    """Quote paths and patterns, so that ``{0..9}`` and ``=`` in them are not Hydra's grammar.

    Args:
        arguments: a command line.
        own_keys: of the command, besides ``TEXT_KEYS``.

    >>> quote_paths(["dataset.shards=/d/{0..9}.tar", "sampling.fps=[3,8]"])
    ['dataset.shards="/d/{0..9}.tar"', 'sampling.fps=[3,8]']
    """
    keys = "|".join(re.escape(key) for key in (*TEXT_KEYS, *own_keys))
    quoted = []
    for argument in arguments:
        match = re.match(rf"^(\+{{0,2}}(?:{keys}))=(.*)$", argument)
        if match and match[2] and match[2][0] not in "[\"'" and match[2] not in ("null", "???"):
            argument = f"{match[1]}={_quoted(match[2])}"
        quoted.append(argument)
    return quoted


def _quoted(text: str) -> str:
    # between quotes a backslash stands for itself, unless a quote follows
    value = re.sub(r'(\\*)"', r'\1\1\\"', text)
    value += "\\" * (len(value) - len(value.rstrip("\\")))
    return f'"{value}"'


def check_command(
    arguments: Sequence[str],
    check: Callable[[DictConfig], object] | None = None,
    primary: str = "run",
    groups: Mapping[str, str] = CHOSEN_GROUPS,
) -> None:
    """Compose once, so that a mistake is answered in one line instead of Hydra's several.

    Args:
        arguments: with their paths quoted.
        check: of what is composed, raises ConfigError; None: ``to_run_config``.
        primary: the primary file of ``conf/``.
        groups: that must be chosen, as ``CHOSEN_GROUPS``.

    Raises:
        ConfigError: an unknown group, option or key, a bad value, or nothing chosen.
    """
    known, unknown = hydra_options().parse_known_args(list(arguments))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; see --help")
    if known.help or known.hydra_help or known.info or known.multirun:
        return
    config = compose_overrides(known.overrides, known.config_dir, primary)
    if known.cfg:
        require_groups(config, groups)
    else:
        (check or to_run_config)(config)


def jobs_of(arguments: Sequence[str], primary: str, out_key: str) -> list[list[str]]:
    """Command lines that ``--multirun`` stands for, each with an OUT of its own; else the one.

    Where jobs would write to the same place, the place gets a folder for each, named after what
    was swept: ``outputs/demo/demo/fps=3+8``.

    Args:
        arguments: with their paths quoted.
        primary: the primary file of ``conf/``.
        out_key: which key says where results go.

    Raises:
        ConfigError: something swept cannot be read or composed, or would be written nowhere.
    """
    # Keys may stand on either side of the flag; what is unknown is left for check_command.
    known, unknown = hydra_options().parse_known_intermixed_args(list(arguments))
    if not known.multirun or known.help or known.hydra_help or known.info:
        return [list(arguments)]
    try:
        with initialize_config_module("conf", version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            parsed = OverridesParser.create(loader).parse_overrides(known.overrides)
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
    except HydraException as error:
        raise ConfigError(one_line(error)) from error
    finally:
        GlobalHydra.instance().clear()
    swept = [item.get_key_element() for item in parsed if item.is_sweep_override()]
    configs = [compose_overrides(job, known.config_dir, primary) for job in jobs]
    roots = [str(OmegaConf.select(config, out_key)) for config in configs]
    for root in roots:
        check_root(root)
    places = own_places(roots, jobs, swept)
    flags = ["--config-dir", known.config_dir] if known.config_dir else []
    flags += ["--cfg", known.cfg] if known.cfg else []
    return [
        [*unknown, *flags, *job, *quote_paths([f"{out_key}={place}"])]
        for job, place in zip(jobs, places, strict=True)
    ]


def run_each(jobs: Sequence[Sequence[str]], run: Callable[[], None]) -> None:
    """Let Hydra run one command line after the other; ends with the first status that is not 0.

    Args:
        jobs: of ``jobs_of``, checked.
        run: reads ``sys.argv``. Ends with a number where a job is not whole, which stops no other,
            and with a line where nothing can go on.
    """
    status = 0
    for number, job in enumerate(jobs, 1):
        if len(jobs) > 1:
            print(f"job {number} of {len(jobs)}: {' '.join(job)}", flush=True)
        sys.argv[1:] = job
        try:
            run()
        except SystemExit as stop:
            if not isinstance(stop.code, int):
                raise
            status = status or stop.code
        GlobalHydra.instance().clear()
    if status:
        sys.exit(status)


def compose_overrides(
    overrides: Sequence[str], config_dir: str | None, primary: str = "run"
) -> DictConfig:
    """What a command line composes, without Hydra's running anything.

    Args:
        overrides: with their paths quoted.
        config_dir: a further folder of options.
        primary: the primary file of ``conf/``.

    Raises:
        ConfigError: an unknown group, option or key, or a bad value.
    """
    if primary != "run" and any(word.startswith("+experiment=") for word in overrides):
        raise ConfigError("+experiment is for python -m pipeline.run and pipeline.plan")
    if config_dir:
        raise_if_missing(config_dir)
        overrides = [*overrides, f"hydra.searchpath=[{_quoted(f'file://{config_dir}')}]"]
    GlobalHydra.instance().clear()  # a command that Hydra runs composes its outputs
    try:
        with initialize_config_module("conf", version_base="1.3"):
            return compose(primary, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        schema = OmegaConf.get_type(ConfigStore.instance().load(f"{primary}_schema.yaml").node)
        assert schema is not None
        text = one_line(error)
        missed = re.search(r"Missing mandatory value: (\w+)$", text)  # a key of what is not chosen
        if missed and missed[1] in groups():
            raise ConfigError(nothing_chosen(missed[1])) from error
        raise ConfigError(text + did_you_mean(text, overrides, schema, groups())) from error
    finally:
        GlobalHydra.instance().clear()


def raise_if_missing(directory: str) -> None:
    """Raises ConfigError when ``--config-dir`` does not exist."""
    if not Path(directory).is_dir():
        raise ConfigError(f"--config-dir {directory}: no such folder")


def groups() -> dict[str, str]:
    """Groups of options by name, as they are typed: ``cluster`` has a default, others a plus."""
    names = sorted(
        entry.name
        for entry in files("conf").iterdir()
        if entry.is_dir() and not entry.name.startswith("_")
    )
    return {name: name if name == "cluster" else f"+{name}" for name in names}


def options_of(group: str) -> list[str]:
    """Names of the options of a group that come with the project."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in (files("conf") / group).iterdir()
        if entry.name.endswith(".yaml")
    )


def overrides_of(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The overrides of a command line, and its ``--config-dir``."""
    known, _ = hydra_options().parse_known_args(list(arguments))
    return list(known.overrides), known.config_dir


def require_groups(config: DictConfig, groups: Mapping[str, str] = CHOSEN_GROUPS) -> None:
    """Name what must be chosen and the options.

    Raises:
        ConfigError: a group is missing.
    """
    for group, key in groups.items():
        section, field = key.split(".")
        if OmegaConf.is_missing(config, section) or OmegaConf.is_missing(config[section], field):
            raise ConfigError(nothing_chosen(group))


def nothing_chosen(group: str) -> str:
    """What to say where a group must be chosen and is not."""
    return f"no {group} chosen; add +{group}=NAME, one of: {', '.join(options_of(group))}"


def to_dataclasses(config: DictConfig) -> Any:
    """The dataclass that a composed configuration fills, its sections' rules checked.

    Raises:
        ConfigError: a bad value, or a key that is not known.
    """
    try:
        return OmegaConf.to_object(config)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(one_line(error)) from error
    except AttributeError as error:  # +section.key=value gets past Hydra
        schema = OmegaConf.get_type(config)
        assert schema is not None
        hint = did_you_mean(str(error), (), schema, groups())
        raise ConfigError(f"{error}; all keys are listed by --help{hint}") from error


def to_run_config(config: DictConfig) -> RunConfig:
    """Dataclasses of a composed configuration, with every rule between sections checked.

    Raises:
        ConfigError: a value or a combination that cannot work.
    """
    require_groups(config)
    run = to_dataclasses(config)
    assert isinstance(run, RunConfig)
    if run.outputs is not None:
        raise ConfigError("outputs is for python -m pipeline.run; give the keys of one entry here")
    check_places(run)
    clip_plan(run)
    check_spans(run)
    return run


def check_places(run: RunConfig) -> None:
    """Whether it is said where the videos, OUT and the cluster are.

    Raises:
        ConfigError: it is not.
    """
    dataset = run.dataset
    check_root(run.output.root)
    if dataset.kind is DatasetKind.tar and not shard_patterns(run):
        variable = " or the environment variable WEBVID_SHARDS" if dataset.name == "webvid" else ""
        raise ConfigError(
            f"dataset {dataset.name} has no shards: give dataset.shards=PATTERN{variable}, "
            "for example /data/{00000..00999}.tar, s3://bucket/*.tar or @list.txt"
        )
    if dataset.kind is DatasetKind.folder and not dataset.path:
        raise ConfigError("dataset folder has no path: give dataset.path=DIR")
    if run.cluster.kind is ClusterKind.ray and not run.cluster.address:
        raise ConfigError("cluster=ray needs cluster.address=HOST:PORT, or auto")
    check_ranks(run)


def check_root(root: str) -> None:
    """Whether OUT has a name: without one it would be the current folder.

    Raises:
        ConfigError: it has none.
    """
    if not root.strip():
        raise ConfigError("output.root is empty: give a path or URL")


def check_ranks(run: RunConfig) -> None:
    """Whether what is asked for goes with several processes that do not know of each other.

    Raises:
        ConfigError: it does not.
    """
    cluster = run.cluster
    if cluster.kind is not ClusterKind.array:
        if cluster.rank is not None or cluster.ranks is not None:
            raise ConfigError("cluster.rank and cluster.ranks are of cluster=array only")
        return
    if run.changed_inputs is ChangedInputs.redo:
        raise ConfigError(
            "changed_inputs=redo removes receipts, which cluster=array cannot do while other ranks "
            "write: run it once with cluster=inline or cluster=local"
        )
    if (cluster.num_workers or 1) > 1:
        raise ConfigError(
            f"cluster=array is one worker a process, got cluster.num_workers={cluster.num_workers}:"
            " start more ranks"
        )


def recorded_run(config: Mapping[str, Any]) -> RunConfig:
    """The configuration that ``run.json`` records.

    Raises:
        ConfigError: it is of a version of this code that has other fields.
    """
    try:
        # an OUT from before there was such a section has no such columns
        known = {"quality": {"columns": False}} | dict(config)
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), known)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration in run.json: {one_line(error)}") from error
    assert isinstance(merged, DictConfig)
    return to_run_config(merged)


def arguments(own_keys: Sequence[str] = ()) -> list[str]:
    """The command line with its paths quoted; ``sys.argv`` is set to it, as Hydra reads that."""
    sys.argv[1:] = quote_paths(sys.argv[1:], own_keys)
    return sys.argv[1:]
