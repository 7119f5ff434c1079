"""Receipts: what commits a segment, and what is no receipt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.fingerprint import digest_of
from pipeline.receipt_values import RowGroup
from pipeline.receipts import (
    MAX_RECEIPT_BYTES,
    Receipt,
    ReceiptName,
    commit,
    gaps_of,
    list_receipts,
    parse_name,
    part_name,
    receipt_name,
)
from pipeline.storage import Entry, Storage
from tests.pipeline.receipts import all_receipts, receipt


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def test_a_receipt_comes_back_as_it_was() -> None:
    one = receipt(
        part="p",
        rows=3,
        filtered={"too_short": 2},
        quarantined=[{"key": "ü", "reason": "decode", "message": "\udcff"}],
        numerics={"batch": [1, 17, 64, 64], "device": "x"},
        cut_reason="byte 7: cut",
        complete=False,
    )
    assert Receipt.from_bytes(one.name, one.to_bytes()) == one


def test_names_of_receipts_and_parts() -> None:
    assert receipt_name("00017-ab", 4) == "00017-ab.00004.json"
    assert part_name("00017-ab", 4, "f" * 32) == f"00017-ab-00004-{'f' * 32}.parquet"
    assert receipt(7).name == "s.00007.json"
    assert receipt(7, generation=2).name == "s.00007.r2.json"


@pytest.mark.parametrize("name", [("s", 0, 0), ("a-b_c-01of16", 99_999, 1), ("s", 1_234_567, 12)])
def test_names_are_read_back(name: tuple[str, int, int]) -> None:
    assert parse_name(receipt_name(*name)) == name


@pytest.mark.parametrize(
    "name",
    [
        *("README.txt", "s.0.json", "s.00000.r0.json", "s.00000.json.bak", ".00000.json"),
        *("s.00000.r.json", "../s.00000.json", "a/s.00000.json", "s\n.00000.json"),
    ],
)
def test_other_files_are_no_receipts(name: str) -> None:
    assert parse_name(name) is None


def test_receipts_are_listed_in_the_order_of_their_chains(storage: Storage) -> None:
    names = [("s", 9, 0), ("s", 9, 1), ("s", 9, 11), ("s", 100_000, 0), ("s-t", 0, 0)]
    for name in reversed(names):
        storage.put(f"receipts/{receipt_name(*name)}", b"x")
    storage.put("receipts/README.txt", b"no receipt")
    assert list_receipts(storage) == [ReceiptName(*name) for name in names]


@pytest.mark.parametrize("field", ["rows", "end_offset", "part", "final", "created_seconds"])
def test_a_changed_field_is_found(field: str) -> None:
    fields = json.loads(receipt().to_bytes()) | {field: 77}
    with pytest.raises(RunError, match=r"receipt s\.00000\.json cannot be trusted: its digest"):
        Receipt.from_bytes("s.00000.json", json.dumps(fields).encode())


def test_any_flipped_byte_of_a_receipt_is_found_or_means_the_same() -> None:
    one = receipt(quarantined=[{"key": "a", "reason": "decode", "message": "b"}])
    content, dice = one.to_bytes(), random.Random(0)
    for _ in range(500):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        try:
            back = Receipt.from_bytes(one.name, bytes(flipped))
        except RunError:
            continue
        assert back == one


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"digest": 1}', b"[" * 100_000])
def test_what_is_no_receipt_is_an_error_that_names_it(content: bytes) -> None:
    with pytest.raises(RunError, match=r"receipt s\.00000\.json cannot be trusted"):
        Receipt.from_bytes("s.00000.json", content)


def test_a_receipt_under_anothers_name_is_refused() -> None:
    with pytest.raises(RunError, match=r"it belongs to s\.00000\.json"):
        Receipt.from_bytes("s.00001.json", receipt(0).to_bytes())


def test_a_receipt_of_another_version_is_refused() -> None:
    with pytest.raises(RunError, match="format version 9, this code reads 2"):
        Receipt.from_bytes("s.00000.json", receipt(format_version=9).to_bytes())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        ([("s", 0, 0), ("s", 1, 0), ("t", 0, 0)], []),
        ([("s", 0, 0), ("s", 0, 1), ("s", 0, 2), ("s", 1, 0)], []),
        ([("s", 0, 0), ("s", 1, 1), ("s", 1, 2)], []),
        ([("s", 1, 0)], [("s", -1, 0)]),
        ([("s", 0, 0), ("t", 1, 0)], [("t", -1, 0)]),
        ([("s", 0, 0), ("s", 0, 2), ("s", 1, 0), ("s", 3, 0)], [("s", 0, 0), ("s", 1, 0)]),
    ],
)
def test_gaps_are_seen_in_names_alone(
    names: list[tuple[str, int, int]], expected: list[tuple[str, int, int]]
) -> None:
    assert gaps_of([ReceiptName(*name) for name in names]) == {
        ReceiptName(*name) for name in expected
    }


def test_a_listing_that_lacks_a_receipt_written_meanwhile_is_made_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for segment in range(3):
        commit(storage, receipt(segment, 10 * segment, 10 * segment + 10))
    entries, calls = storage.entries, []

    def listing(folder: str) -> dict[str, Entry]:
        calls.append(folder)
        found = entries(folder)
        if len(calls) == 1:
            del found["s.00001.json"]
        return found

    monkeypatch.setattr(storage, "entries", listing)
    assert [name.segment for name in list_receipts(storage)] == [0, 1, 2]


def test_what_lies_behind_a_gap_that_only_the_second_listing_has_is_for_the_next_one(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for segment in range(4):
        for name in ("s", "t", "u"):
            one = receipt(segment, 10 * segment, 10 * segment + 10, shard=name)
            commit(storage, one)
    entries = storage.entries
    lacking = iter([("s.00001.json", "u.00000.json"), ("t.00002.json", "u.00000.json")])

    def listing(folder: str) -> dict[str, Entry]:
        lacks = next(lacking)
        return {file: entry for file, entry in entries(folder).items() if file not in lacks}

    monkeypatch.setattr(storage, "entries", listing)
    names = list_receipts(storage)
    segments = {
        shard: [name.segment for name in names if name.shard == shard] for shard in ("s", "t", "u")
    }
    assert segments == {
        "s": [0, 1, 2, 3],
        "t": [0, 1],
        "u": [1, 2, 3],  # lost: whoever reads the chain says so
    }


HOSTILE = {
    "part": ["../../etc/passwd", "/etc/passwd", "a/b.parquet", ".hidden", "", "x" * 300, 7, "a\nb"],
    "shard": ["../s", "a/b", "", None, 7],
    "rows": [-1, 1.5, True, "1", None],
    "segment": [-1, "0", None],
    "generation": [-1, 0.5],
    "part_bytes": [-1, None],
    "source_bytes": [-5, "9"],
    "videos": [-1, {}],
    "start_offset": [-1, 11, None],
    "end_offset": ["x", 2.0],
    "final": [1, None, "true"],
    "complete": [0],
    "part_sha256": ["", "zz" * 32, "ab", 7],
    "footer_sha256": ["g" * 64],
    "fingerprint": [None, 7],
    "source_version": [None, 1],
    "filtered": [[], {"too_short": "1"}, {"too_short": -1}],
    "quarantined": [{}, [7], [{"key": "a"}], [{"key": 1, "reason": "x", "message": ""}]],
    "key_digests": ["0", "xy" * 8, "ab", None],
    "cut_reason": [7],
    "numerics": [[], None],
    "created_seconds": ["now", None],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in HOSTILE.items() for value in values]
)
def test_values_that_no_run_writes_are_refused(field: str, value: object) -> None:
    content = receipt(**{field: value}).to_bytes()
    with pytest.raises(RunError, match=r"receipt s\.00000\.json cannot be trusted: .*" + field):
        Receipt.from_bytes("s.00000.json", content)


GROUP = RowGroup(rows=2, end_offset=500, sha256="a" * 64)
NEXT = RowGroup(rows=1, end_offset=900, sha256="b" * 64)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([], "0 row_groups, and the part is p"),
        ([GROUP], "row_groups hold 2 rows, the part 3"),
        ([GROUP, NEXT, NEXT], "number 2 ends at 900, must be behind 900"),
        ([NEXT, GROUP], "number 1 ends at 500, must be behind 900"),
        ([GROUP, NEXT._replace(end_offset=1000)], "before the footer's end at 1,000"),
        ([GROUP._replace(end_offset=0), NEXT], "number 0 ends at 0, must be behind 0"),
        ([GROUP, NEXT._replace(rows=0)], "row_groups must be"),
        ([GROUP, NEXT._replace(rows=True)], "row_groups must be"),
        ([GROUP, NEXT._replace(end_offset=9.0)], "row_groups must be"),
        ([GROUP, NEXT._replace(sha256=None)], "row_groups must be"),
        ([GROUP, NEXT._replace(sha256="z" * 64)], "row_groups must be"),
    ],
)
def test_row_groups_that_do_not_cover_the_part_are_refused(
    groups: list[RowGroup], words: str
) -> None:
    content = receipt(part="p", rows=3, row_groups=tuple(groups)).to_bytes()
    with pytest.raises(RunError, match=words):
        Receipt.from_bytes("s.00000.json", content)


@pytest.mark.parametrize(
    "shapes",
    [[], {}, {"1,2,3": 2}, {"1,2,3": 3, "1,2,4": 0}, {"1,2": 3}, {"1x2x3": 3}, {"0,2,3": 3}],
)
def test_shapes_that_do_not_make_up_the_part_are_refused(shapes: object) -> None:
    with pytest.raises(RunError, match=r"s\.00000\.json cannot be trusted: .*shapes"):
        Receipt.from_bytes("s.00000.json", receipt(part="p", rows=3, shapes=shapes).to_bytes())


@pytest.mark.parametrize(
    "latents",
    [
        {},
        {"latent_mean": (0.0,) * 4},
        {"latent_mean": (0.0,) * 3, "latent_std": (1.0,) * 3},
        {"latent_mean": (0.0,) * 4, "latent_std": (1.0, 1.0, 1.0, -1.0)},
        {"latent_mean": (0.0, 0.0, 0.0, float("nan")), "latent_std": (1.0,) * 4},
        {"latent_mean": (0.0, 0.0, 0.0, "0"), "latent_std": (1.0,) * 4},
    ],
)
def test_moments_that_are_not_those_of_the_channels_are_refused(latents: dict[str, Any]) -> None:
    content = receipt(part="p", rows=3, shapes={"4,1,2,3": 3}, **latents).to_bytes()
    with pytest.raises(RunError, match="cannot be trusted: latent_"):
        Receipt.from_bytes("s.00000.json", content)
    right = {"latent_mean": (0.5,) * 4, "latent_std": (1.0,) * 4}
    one = receipt(part="p", rows=3, shapes={"4,1,2,3": 3}, **right)
    assert Receipt.from_bytes(one.name, one.to_bytes()) == one


@pytest.mark.parametrize("groups", [7, {}, [7], [[1, 2, "a"]], [{"rows": 1}]])
def test_row_groups_that_are_no_records_are_refused(groups: object) -> None:
    fields = json.loads(receipt().to_bytes()) | {"row_groups": groups}
    del fields["digest"]
    content = json.dumps(fields | {"digest": digest_of(fields)}).encode()
    with pytest.raises(RunError, match="row_groups must be a list of rows, end_offset and sha256"):
        Receipt.from_bytes("s.00000.json", content)


def test_row_groups_and_shapes_come_back_as_they_were() -> None:
    one = receipt(part="p", rows=3, row_groups=(GROUP, NEXT), shapes={"1,2,3": 1, "1,3,2": 2})
    assert Receipt.from_bytes(one.name, one.to_bytes()) == one


def test_a_field_that_is_missing_or_unknown_is_refused() -> None:
    for change in ({"extra": 1}, {"rows": ...}):
        fields = json.loads(receipt().to_bytes()) | change
        del fields["digest"]
        fields = {name: value for name, value in fields.items() if value is not ...}
        content = json.dumps(fields | {"digest": digest_of(fields)}).encode()
        with pytest.raises(RunError, match="cannot be trusted"):
            Receipt.from_bytes("s.00000.json", content)


def test_a_giant_receipt_is_refused_before_it_is_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("receipts/s.00000.json", b"")
    with pytest.raises(RunError, match=r"s\.00000\.json cannot be trusted: 0 bytes"):
        all_receipts(storage)
    with open(storage.path("receipts/s.00000.json"), "r+b") as file:  # noqa: PTH123
        file.truncate(MAX_RECEIPT_BYTES + 1)  # sparse
    monkeypatch.setattr(storage, "read_many", None)
    with pytest.raises(RunError, match=r"s\.00000\.json cannot be trusted: 67,108,865 bytes"):
        all_receipts(storage)
    with pytest.raises(RunError, match="more than 67,108,864 bytes"):
        Receipt.from_bytes("s.00000.json", bytes(MAX_RECEIPT_BYTES + 1))


def test_the_second_commit_of_a_segment_gives_the_first_receipt(storage: Storage) -> None:
    first, second = receipt(), receipt()
    assert commit(storage, first) == first
    assert commit(storage, second) == first
    assert commit(storage, first) == first, "as after a lost answer"
