"""What is read again is compared as well: one flipped bit is found in every epoch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import TokenDataset
from pipeline.errors import CorruptPart, RunError
from pipeline.ledger import Ledger
from pipeline.loading import checks
from pipeline.loading.checks import Checks, checksum
from pipeline.parts import group_range
from pipeline.storage import Storage
from tests.pipeline.fakes import make_out
from tests.pipeline.receipts import all_receipts

SIZES = [0, 1, 7, 8, 9, 1000, 65535, 65536, 65537, 3 * 65536 + 8, 300_001]


@pytest.mark.parametrize("size", SIZES)
def test_a_checksum_is_that_of_its_definition(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    keys = checks._KEYS.tolist()
    words = [int.from_bytes(content[at : at + 8], "little") for at in range(0, size // 8 * 8, 8)]
    blocks = [words[at : at + 8192] for at in range(0, len(words), 8192)]
    whole = [block for block in blocks if len(block) == 8192]
    rest = blocks[-1] if len(whole) < len(blocks) else []
    sums = [sum(w * k for w, k in zip(block, keys, strict=False)) for block in [*whole, rest]]
    sums += [int.from_bytes(content[size // 8 * 8 :], "little"), size]
    assert checksum(content) == sum(s * k for s, k in zip(sums, keys, strict=False)) % 2**64


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_checksum_changes_with_every_bit_and_with_the_length(size: int) -> None:
    dice = random.Random(size)
    content = bytearray(dice.randbytes(size))
    whole = checksum(memoryview(content))
    places = {0, size - 1, size // 8 * 8 % size, *(dice.randrange(size) for _ in range(50))}
    for place in places:
        for bit in range(8):
            content[place] ^= 1 << bit
            assert checksum(memoryview(content)) != whole, (place, bit)
            content[place] ^= 1 << bit
    assert checksum(memoryview(content)) == whole
    assert checksum(bytes(content) + b"\0") != whole != checksum(bytes(content[:-1]))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = make_out(tmp_path / "out", shards=2, videos=5, max_clips=5)
    Ledger.open(storage).publish(storage)
    return storage


@pytest.mark.parametrize("number", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flip_between_two_epochs_is_found(storage: Storage, number: int) -> None:
    dataset = TokenDataset(storage.root, batch_size=2)
    whole = [batch["tokens"].tolist() for batch in dataset]
    parts = [one for one in all_receipts(storage) if one.part is not None]
    dice = random.Random(number)
    for turn in range(number):
        one = parts[turn % len(parts)]
        name, content = f"parts/{one.part}", storage.read(f"parts/{one.part}")
        at = dice.randrange(one.row_groups[-1].end_offset)  # the footer is remembered whole
        flipped = bytearray(content)
        flipped[at] ^= 1 << dice.randrange(8)
        storage.put(name, bytes(flipped))
        with pytest.raises(CorruptPart, match="its bytes are not those that were committed"):
            list(dataset)
        storage.put(name, content)
    assert [batch["tokens"].tolist() for batch in dataset] == whole


def test_no_more_is_remembered_than_its_limit(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAX_KNOWN", 1)
    check = Checks()
    (one, *_) = [one for one in all_receipts(storage) if one.part is not None]
    content = storage.read(f"parts/{one.part}")
    for _ in range(2):
        for group in range(len(one.row_groups)):
            start, end = group_range(one, group)
            check(one, group, content[start:end])
    assert len(check._known) == 1
    with pytest.raises(RunError, match="row group 1: its bytes"):
        check(one, 1, content[:10])
