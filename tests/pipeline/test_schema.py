"""The row of a token shard and the footer that says how to read it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.schema import (
    FOOTER_KEY,
    TokenFormat,
    arrow_schema,
    clip_id,
    read_token_format,
    rows_to_table,
)
from tests.pipeline.fakes import indices_of, latent_row, row, token_format

COLUMNS = (
    "clip_id shard key clip_index fps start_seconds end_seconds frame_seconds source_width "
    "source_height source_fps bucket caption metadata token_shape tokens"
).split()


def test_a_part_has_these_columns_in_this_order() -> None:
    assert rows_to_table([row(0)], token_format()).column_names == COLUMNS


def test_only_caption_and_metadata_may_be_null() -> None:
    schema = arrow_schema(4, token_format())
    assert [field.name for field in schema if field.nullable] == ["caption", "metadata"]


def test_tokens_of_one_size_are_fixed_size_binary() -> None:
    table = rows_to_table([row(0), row(1)], token_format())
    assert table.schema.field("tokens").type == pa.binary(len(row(0).tokens))


def test_tokens_of_several_sizes_are_large_binary() -> None:
    table = rows_to_table([row(0), row(1, shape=(1, 4, 4))], token_format())
    assert table.schema.field("tokens").type == pa.large_binary()


def test_rows_keep_their_order_and_values() -> None:
    rows = [row(2), row(0), row(1)]
    table = rows_to_table(rows, token_format())
    assert table.to_pylist() == [{name: getattr(one, name) for name in COLUMNS} for one in rows]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(8.0, "s/a/b@8fps#2"), (7.5, "s/a/b@7.5fps#2"), (23.976, "s/a/b@23.976fps#2")],
)
def test_a_clip_id_names_shard_key_rate_and_position(fps: float, expected: str) -> None:
    assert clip_id("s", "a/b", fps, 2) == expected


def test_rates_that_differ_in_the_last_digit_have_different_clip_ids() -> None:
    rates = (29.97, 30000 / 1001, 29.970001)
    assert len({clip_id("s", "a", fps, 0) for fps in rates}) == len(rates)


@pytest.mark.parametrize("packing", ["u16+u2", "fp16"])
def test_the_footer_record_comes_back(packing: str) -> None:
    record = token_format(packing)
    assert TokenFormat.from_json(record.to_json()) == record
    assert read_token_format(arrow_schema(4, record).metadata) == record


def test_a_footer_of_another_version_is_refused() -> None:
    text = token_format(format_version=3).to_json()
    with pytest.raises(ValueError, match="version 3; this code reads 2"):
        TokenFormat.from_json(text)


@pytest.mark.parametrize("text", ["[]", "7", "{}", '{"format_version": 2}', "not json"])
def test_a_footer_that_is_no_such_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TokenFormat.from_json(text)


def test_a_footer_with_an_unknown_field_is_refused() -> None:
    fields = json.loads(token_format().to_json()) | {"colour": "red"}
    with pytest.raises(ValueError, match="broken token format record"):
        TokenFormat.from_json(json.dumps(fields))


@pytest.mark.parametrize("metadata", [None, {}, {b"pandas": b"{}"}])
def test_a_file_without_the_record_is_no_token_part(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(ValueError, match="not a token part"):
        read_token_format(metadata)


def test_the_record_is_human_readable_json_in_the_schema() -> None:
    record = json.loads(arrow_schema(4, token_format()).metadata[FOOTER_KEY])
    assert record["tokenizer"] == "fake"
    assert record["axes"] == "t h w"


def test_unpacking_by_the_record_gives_the_indices() -> None:
    record, one = token_format(), row(3)
    blob = np.frombuffer(one.tokens, np.uint8)[None]
    assert record.clip_bytes(one.token_shape) == len(one.tokens)
    np.testing.assert_array_equal(record.unpack(blob, one.token_shape)[0], indices_of(3))


def test_latents_are_stored_as_mean_then_log_variance() -> None:
    record = token_format("fp32")
    values = np.arange(4 * 6, dtype=np.float32).reshape(4, 1, 2, 3)
    one = latent_row(0, values)
    assert list(one.token_shape) == [2, 1, 2, 3]
    assert record.stored_shape(one.token_shape) == (4, 1, 2, 3)
    blob = np.frombuffer(one.tokens, np.uint8)[None]
    np.testing.assert_array_equal(record.unpack(blob, one.token_shape)[0], values)


@pytest.mark.parametrize("packing", ["fp32", "fp16", "bf16"])
def test_compressed_latents_come_back_bit_by_bit(packing: str) -> None:
    plain, planes = token_format(packing), token_format(packing, compression="planes")
    values = np.random.default_rng(0).normal(size=(4, 3, 5, 7)).astype(np.float32)
    compressed = np.frombuffer(planes.pack(values), np.uint8)
    expanded = planes.expand(compressed, (2, 3, 5, 7))
    assert expanded.tobytes() == plain.pack(values)
    back = planes.unpack(expanded[None], (2, 3, 5, 7))
    np.testing.assert_array_equal(back, plain.unpack(expanded[None], (2, 3, 5, 7)))


def test_expanding_what_is_not_compressed_changes_nothing_but_checks_its_size() -> None:
    record, blob = token_format(), np.frombuffer(row(3).tokens, np.uint8)
    assert record.expand(blob, (1, 2, 3)) is blob
    with pytest.raises(ValueError, match=r"14 bytes of tokens for shape \[1, 2, 4\]"):
        record.expand(blob, (1, 2, 4))


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(ValueError, match="compression 'lz9'; known are"):
        TokenFormat.from_json(token_format(compression="lz9").to_json())
