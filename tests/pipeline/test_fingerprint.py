"""What makes two runs write the same rows."""

from __future__ import annotations

import json

import pytest

from pipeline.fingerprint import canonical_json, cpu_model, differences, digest_of, flatten


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": {"c": 2, "d": 3}}) == digest_of({"b": {"d": 3, "c": 2}, "a": 1})


def test_the_digest_survives_json() -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": {"c": 1e-7}}
    assert digest_of(json.loads(json.dumps(value))) == digest_of(value)


def test_the_digest_is_the_one_of_earlier_versions() -> None:
    expected = "43258cff783fe7036d8a43033f830adfc60ec037382473548ac742b888292777"
    assert digest_of({"b": 2, "a": 1}) == expected


def test_text_that_is_not_utf8_has_a_digest() -> None:
    assert digest_of({"url": "/d/bad\udcff.tar"}) != digest_of({"url": "/d/bad\udcfe.tar"})


def test_lists_keep_their_order() -> None:
    assert digest_of([1, 2]) != digest_of([2, 1])


def test_canonical_json_has_no_spaces() -> None:
    assert canonical_json({"b": [1, "ü"], "a": None}) == '{"a":null,"b":[1,"ü"]}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": {"b": {"c": 1}}, "d": [2, 3]}, {"a.b.c": 1, "d": [2, 3]}),
        ({"a": {}}, {"a": {}}),
        ({}, {"": {}}),
    ],
)
def test_nested_keys_are_dotted(value: dict[str, object], expected: dict[str, object]) -> None:
    assert flatten(value) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, {}),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, {"a.b": (1, 2)}),
        ({"a": 1}, {"b": 1}, {"a": (1, "absent"), "b": ("absent", 1)}),
        ({"a": {"b": None}}, {"a": {"c": 1}}, {"a.b": (None, "absent"), "a.c": ("absent", 1)}),
        ({"a": [1, 2]}, {"a": [2, 1]}, {"a": ([1, 2], [2, 1])}),
    ],
)
def test_differences_name_dotted_keys_and_both_values(
    old: dict[str, object], new: dict[str, object], expected: dict[str, object]
) -> None:
    assert differences(old, new) == expected


def test_this_machine_has_a_cpu_model_and_an_instruction_set() -> None:
    model, isa = cpu_model()
    assert model
    assert isa in {"amx_bf16", "avx512_bf16", "avx512f", "avx2", "baseline", "unknown"}
