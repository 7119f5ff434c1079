"""The pages of keys are those of the schema; the command prints them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import jobs.config_docs
from pipeline import config_docs
from pipeline.config_docs import Key, keys_of, kind_of, page, shown, unit_of
from pipeline.suggest import known_keys

PAGES = {
    "pipeline": (config_docs.schemas_here(), config_docs.HERE / "CONFIG.md"),
    "jobs": (jobs.config_docs.SCHEMAS, jobs.config_docs.FILE),
}
ALL = {**PAGES["pipeline"][0], **PAGES["jobs"][0]}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_in_the_tree_is_that_of_the_schema(name: str) -> None:
    schemas, file = PAGES[name]
    is_equal = file.read_text(encoding="utf-8") == page(f"{name}.config_docs", schemas)
    assert is_equal, f"run: python -m {name}.config_docs --write"


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL)
def test_every_key_is_there_with_type_and_meaning(schema: type) -> None:
    keys = list(keys_of(schema))
    names = [key.name for key in keys]
    leaves = set(known_keys(schema))
    assert leaves - set(names) == {name.rpartition(".")[0] for name in names} - {""}
    assert len(set(names)) == len(names)
    assert [key.name for key in keys if not (key.kind and key.meaning and key.default)] == []


class Colour(enum.Enum):
    red = 1
    blue = 2


@dataclass(kw_only=True)
class Older:
    size_bytes: int = 3
    """How
    large."""


@dataclass(kw_only=True)
class Section(Older):
    rates: list[float] = field(default_factory=lambda: [1.5, 2.0])
    """Of it."""
    colour: Colour | None = None
    """A | B."""
    name: str


@dataclass(kw_only=True)
class Whole:
    part: Section
    anything: Any = None
    """Free."""


def test_what_is_read_of_a_dataclass() -> None:
    with pytest.raises(ValueError, match=r"part\.rates is a number of which UNITS .* no unit"):
        list(keys_of(Whole))


def test_sections_inherited_fields_and_missing_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_docs._BY_NAME, "rates", "1/s")
    size, rates, colour, name, anything = keys_of(Whole)
    assert size == Key(
        name="part.size_bytes", kind="int", default="3", unit="bytes", meaning="How large."
    )
    assert (rates.kind, rates.default, rates.unit) == ("list of float", "[1.5,2.0]", "1/s")
    assert (colour.kind, colour.default, colour.unit) == ("red | blue or null", "null", "")
    assert (name.kind, name.default, name.meaning) == ("text", "must be given", "")
    assert (anything.name, anything.kind, anything.section) == ("anything", "any", "")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("limits.child_memory_bytes", "bytes"),
        ("commit.max_seconds", "s"),
        ("sampling.fps", "frames/s"),
        ("cluster.gpus_per_worker", "GPUs"),
        ("train.learning_rate", "1"),
    ],
)
def test_the_unit_is_in_the_name(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_types_and_defaults_as_they_are_typed() -> None:
    assert kind_of(dict[str, Any]) == "mapping"
    assert kind_of(bool) == "true | false"
    assert shown(Colour.red) == "red"
    assert shown([True, None]) == "[true,null]"


def test_the_command_prints_the_keys_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_docs.main(["sampling.fps", "retry"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("sampling.fps=[8.0]   (list of float, frames/s)\n    Reduced frame")
    assert "retry=null   (quarantined | incomplete or null)" in said
    assert "commit." not in said
    assert jobs.config_docs.main(["evaluate.fps", "train.steps"]) == 0
    said = capsys.readouterr().out
    assert said.index("# python -m jobs.train_tokenizer\ntrain.steps=50000") >= 0
    assert said.index("# python -m jobs.evaluate_tokenizer\nevaluate.fps=30.0") >= 0


def test_a_start_that_no_key_has_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert config_docs.main(["samplng.fps"]) == 1
    assert capsys.readouterr().err == (
        "error: no key starts with samplng.fps; did you mean sampling.fps?\n"
    )


def test_the_page_is_written_where_the_test_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_docs, "HERE", tmp_path)
    assert config_docs.main(["--write"]) == 0
    written = (tmp_path / "CONFIG.md").read_text(encoding="utf-8")
    assert written == PAGES["pipeline"][1].read_text(encoding="utf-8")
