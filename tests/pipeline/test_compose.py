"""A mistake on the command line: one line that says what is wrong and what would be right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pipeline import compose
from pipeline.errors import ConfigError, FingerprintMismatch, PipelineError
from pipeline.resolve import shard_patterns
from pipeline.run import main
from tests.pipeline import runs
from tokenizer import TokenizerError

DEMO = ("+dataset=demo", "+tokenizer=demo")


@pytest.fixture(autouse=True)
def _no_places_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEBVID_SHARDS", "OPENVID_TABLE", "PANDA70M_SPANS"):
        monkeypatch.delenv(name, raising=False)


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """What the command would print on standard error before it ends with status 1."""
    monkeypatch.setattr(sys, "argv", ["pipeline.run", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, str)  # printed by the interpreter, which then exits with 1
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""
    GlobalHydra.instance().clear()
    return stop.value.code


MISTAKES = [
    (
        [],
        "no dataset chosen; add +dataset=NAME, one of: demo, folder, images, openvid, ",
    ),
    (["+tokenizer=demo"], "no dataset chosen; add +dataset=NAME"),
    (["+dataset=demo"], "no tokenizer chosen; add +tokenizer=NAME, one of: demo, fsq_4x16x16, "),
    (["dataset.shards=/x.tar", "+tokenizer=demo"], "error: no dataset chosen; add +dataset=NAME"),
    (["+dataset=demo", "tokenizer.ch=8"], "error: no tokenizer chosen; add +tokenizer=NAME, one"),
    (["+dataset=nope", "+tokenizer=demo"], "'dataset/nope' Available options in 'dataset': demo"),
    (["+dataset=demo", "+tokenizer=nope"], "'tokenizer': demo fsq_4x16x16"),
    ([*DEMO, "cluster=nope"], "Available options in 'cluster': array inline local ray"),
    (["dataset=demo", "+tokenizer=demo"], "use +dataset=demo"),
    ([*DEMO, "sampling.fsp=[3]"], "Key 'fsp' not in 'SamplingConfig'"),
    ([*DEMO, "+sampling.fsp=[3]"], "'SamplingConfig' object has no attribute 'fsp'; all keys"),
    ([*DEMO, "samplng.fps=[3]"], "Key 'samplng' not in 'RunConfig'"),
    ([*DEMO, "sampling.fps=3"], "error: sampling.fps=3: a list is needed: sampling.fps=[3]"),
    (
        [*DEMO, "tokenizer.quantizer.levels='8 8'"],
        "error: tokenizer.quantizer.levels='8 8': a list is needed: tokenizer.quantizer.levels=['8",
    ),
    ([*DEMO, "sampling.fps=[0]"], "sampling.fps must be a list of rates in (0, 1000], got [0.0]"),
    ([*DEMO, "sampling.fps=[8,8]"], "sampling.fps names a rate twice: [8.0, 8.0]"),
    ([*DEMO, "sampling.fps=[8"], "'[8'"),
    ([*DEMO, "sampling.tail=keep"], "'keep', expected one of [drop, pad]"),
    (
        [*DEMO, "sampling.variant=mirror"],
        "'mirror', expected one of [none, flip, crop_start, crop_end, flip_crop_start, ",
    ),
    ([*DEMO, "commit.max_clips=many"], "commit.max_clips=many: Value 'many'"),
    ([*DEMO, "commit.max_clips=0"], "commit.max_clips and commit.max_seconds must be positive"),
    ([*DEMO, "encoder.batch_clips=0"], "encoder.batch_clips must be at least 1, got 0"),
    ([*DEMO, "cluster.open_shards=0"], "cluster.open_shards must be at least 1, got 0"),
    ([*DEMO, "cluster.cpus_per_worker=0"], "cluster.cpus_per_worker must be positive, got 0.0"),
    ([*DEMO, "output.row_group_rows=0"], "output.row_group_rows must be at least 1, got 0"),
    ([*DEMO, "output.row_group_bytes=0"], "output.row_group_bytes must be at least 1, got 0"),
    ([*DEMO, "output.compression=planes"], "output.compression=planes is for continuous"),
    ([*DEMO, "limits.range_bytes=0"], "limits.range_bytes must be above 0, got 0"),
    ([*DEMO, "output.root="], "error: output.root is empty: give a path or URL"),
    ([*DEMO, "output.root=' '"], "error: output.root is empty: give a path or URL"),
    ([*DEMO, "--multirun", "sampling.fps=[3],[8]", "output.root="], "error: output.root is empty"),
    ([*DEMO, "--frobnicate"], "unknown option --frobnicate; see --help"),
    ([*DEMO, "frobnicate"], "frobnicate"),
    ([*DEMO, "--cfg", "foo"], "argument --cfg/-c: invalid choice: 'foo' (choose from 'job'"),
    ([*DEMO, "--cfg"], "argument --cfg/-c: expected one argument; see --help"),
    ([*DEMO, "--config-dir"], "argument --config-dir/-cd: expected one argument; see --help"),
    (["+dataset=webvid", "+tokenizer=demo"], "environment variable WEBVID_SHARDS"),
    (
        ["+dataset=panda70m", "dataset.path=/d", "+tokenizer=demo"],
        "dataset panda70m has no table of spans: give dataset.spans=TABLE or the environment "
        "variable PANDA70M_SPANS; +dataset=folder takes whole videos without one",
    ),
    (
        ["+dataset=openvid", "dataset.path=/d", "+tokenizer=demo"],
        "give dataset.spans=TABLE or the environment variable OPENVID_TABLE",
    ),
    (["+dataset=tars", "+tokenizer=demo"], "dataset tars has no shards: give dataset.shards="),
    (["+dataset=tars", "dataset.shards=[1,2]", "+tokenizer=demo"], "got [1, 2]"),
    (["+dataset=folder", "+tokenizer=demo"], "give dataset.path=DIR"),
    ([*DEMO, "sampling.clip_frames=16"], "expected 1 + k*4 frames"),
    ([*DEMO, "sampling.resolution=100"], "height a multiple of 8"),
    ([*DEMO, "tokenizer.quantizer.levels=[]"], "tokenizer.quantizer.levels is required"),
    ([*DEMO, "cluster=ray", "cluster.address=null"], "needs cluster.address=HOST:PORT"),
    (["--config-dir", "no/such", *DEMO], "--config-dir no/such: no such folder"),
]


@pytest.mark.parametrize(("arguments", "text"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = said(monkeypatch, capsys, *arguments)
    assert line.startswith("error: ")
    assert "\n" not in line
    assert "provider=" not in line  # Hydra's search path
    assert "To append to your config" not in line  # no key of ours can be appended
    assert text in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["+tokenizer=fsq_4x8x8", "tokenizer.checkpoint=no/such.ckpt"], "no/such.ckpt: no such"),
        (["dataset.shards=no/*.tar"], "dataset.shards: nothing matches '"),
        (["dataset.shards=no/{0..3}.tar"], "none of 4 shards is there: "),
        (["dataset.shards=@no.txt"], "dataset.shards: cannot read the list "),
        (["dataset.shards=no/{0..}}.tar"], "dataset.shards: cannot expand "),
        (["dataset.shards=pipe:cat x.tar"], "pipe: commands are not run"),
        (["dataset=folder", "dataset.path=no such"], "dataset.path=no such: no such folder"),
        (["dataset=folder", "dataset.path=."], "no video there (endings looked for: 3gp, avi"),
        (["output.root=memory://out"], "no safe commit on this storage"),
        (["output.root=file.txt"], "file.txt cannot be written: "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_line_before_anything_is_written(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("not a folder")
    tokenizer = [] if "+tokenizer" in arguments[0] else ["+tokenizer=demo"]
    with pytest.raises((PipelineError, TokenizerError)) as refusal:
        runs.execute_here("+dataset=tars", "dataset.shards=x.tar", *tokenizer, *arguments)
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dataset.shards=/x/{0..3}.tar", "/x/{0..3}.tar"),
        ("dataset.shards=/x/{00..10}/a,b {c}.tar", "/x/{00..10}/a,b {c}.tar"),
        ("dataset.shards=/x/day=1/my videos.tar", "/x/day=1/my videos.tar"),
        ("dataset.shards=s3://bucket/*.tar", "s3://bucket/*.tar"),
        ("dataset.shards=@list.txt", "@list.txt"),
        ('dataset.shards=/x/it\'s "one".tar', '/x/it\'s "one".tar'),
        ("dataset.shards='/x/{0..3}.tar'", "/x/{0..3}.tar"),
        ('dataset.shards="/x/{0..3}.tar"', "/x/{0..3}.tar"),
        ("dataset.shards=/x\\y/\\\\$HOME.tar", "/x\\y/\\\\$HOME.tar"),
        ('dataset.shards=/x\\"y/\\', '/x\\"y/\\'),
    ],
)
def test_a_path_or_pattern_needs_no_quotes(argument: str, value: str) -> None:
    run = runs.config("+dataset=tars", argument, "+tokenizer=demo")
    assert shard_patterns(run) == [value]


def test_several_patterns_are_a_list() -> None:
    run = runs.config("+dataset=tars", 'dataset.shards=["/a/{0..1}.tar",/b.tar]', "+tokenizer=demo")
    assert shard_patterns(run) == ["/a/{0..1}.tar", "/b.tar"]


def test_an_output_root_may_hold_an_equals_sign_and_spaces() -> None:
    run = runs.config(*DEMO, "output.root=/out/run=3 of {4}")
    assert run.output.root == "/out/run=3 of {4}"


@pytest.mark.parametrize("place", ["/d/date=2024-01-01/s.parquet", "s3://b/my {0..3}, b.csv"])
@pytest.mark.parametrize("key", ["dataset.spans", "dataset.path", "tokenizer.checkpoint"])
def test_a_value_that_is_a_place_needs_no_quotes(key: str, place: str) -> None:
    composed = compose.compose_overrides(compose.quote_paths([*DEMO, f"{key}={place}"]), None)
    assert OmegaConf.select(composed, key) == place


def test_shards_of_webvid_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBVID_SHARDS", "/data/webvid/{0..9}.tar")
    run = runs.config("+dataset=webvid", "+tokenizer=demo")
    assert shard_patterns(run) == ["/data/webvid/{0..9}.tar"]


def test_what_the_tokenizer_wants_stands_in_for_null() -> None:
    run = runs.config("+dataset=demo", "+tokenizer=fsq_4x8x8_noncausal")
    plan = compose.clip_plan(run)
    assert (plan.clip_frames, plan.stride_frames, plan.buckets) == (16, 16, ((256, 256),))


def test_a_value_on_the_command_line_beats_the_file() -> None:
    run = runs.config("+dataset=webvid", "dataset.name=mine", "dataset.shards=/a", *runs.TINY)
    assert (run.dataset.name, run.tokenizer.ch, run.sampling.resolution) == ("mine", 8, 32)


@pytest.mark.parametrize("name", ["conf", "a,b (1)", 'it\'s ["x"]\\'])
def test_a_users_own_data_set_needs_no_change_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_conf/dataset").mkdir(parents=True)
    (tmp_path / "my_conf/dataset/mine.yaml").write_text("name: mine\nshards: /a.tar\n")
    (tmp_path / "my_conf").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    compose.register_schema()
    for directory in (name, str(tmp_path / name)):
        compose.check_command(["--config-dir", directory, "+dataset=mine", "+tokenizer=demo"])


def test_a_misspelt_key_in_a_users_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/mine.yaml").write_text("name: mine\nshard: /a.tar\n")
    compose.register_schema()
    with pytest.raises(ConfigError, match=r"dataset/mine.*'shard' not in 'DatasetConfig'"):
        compose.check_command(["--config-dir", str(tmp_path), "+dataset=mine", "+tokenizer=demo"])
    GlobalHydra.instance().clear()


def test_another_configuration_is_refused_with_the_keys_that_differ() -> None:
    error = FingerprintMismatch("out", {"sampling.fps": ([8.0], [4.0])})
    assert "sampling.fps: [8.0] there, [4.0] now" in str(error)
