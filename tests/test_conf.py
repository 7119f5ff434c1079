"""Every configuration that ships composes, and tells the command line what it tells the library."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from pipeline import compose
from pipeline.chosen_tokenizer import model_config
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.resolve import identity, redacted
from tests.pipeline import runs
from tokenizer import get_config, list_tokenizers

CONF = Path(__file__).parent.parent / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (CONF / "dataset").glob("*.yaml"))
CLUSTERS = sorted(path.stem for path in (CONF / "cluster").glob("*.yaml"))
NEEDED = {
    "webvid": ["dataset.shards=/d/{0..3}.tar"],
    "tars": ["dataset.shards=s3://bucket/*.tar"],
    "folder": ["dataset.path=/d"],
    "images": ["dataset.shards=/d/*.tar"],
    "openvid": ["dataset.path=/d", "dataset.spans=/d/openvid.csv"],
    "panda70m": ["dataset.path=/d", "dataset.spans=/d/spans.csv"],
}
"""What a data set cannot do without."""


def composed(*overrides: str) -> DictConfig:
    compose.register_schema()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose("run", overrides=compose.quote_paths(overrides))


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_dataset_and_cluster_compose_with_a_tokenizer(dataset: str, cluster: str) -> None:
    run = runs.config(
        f"+dataset={dataset}",
        "+tokenizer=demo",
        f"cluster={cluster}",
        *NEEDED.get(dataset, []),
    )
    assert (run.dataset.name, run.cluster.kind.name) == (dataset, cluster)
    assert run.output.root == f"outputs/{dataset}/demo"


def assert_composes(dataset: str, tokenizer: str, cluster: str) -> None:
    choices = (f"+dataset={dataset}", f"+tokenizer={tokenizer}", f"cluster={cluster}")
    if dataset == "images" and not get_config(tokenizer).is_causal:
        with pytest.raises(ConfigError, match="an image is a clip of one frame"):
            runs.config(*choices, *NEEDED[dataset])
        return
    run = runs.config(*choices, *NEEDED.get(dataset, []))
    assert model_config(run) == get_config(tokenizer)
    assert (run.dataset.name, run.cluster.kind.name) == (dataset, cluster)
    assert run.output.root == f"outputs/{dataset}/{tokenizer}"


@pytest.mark.parametrize("tokenizer", list_tokenizers())
def test_the_command_line_and_the_library_see_the_same_tokenizer(tokenizer: str) -> None:
    number = list_tokenizers().index(tokenizer)
    dataset, cluster = DATASETS[number % len(DATASETS)], CLUSTERS[number % len(CLUSTERS)]
    assert_composes(dataset, tokenizer, cluster)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("tokenizer", list_tokenizers())
def test_everything_composes_with_everything(tokenizer: str, dataset: str, cluster: str) -> None:
    assert_composes(dataset, tokenizer, cluster)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_whole_run_with_an_out_of_its_own(name: str) -> None:
    chosen = OmegaConf.load(CONF / f"experiment/{name}.yaml")
    dataset = next(entry["/dataset"] for entry in chosen.defaults if "/dataset" in entry)
    run = runs.config(f"+experiment={name}", *NEEDED.get(dataset, []))
    assert run.dataset.name == dataset
    assert run.output.root == f"outputs/{name}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_it_needs(name: str) -> None:
    scope, *lines = (CONF / f"experiment/{name}.yaml").read_text().splitlines()
    assert scope == "# @package _global_"
    said = " ".join(line for line in lines if line.startswith("# "))
    chosen = OmegaConf.load(CONF / f"experiment/{name}.yaml")
    dataset = next(entry["/dataset"] for entry in chosen.defaults if "/dataset" in entry)
    for need in NEEDED.get(dataset, []):
        assert need.split("=")[0] in said


def test_an_experiment_is_changed_like_any_other_command() -> None:
    run = runs.config(
        "+experiment=smoke_test", "tokenizer=fsq_4x8x8", "cluster=local", "sampling.fps=[4]"
    )
    assert (run.tokenizer.name, run.cluster.kind.name) == ("fsq_4x8x8", "local")
    assert run.sampling.fps == [4.0]
    assert run.sampling.max_clips_per_video == 1


def test_a_second_choice_of_a_group_says_how_to_change_the_first() -> None:
    compose.register_schema()
    with pytest.raises(ConfigError, match="no plus: dataset=NAME"):
        compose.compose_overrides(["+experiment=smoke_test", "+dataset=tars"], None)
    with pytest.raises(ConfigError, match=r"pipeline\.run and pipeline\.plan"):
        compose.compose_overrides(["+experiment=smoke_test"], None, "evaluate")


def test_a_whole_run_under_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs.execute_here("+experiment=smoke_test", "encoder.threads=1", *runs.TINY[1:3]) == 0
    rows = runs.rows(tmp_path / "outputs/smoke_test").values()
    assert len(rows) == len({row["key"] for row in rows}) == 11


@pytest.mark.parametrize("path", sorted(CONF.glob("tokenizer/*.yaml")), ids=lambda path: path.stem)
def test_a_tokenizer_file_can_be_read_without_hydra(path: Path) -> None:
    values = OmegaConf.load(path)
    assert "defaults" not in values
    assert "_target_" not in str(values)
    assert "${" not in path.read_text()
    assert values.name == path.stem


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_file_begins_by_saying_what_it_is_for(path: Path) -> None:
    lines = path.read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))  # Hydra's, on top
    assert first.startswith("# ")
    assert len(first) > 20


def test_the_two_groups_to_choose_are_not_in_the_defaults_list() -> None:
    listed = OmegaConf.load(CONF / "run.yaml")["defaults"]
    named = [entry if isinstance(entry, str) else next(iter(entry)) for entry in listed]
    assert set(named).isdisjoint({"dataset", "tokenizer"})


def test_options_of_a_group_are_named_after_their_files() -> None:
    for path in CONF.glob("dataset/*.yaml"):
        assert OmegaConf.load(path).name == path.stem


def undocumented(source: Path) -> list[str]:
    """Fields of classes that have no docstring line under them; a section's class has its own."""
    found = []
    for node in ast.parse(source.read_text()).body:
        if not (isinstance(node, ast.ClassDef) and node.decorator_list):
            continue
        for field, below in itertools.pairwise([*node.body, ast.Pass()]):
            if not isinstance(field, ast.AnnAssign):
                continue
            is_said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            is_section = ast.unparse(field.annotation).endswith(("Config", "Section"))
            if not (is_said or (is_section and node.name == "RunConfig")):
                found.append(f"{node.name}.{ast.unparse(field.target)}")
    return found


