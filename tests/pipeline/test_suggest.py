"""What was meant: of keys, options and values, by every command that composes."""

from __future__ import annotations

import pytest
from hydra.core.global_hydra import GlobalHydra

import jobs.evaluation.compose
import jobs.training.compose
from pipeline import compose, plan
from pipeline.errors import ConfigError
from pipeline.suggest import nearest, nearest_key

KEYS = ["sampling.fps", "sampling.resolution", "encoder.batch_clips", "output.root", "dry_run"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sampling.fsp", "sampling.fps"),
        ("samplng.fps", "sampling.fps"),
        ("resolution", "sampling.resolution"),
        ("sampling.batch_clips", "encoder.batch_clips"),
        ("outputs.rot", "output.root"),
        ("batch_clip", "encoder.batch_clips"),
        ("dryrun", "dry_run"),
        ("quux", None),
    ],
)
def test_the_nearest_key(key: str, meant: str | None) -> None:
    assert nearest_key(key, KEYS) == meant


def test_nothing_is_near_what_is_far() -> None:
    assert nearest("frobnicate", ["drop", "pad"]) is None
    assert nearest("gpu", ["auto", "cuda", "cpu"], cutoff=0.7) is None


DEMO = ["+dataset=demo", "+tokenizer=demo"]
COMMANDS = {
    "run": lambda words: check_run(words),
    "plan": lambda words: plan.predict_run(plan.parser().parse_intermixed_args(words)),
    "train": lambda words: check_train(words),
    "evaluate": lambda words: check_evaluate(words),
}


def check_run(words: list[str]) -> None:
    compose.register_schema()
    compose.check_command(words)


def check_train(words: list[str]) -> None:
    jobs.training.compose.register_schema()
    stage = [] if any(word.startswith("+stage") for word in words) else ["+stage=one"]
    jobs.training.compose.check_command([*words, *stage, "train.run=x"])


def check_evaluate(words: list[str]) -> None:
    jobs.evaluation.compose.register_schema()
    jobs.evaluation.compose.check_command(words)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("dataset.num_bukets=3", "dataset.num_buckets"),
        ("+dataset.num_bukets=3", "dataset.num_buckets"),
        ("num_buckets=3", "dataset.num_buckets"),
        ("clustr=local", "cluster=NAME"),
        ("cluster=locla", "cluster=local"),
        ("+tokenzier=demo", "+tokenizer=NAME"),
        ("tokenizer.precision=bf61", "bf16"),
        ("tokenizer.quantizer.kidn=fsq", "tokenizer.quantizer.kind"),
    ],
)
def test_every_command_says_what_was_meant(command: str, word: str, meant: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        COMMANDS[command]([*DEMO, word])
    GlobalHydra.instance().clear()
    assert f"did you mean {meant}?" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("command", "word", "meant"),
    [
        ("train", "train.lerning_rate=1", "train.learning_rate"),
        ("train", "learning_rate=1", "train.learning_rate"),
        ("train", "+stage=tow", "+stage=two"),
        ("evaluate", "evaluate.picturs=1", "evaluate.pictures"),
        ("run", "+dataset=weebvid", "+dataset=webvid"),
        ("run", "sampling.tail=dorp", "drop"),
    ],
)
def test_keys_of_one_command_are_known_to_it(command: str, word: str, meant: str) -> None:
    chosen = DEMO[1:] if word.startswith("+dataset") else DEMO
    with pytest.raises(ConfigError, match="did you mean") as refusal:
        COMMANDS[command]([*chosen, word])
    assert f"did you mean {meant}?" in str(refusal.value)


def test_what_is_near_nothing_is_named_without_a_guess() -> None:
    with pytest.raises(ConfigError) as refusal:
        check_run([*DEMO, "frobnicate=1"])
    assert "did you mean" not in str(refusal.value)
    assert "'frobnicate'" in str(refusal.value)


def test_a_misspelt_key_in_a_file_of_options_is_explained(tmp_path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/mine.yaml").write_text("name: mine\nshard: /a.tar\n")
    with pytest.raises(ConfigError, match=r"did you mean dataset\.shards\?"):
        check_run(["--config-dir", str(tmp_path), "+dataset=mine", "+tokenizer=demo"])
