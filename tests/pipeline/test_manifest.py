"""Receipts, their chains, and snapshots of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.manifest import (
    Receipt,
    by_shard,
    chain,
    commit,
    load_receipts,
    part_name,
    publish_manifest,
    read_chain,
    read_manifest,
    receipt_name,
)
from pipeline.reader import key_digest
from pipeline.storage import Storage
from tests.pipeline.receipts import receipt


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def write(storage: Storage, *receipts: Receipt) -> list[Receipt]:
    for one in receipts:
        assert commit(storage, one) == one
    return list(receipts)


def three() -> list[Receipt]:
    return [receipt(0, 0, 10), receipt(1, 10, 20), receipt(2, 20, 30, final=True)]


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
    with pytest.raises(RunError, match="format version 9, this code reads 1"):
        Receipt.from_bytes("s.00000.json", receipt(format_version=9).to_bytes())


def test_a_chain_is_put_in_order() -> None:
    receipts = three()
    state = chain(reversed(receipts))
    assert state.receipts == receipts
    assert (state.end_offset, state.is_final, state.is_complete) == (30, True, True)


def test_an_empty_chain_begins_at_the_beginning() -> None:
    state = chain([])
    assert (state.end_offset, state.is_final, state.seen_digests()) == (0, False, set())


def test_a_chain_remembers_all_keys() -> None:
    keys = {key_digest(f"video_{number}") for number in range(3)}
    assert chain(three()).seen_digests() == keys


def test_a_chain_with_a_cut_receipt_is_not_complete() -> None:
    assert not chain([receipt(complete=False, cut_reason="x", final=True)]).is_complete


@pytest.mark.parametrize(
    ("receipts", "words"),
    [
        ([receipt(1, 10, 20)], "segment 1 starts at 10, expected segment 0 at 0"),
        ([receipt(0, 0, 10), receipt(2, 20, 30)], "expected segment 1 at 10"),
        ([receipt(0, 0, 10), receipt(1, 12, 20)], "segment 1 starts at 12"),
        ([receipt(0, 0, 10), receipt(1, 8, 20)], "segment 1 starts at 8"),
        ([receipt(0, 5, 10)], "segment 0 starts at 5"),
        ([receipt(0, 0, 10), receipt(0, 0, 10)], "do not form a chain"),
        ([receipt(0, 0, 10, final=True), receipt(1, 10, 20)], "go on behind the final one"),
    ],
    ids=["no first", "missing", "gap", "overlap", "late", "twice", "behind final"],
)
def test_receipts_that_do_not_fit_are_refused(receipts: list[Receipt], words: str) -> None:
    with pytest.raises(RunError, match=words):
        chain(receipts)


def test_the_second_commit_of_a_segment_gives_the_first_receipt(storage: Storage) -> None:
    first, second = receipt(), receipt()
    assert commit(storage, first) == first
    assert commit(storage, second) == first
    assert commit(storage, first) == first, "as after a lost answer"


def test_all_receipts_are_loaded_without_a_manifest(storage: Storage) -> None:
    other = receipt(shard="other", final=True)
    written = write(storage, *three(), other)
    storage.put("receipts/README.txt", b"no receipt")
    assert load_receipts(storage) == sorted(written, key=lambda one: one.name)
    assert {name: len(s.receipts) for name, s in by_shard(written).items()} == {"s": 3, "other": 1}


def test_receipts_newer_than_the_manifest_are_loaded_too(storage: Storage) -> None:
    first, *rest = three()
    write(storage, first)
    publish_manifest(storage, [first])
    write(storage, *rest)
    assert load_receipts(storage) == [first, *rest]


def test_receipts_in_the_manifest_are_not_read_again(storage: Storage) -> None:
    written = write(storage, *three())
    publish_manifest(storage, written)
    storage.put(f"receipts/{written[0].name}", b"changed")
    assert load_receipts(storage) == written


def test_every_receipt_file_is_read_when_manifests_are_not_trusted(storage: Storage) -> None:
    written = write(storage, *three())
    publish_manifest(storage, written)
    storage.put(f"receipts/{written[0].name}", b"changed")
    with pytest.raises(RunError, match="cannot be trusted"):
        load_receipts(storage, use_manifest=False)


def test_a_receipt_that_was_removed_is_gone_whatever_the_manifest_says(storage: Storage) -> None:
    written = write(storage, *three())
    publish_manifest(storage, written)
    storage.delete(f"receipts/{written[2].name}")
    assert load_receipts(storage) == written[:2]


def test_the_newest_manifest_counts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write(storage, *three())
    for number in (1, 2, 3):
        publish_manifest(storage, written[:number])
    reads: list[str] = []
    monkeypatch.setattr(storage, "read_many", lambda names: reads.extend(names) or {})
    assert load_receipts(storage) == written
    assert reads == []


def test_a_broken_receipt_is_an_error_that_names_it(storage: Storage) -> None:
    write(storage, *three())
    storage.put("receipts/s.00001.json", b"{}")
    with pytest.raises(RunError, match=r"s\.00001\.json"):
        load_receipts(storage)


def test_one_shards_chain_is_read_without_a_listing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write(storage, *three())
    monkeypatch.setattr(storage, "entries", None)
    assert read_chain(storage, "s").receipts == written
    assert read_chain(storage, "other").receipts == []


def test_the_same_receipts_give_the_same_manifest(storage: Storage) -> None:
    written = write(storage, *three())
    digest = publish_manifest(storage, written)
    before = storage.entry(f"manifests/{digest}.parquet")
    assert publish_manifest(storage, written) == digest
    assert storage.entry(f"manifests/{digest}.parquet") == before
    assert read_manifest(storage, digest) == written


def test_a_manifest_that_is_not_there_is_named(storage: Storage) -> None:
    with pytest.raises(RunError, match=r"manifest abc of .* cannot be read"):
        read_manifest(storage, "abc")


def test_a_manifest_under_anothers_name_is_refused(storage: Storage) -> None:
    written = write(storage, *three())
    digest = publish_manifest(storage, written)
    storage.put("manifests/abc.parquet", storage.read(f"manifests/{digest}.parquet"))
    with pytest.raises(RunError, match="does not match its digest"):
        read_manifest(storage, "abc")


def test_any_flipped_byte_of_a_manifest_is_found_or_means_the_same(storage: Storage) -> None:
    written = write(storage, *three())
    digest = publish_manifest(storage, written)
    place = f"manifests/{digest}.parquet"
    content, dice = storage.read(place), random.Random(0)
    for _ in range(400):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        storage.put(place, bytes(flipped))
        try:
            back = read_manifest(storage, digest)
        except RunError:
            continue
        assert back == written