@pytest.mark.parametrize("name", ["pipeline/config.py", "tokenizer/config.py"])
def test_every_field_has_a_line_that_says_what_it_means(name: str) -> None:
    assert undocumented(CONF.parent / name) == []


def test_nothing_of_the_schema_is_missing_from_the_printed_configuration() -> None:
    printed = composed("+dataset=demo", "+tokenizer=demo")
    for section in dataclasses.fields(RunConfig):
        assert section.name in printed


def test_the_list_of_shards_and_where_it_runs_are_not_in_the_fingerprint() -> None:
    here = runs.config("+dataset=tars", "dataset.shards=/a.tar", *runs.TINY, "cluster=inline")
    there = runs.config("+dataset=webvid", "dataset.shards=s3://b/*.tar", *runs.TINY, "cluster=ray")
    assert identity(here, "digest") == identity(there, "digest")


@pytest.mark.parametrize(
    "override",
    [
        "sampling.fps=[4]",
        "sampling.stride_frames=3",
        "sampling.clip_frames=21",
        "sampling.max_clips_per_video=1",
        "sampling.tail=pad",
        "sampling.resolution=40",
        "tokenizer.ch=16",
        "tokenizer.precision=bf16",
        "output.packing=plain",
        "dataset.caption_key=title",
    ],
)
def test_whatever_changes_a_row_changes_the_fingerprint(override: str) -> None:
    common = ("+dataset=tars", "dataset.shards=/a.tar", *runs.TINY)
    assert identity(runs.config(*common), "digest") != identity(
        runs.config(*common, override), "digest"
    )


def test_credentials_are_blotted_out_of_what_is_recorded() -> None:
    run = runs.config(
        "+dataset=tars",
        "dataset.shards=s3://b/a.tar",
        "+tokenizer=demo",
        "+dataset.storage_options.key=AKIAXXX",
        "+output.storage_options.secret=hush",
        "+output.storage_options.client_kwargs.aws_session_token=hush",
    )
    assert "AKIAXXX" not in str(redacted(run))
    assert "hush" not in str(redacted(run))
