"""``outputs=[…]`` on the command line: which configurations, names and places come of it."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from tests.pipeline.runs import configs

BASE = ("+dataset=tars", "dataset.shards=/data/a.tar", "cluster=inline")


def test_without_outputs_there_is_the_one_run_that_the_command_line_says() -> None:
    (run,) = configs(*BASE, "+tokenizer=demo")
    assert run.output.root == "outputs/tars/demo"


def test_every_entry_is_a_run_of_its_own_with_what_it_says() -> None:
    first, second, third = configs(
        *BASE,
        "sampling.fps=[8]",
        "encoder.threads=3",
        "outputs=[{tokenizer: demo, resolution: 64}, {tokenizer: kl_4x8x8_4chn, fps: [3, 8]}, "
        "{tokenizer: demo, tokenizer.ch: 8, output.packing: plain, name: small}]",
    )
    assert (first.tokenizer.name, first.sampling.resolution) == ("demo", 64)
    assert first.sampling.fps == [8.0]
    assert (second.tokenizer.name, second.sampling.fps) == ("kl_4x8x8_4chn", [3.0, 8.0])
    assert (third.tokenizer.ch, third.output.packing.name) == (8, "plain")
    assert {run.encoder.threads for run in (first, second, third)} == {3}
    assert [run.output.root for run in (first, second, third)] == [
        "outputs/tars/demo,resolution=64",
        "outputs/tars/kl_4x8x8_4chn,fps=3+8",
        "outputs/tars/small",
    ]
    assert all(run.outputs is None for run in (first, second, third))


def test_an_out_that_is_given_holds_a_folder_for_each() -> None:
    found = configs(
        *BASE,
        "output.root=s3://bucket/out",
        "outputs=[{tokenizer: demo}, {tokenizer: demo, resolution: 64, root: 's3://b/x={1}'}]",
    )
    assert [run.output.root for run in found] == ["s3://bucket/out/demo", "s3://b/x={1}"]


def test_an_entry_without_a_tokenizer_has_that_of_the_command_line() -> None:
    found = configs(*BASE, "+tokenizer=demo", "outputs=[{resolution: 64}, {resolution: 32}]")
    assert [run.tokenizer.name for run in found] == ["demo", "demo"]
    assert [run.output.root for run in found] == [
        "outputs/tars/resolution=64",
        "outputs/tars/resolution=32",
    ]


def test_an_entry_takes_the_place_of_an_experiments_tokenizer() -> None:
    (run,) = configs("+experiment=webvid_3_and_8_fps", "dataset.shards=/d/a.tar",
                  "outputs=[{tokenizer: demo}]")  # fmt: skip
    assert run.tokenizer.name == "demo"
    assert run.sampling.fps == [3.0, 8.0]


def test_what_the_command_line_says_of_the_tokenizer_holds_for_every_entry() -> None:
    found = configs(
        *BASE,
        "+tokenizer=fsq_4x8x8",
        "tokenizer.precision=bf16",
        "tokenizer.checkpoint=random",
        "outputs=[{tokenizer: fsq_4x8x8}, {tokenizer: kl_4x8x8_4chn, tokenizer.precision: fp32}]",
    )
    assert [run.tokenizer.name for run in found] == ["fsq_4x8x8", "kl_4x8x8_4chn"]
    assert [run.tokenizer.precision.name for run in found] == ["bf16", "fp32"]
    assert {run.tokenizer.checkpoint for run in found} == {"random"}


@pytest.mark.parametrize("options", ["tokenizer.options: {gain: 4}", "tokenizer.options.gain: 4"])
def test_an_entry_may_be_a_plugin_with_options(options: str) -> None:
    plugin = "tokenizer: plugin, tokenizer.plugin: 'tests.pipeline.foreign:Palette'"
    (run,) = configs(*BASE, f"outputs=[{{{plugin}, {options}}}]")
    assert run.tokenizer.options == {"gain": 4}


def test_output_root_is_the_root_of_an_entry() -> None:
    found = configs(
        *(*BASE, "+tokenizer=demo"),
        "outputs=[{output.root: /tmp/a}, {root: /tmp/b, fps: [3], output.storage_options: {k: 1}}]",
    )
    assert [run.output.root for run in found] == ["/tmp/a", "/tmp/b"]
    assert [run.output.storage_options for run in found] == [{}, {"k": 1}]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("[{}]", r"outputs\[0\]: an entry like \{tokenizer: fsq_4x8x8\} is needed, got an empty"),
        (
            "[{tokenizer: demo, fps: [8], sampling.fps: [3]}]",
            r"outputs\[0\]: sampling.fps is given twice: as fps and as sampling.fps",
        ),
        ("[{tokenizer: demo, root: /a, output.root: /b}]", r"output.root is given twice"),
        ("3", r"outputs must be a list of 1 to 16 entries like"),
        ("[]", r"outputs must be a list of 1 to 16 entries like"),
        ("[demo]", r"outputs\[0\]: an entry like \{tokenizer: fsq_4x8x8\} is needed, got 'demo'"),
        (
            "[{tokenizer: demo, root: ''}]",
            r"^outputs\[0\]: output\.root is empty: give a path",
        ),
        ("[{resolution: 64}]", r"outputs\[0\]: no tokenizer chosen"),
        ("[{tokenizer: nope}]", r"outputs\[0\]: .*nope"),
        (
            "[{tokenizer: demo, fsp: [3]}]",
            r"\[0\]: no key 'fsp' in an output \(did you mean fps",
        ),
        ("[{tokenizer: demo, limits.pixels: 1}]", r"limits is of the whole run"),
        ("[{tokenizer: demo}, {tokenizer: demo, fps: [0]}]", r"outputs\[1\]: .*sampling.fps"),
        ("[{tokenizer: demo, name: ../x}]", r"outputs\[0\]: name must be letters"),
        ("[{tokenizer: demo}, {tokenizer: demo}]", r"would both write to outputs/tars/demo"),
        (
            "[{tokenizer: demo, encoder.threads: 1}, {tokenizer: demo, resolution: 64}]",
            r"^encoder\.threads is of the process .*: give it once, outside of outputs$",
        ),
        (
            "[{tokenizer: demo}, {tokenizer: demo, resolution: 64, encoder.device: cpu}]",
            r"^encoder\.device is of the process",
        ),
        (
            "[{tokenizer: demo}, {tokenizer: demo, resolution: 64, encoder.decoders: 3}]",
            r"^encoder\.decoders is of the process",
        ),
        ("[{tokenizer: demo, resolution: 30}]", r"outputs\[0\]: sampling does not suit"),
    ],
)
def test_what_cannot_work_is_said_with_the_output_it_is_about(outputs: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configs(*BASE, f"outputs={outputs}")


def test_an_empty_root_of_all_outputs_is_not_the_root_of_the_disk() -> None:
    with pytest.raises(ConfigError, match=r"output\.root is empty"):
        configs(*BASE, "output.root=", "outputs=[{tokenizer: demo}]")
