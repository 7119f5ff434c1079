"""``--multirun``: one command line for several runs, each with an OUT of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs.evaluation.compose
from pipeline import compose
from pipeline.errors import ConfigError
from tests.pipeline import runs

DEMO = ("+dataset=demo", "+tokenizer=demo")


def outs(*words: str, primary: str = "run") -> list[str]:
    """OUT of every job."""
    compose.register_schema()
    jobs.evaluation.compose.register_schema()
    arguments = compose.quote_paths(["--multirun", *words])
    made = compose.jobs_of(arguments, primary, "output.root")
    return [job[-1].removeprefix("output.root=").strip('"') for job in made]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*DEMO, "sampling.fps=[3],[3,8]"], ["demo/demo/fps=3", "demo/demo/fps=3+8"]),
        (["+dataset=demo", "+tokenizer=demo,fsq_4x8x8"], ["demo/demo", "demo/fsq_4x8x8"]),
        (
            ["+dataset=demo", "+tokenizer=glob(fsq_4x16x16*)"],
            [f"demo/fsq_4x16x16{rest}" for rest in ("", "_noncausal", "_v1_1")],
        ),
        (
            ["+dataset=demo", "+tokenizer=demo,fsq_4x8x8", "sampling.fps=[3],[8]"],
            [f"demo/{name}/fps={rate}" for name in ("demo", "fsq_4x8x8") for rate in (3, 8)],
        ),
        (
            [*DEMO, "sampling.fps=[3],[8]", "sampling.tail=drop,pad"],
            [f"demo/demo/fps={rate},tail={tail}" for rate in (3, 8) for tail in ("drop", "pad")],
        ),
        ([*DEMO, "cluster=inline,local"], ["demo/demo/cluster=inline", "demo/demo/cluster=local"]),
        ([*DEMO, "sampling.resolution=range(64,129,64)"], ["demo/demo/resolution=64", "128"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_every_job_has_an_out_of_its_own(words: list[str], expected: list[str]) -> None:
    found = outs(*words)
    assert len(set(found)) == len(found) == len(expected)
    assert all(out.endswith(end) for out, end in zip(found, expected, strict=True))


@pytest.mark.parametrize("place", range(3))
def test_the_flag_may_stand_before_between_or_behind_the_keys(place: int) -> None:
    words = ["+dataset=demo", "+tokenizer=demo", "sampling.variant=none,flip"]
    compose.register_schema()
    made = compose.jobs_of([*words[:place], "--multirun", *words[place:]], "run", "output.root")
    assert [job[-2] for job in made] == ["sampling.variant=none", "sampling.variant=flip"]


def test_an_option_that_nobody_knows_is_told_with_several_runs_as_well(tmp_path: Path) -> None:
    words = ("--multirun", "--frobnicate", *DEMO, "sampling.variant=none,flip")
    ended = runs.run(*words, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: unknown option --frobnicate; see --help\n"


def test_a_root_that_tells_jobs_apart_is_left_as_it_is() -> None:
    root = "output.root=/tokens/${sampling.resolution}"
    assert outs(*DEMO, root, "sampling.resolution=64,128") == ["/tokens/64", "/tokens/128"]


def test_a_bucket_keeps_its_name() -> None:
    found = outs(*DEMO, "sampling.fps=[3],[8]", "output.root=s3://bucket/a, b")
    assert found == ["s3://bucket/a, b/fps=3", "s3://bucket/a, b/fps=8"]


def test_evaluations_of_several_tokenizers_lie_apart() -> None:
    found = outs("+dataset=demo", "+tokenizer=demo,fsq_4x8x8", primary="evaluate")
    assert found == ["evaluations/demo/demo", "evaluations/demo/fsq_4x8x8"]


def test_without_the_flag_a_command_is_one_job() -> None:
    assert compose.jobs_of(list(DEMO), "run", "output.root") == [list(DEMO)]


def test_a_mistake_in_the_last_job_is_told_before_the_first_one_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        outs("+dataset=demo", "+tokenizer=demo,fsq_4x8x9")
    ended = runs.run("--multirun", *DEMO, "sampling.fps=[3],[0]", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "error: sampling.fps must be a list of rates in (0, 1000], got [0.0]\n"
    assert list(tmp_path.iterdir()) == []


def test_rates_and_tokenizers_are_run_and_then_there_is_nothing_to_do(tmp_path: Path) -> None:
    pattern = runs.write_shards(tmp_path / "in", num_shards=1, num_videos=1)
    (tmp_path / "mine/tokenizer").mkdir(parents=True)
    for name, levels in (("five", "[5, 5, 5]"), ("eight", "[8, 8, 8]")):
        lines = f"name: {name}\nch: 8\nnum_res_blocks: 1\ndefault_checkpoint: random\n"
        lines += f"quantizer: {{kind: fsq, levels: {levels}}}\n"
        (tmp_path / f"mine/tokenizer/{name}.yaml").write_text(lines)
    command = [
        *("--multirun", "--config-dir", "mine", "+dataset=tars", f"dataset.shards={pattern}"),
        *("+tokenizer=five,eight", "sampling.fps=[4],[8]", "sampling.resolution=32"),
        *("cluster=inline", "encoder.threads=1", "encoder.decoders=1"),
    ]
    ended = runs.run(*command, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for name in ("five", "eight"):
        for rate, clips in ((4, ["v000@4fps#0"]), (8, ["v000@8fps#0", "v000@8fps#1"])):
            out = tmp_path / f"outputs/tars/{name}/fps={rate}"
            assert sorted(runs.tokens(out)) == clips
            assert f'"name": "{name}"' in (out / "run.json").read_text()
    again = runs.run(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("1 final, 0 to do") == 4
