"""One flipped bit anywhere in what is committed is found, by ``verify`` and by who reads tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.parts import check_group, group_range, read_footer, read_group, table_of_group
from pipeline.receipts import Receipt, list_receipts, read_receipts
from pipeline.storage import Storage
from pipeline.verify import main
from tests.pipeline.fakes import make_out
from tests.pipeline.receipts import all_receipts, receipt


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Parts of several row groups, and a manifest."""
    storage = make_out(tmp_path / "out", shards=2, videos=5, max_clips=5)
    Ledger.open(storage).publish(storage)
    return storage


def flips(storage: Storage, folder: str, number: int) -> Iterator[str]:
    """Places that were flipped, one after the other; each is put back."""
    dice = random.Random(folder)
    names = sorted(storage.entries(folder))
    for turn in range(number):
        name = f"{folder}/{names[turn % len(names)]}"
        whole = storage.read(name)
        flipped, at = bytearray(whole), dice.randrange(len(whole))
        flipped[at] ^= 1 << dice.randrange(8)
        storage.put(name, bytes(flipped))
        yield f"{name}: byte {at}"
        storage.put(name, whole)


def read_all(storage: Storage) -> int:
    """Every row, as a loader reads it that trusts receipts alone; returns how many."""
    rows = 0
    for one in read_receipts(storage, list_receipts(storage)):
        if one.part is None:
            continue
        footer = read_footer(storage, one)
        for group in range(len(one.row_groups)):
            content = read_group(storage, one, group)
            rows += table_of_group(footer, one, group, content).num_rows
    return rows


def read_manifest(storage: Storage) -> int:
    """Every row that the newest manifest knows."""
    (name,) = storage.entries("manifests")
    ledger = Ledger.of_manifest(storage, name.removesuffix(".parquet"))
    return sum(line.rows for line in ledger.lines())


NUMBERS = [12, pytest.param(200, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("folder", ["parts", "receipts"])
def test_a_flip_is_found_by_verify_and_on_reading(
    storage: Storage, folder: str, number: int
) -> None:
    for place in flips(storage, folder, number):
        assert main([storage.root]) == 1, place
        with pytest.raises(RunError, match=r"cannot be trusted|not those that were committed"):
            read_all(storage)
    assert main([storage.root]) == 0
    assert read_all(storage) == 10


@pytest.mark.parametrize("number", NUMBERS)
def test_a_flip_in_a_manifest_is_found_by_verify_and_on_reading(
    storage: Storage, number: int
) -> None:
    for place in flips(storage, "manifests", number):
        assert main([storage.root]) == 1, place
        with pytest.raises(RunError, match="does not match its digest"):
            read_manifest(storage)
    assert main([storage.root]) == 0
    assert read_manifest(storage) == 10


def test_a_flip_that_changes_only_the_spelling_of_a_receipt_is_found(storage: Storage) -> None:
    content = receipt(source_url="/d/ü.tar", timings={"x": 1e-7}).to_bytes()
    for written, flipped in ((b"00fc", b"00Fc"), (b"1e-07", b"1E-07")):
        with pytest.raises(RunError, match="not spelt as a run spells it"):
            Receipt.from_bytes("s.00000.json", content.replace(written, flipped))
    told = receipt(cut_reason="C:\\u00FC 1E5").to_bytes()
    assert Receipt.from_bytes("s.00000.json", told).cut_reason == "C:\\u00FC 1E5"


def test_row_groups_and_the_footer_cover_every_byte_of_a_part(storage: Storage) -> None:
    committed = [one for one in all_receipts(storage) if one.part is not None]
    assert [len(one.row_groups) for one in committed] == [3, 3]
    for one in committed:
        ranges = [group_range(one, group) for group in range(len(one.row_groups))]
        starts = [start for start, _ in ranges]
        assert starts == [0, *(end for _, end in ranges[:-1])]
        content = storage.read(f"parts/{one.part}")
        footer_bytes = int.from_bytes(content[-8:-4], "little") + 8
        assert ranges[-1][1] + footer_bytes == len(content) == one.part_bytes


def test_a_row_group_is_refused_in_anothers_place(storage: Storage) -> None:
    one = all_receipts(storage)[0]
    content = read_group(storage, one, 0)
    with pytest.raises(RunError, match="row group 1: its bytes are not those"):
        check_group(one, 1, content)
    with pytest.raises(RunError, match="bytes given, it has"):
        table_of_group(read_footer(storage, one), one, 0, content[1:])


def test_columns_of_a_row_group_are_those_of_the_file(storage: Storage) -> None:
    one = all_receipts(storage)[0]
    footer, content = read_footer(storage, one), read_group(storage, one, 1)
    whole = table_of_group(footer, one, 1, content)
    assert whole.column("key").to_pylist() == ["video_2", "video_3"]
    some = table_of_group(footer, one, 1, content, ["tokens", "key"])
    assert set(some.column_names) == {"key", "tokens"}
    assert some.column("tokens").to_pylist() == whole.column("tokens").to_pylist()


@pytest.mark.parametrize("take", [None, lambda size: np.full(size, 7, dtype=np.uint8)])
def test_memory_that_is_given_holds_the_same_bytes(storage: Storage, take) -> None:
    for one in [one for one in all_receipts(storage) if one.part is not None]:
        whole = storage.read(f"parts/{one.part}")
        for group in range(len(one.row_groups)):
            start, end = group_range(one, group)
            assert bytes(read_group(storage, one, group, take)) == whole[start:end]


def test_a_part_that_is_cut_short_is_refused_in_given_memory(storage: Storage) -> None:
    """What lay in the memory before is not taken for bytes of the file."""
    one = all_receipts(storage)[0]
    whole = np.frombuffer(storage.read(f"parts/{one.part}"), dtype=np.uint8)
    start, end = group_range(one, 1)
    storage.put(f"parts/{one.part}", whole[: end - 1].tobytes())
    with pytest.raises(RunError, match="row group 1: its bytes are not those"):
        read_group(storage, one, 1, lambda size: whole[start:end].copy())
