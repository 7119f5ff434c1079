"""The ledger: chains of receipts, what they add up to, and snapshots of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.ledger import Ledger, read_chain
from pipeline.manifest import line_of
from pipeline.reader import key_digest, split_digests
from pipeline.receipts import Receipt, commit
from pipeline.storage import Storage
from tests.pipeline.fakes import make_out
from tests.pipeline.receipts import ledger_of, receipt


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def write(storage: Storage, *receipts: Receipt) -> list[Receipt]:
    for one in receipts:
        assert commit(storage, one) == one
    return list(receipts)


def three() -> list[Receipt]:
    return [receipt(0, 0, 10), receipt(1, 10, 20), receipt(2, 20, 30, final=True)]


def cut(segment: int = 0, start: int = 0, end: int = 10, **changes: Any) -> Receipt:
    return receipt(
        segment, start, end, **{"final": True, "complete": False, "cut_reason": "byte 9"} | changes
    )


def bad(*keys: str, reason: str = "decode") -> list[dict[str, str]]:
    return [{"key": key, "reason": reason, "message": ""} for key in keys]


def test_an_empty_ledger_begins_at_the_beginning() -> None:
    state = Ledger().state("s")
    assert (state.num_segments, state.end_offset, state.is_final, state.source) == (
        0,
        0,
        False,
        None,
    )


def test_a_chain_is_added_up() -> None:
    ledger = ledger_of(
        receipt(0, 0, 10, rows=3, videos=4, filtered={"too_short": 1}, quarantined=bad("a")),
        receipt(1, 10, 20, rows=2, videos=2, part_bytes=7, final=True),
        receipt(shard="t", rows=1, videos=1),
    )
    state = ledger.state("s")
    assert (state.num_segments, state.end_offset, state.is_final) == (2, 20, True)
    counts = ledger.counts()
    assert (counts.clips, counts.videos, counts.part_bytes) == (6, 7, 7)
    assert (counts.filtered, counts.quarantined) == ({"too_short": 1}, {"decode": 1})
    assert (counts.final_shards, counts.begun_shards, counts.segments) == (1, 1, 3)
    assert ledger.counts(["t", "unknown"]).clips == 1


def test_keys_are_remembered_until_a_shard_is_final() -> None:
    ledger = ledger_of(*three()[:2])
    keys = {key_digest(f"video_{number}") for number in range(2)}
    assert split_digests(ledger.state("s").key_digests) == keys
    ledger.add(three()[2:])
    assert ledger.state("s").key_digests == b""


def test_keys_of_a_cut_shard_are_kept_as_it_may_go_on() -> None:
    assert split_digests(ledger_of(cut()).state("s").key_digests) == {key_digest("video_0")}


def test_a_receipt_that_is_there_already_changes_nothing() -> None:
    ledger = ledger_of(*three())
    ledger.add(three())
    assert (len(ledger), ledger.state("s").videos) == (3, 3)


@pytest.mark.parametrize(
    ("receipts", "words"),
    [
        ([receipt(1, 10, 20)], "segment 1 starts at 10, expected segment 0 at 0"),
        ([receipt(0, 0, 10), receipt(2, 20, 30)], "expected segment 1 at 10"),
        ([receipt(0, 0, 10), receipt(1, 12, 20)], "segment 1 starts at 12"),
        ([receipt(0, 0, 10), receipt(1, 8, 20)], "segment 1 starts at 8"),
        ([receipt(0, 5, 10)], "segment 0 starts at 5"),
        ([receipt(0, 0, 10, final=True), receipt(1, 10, 20)], "go on behind the final one"),
        ([receipt(0, 0, 10, generation=1)], "generation 1, expected 0"),
        ([receipt(0, 0, 10), receipt(0, 0, 10, generation=2)], "generation 2, expected 1"),
        ([cut(), receipt(1, 10, 20)], "generation 0, expected 1"),
        ([cut(), receipt(1, 11, 20, generation=1)], "segment 1 starts at 11"),
        ([cut(final=False)], "it is cut and not the last one"),
    ],
)
def test_receipts_that_do_not_fit_are_refused(receipts: list[Receipt], words: str) -> None:
    with pytest.raises(RunError, match=words):
        ledger_of(*receipts)


def test_a_later_generation_adds_rows_and_replaces_what_is_quarantined() -> None:
    ledger = ledger_of(
        receipt(0, 0, 10, rows=3, videos=5, quarantined=bad("a", "b"), final=True),
        receipt(0, 0, 10, rows=2, videos=2, quarantined=bad("b"), generation=1, final=True),
    )
    counts = ledger.counts()
    assert (counts.clips, counts.videos, counts.quarantined) == (5, 5, {"decode": 1})
    assert ledger.state("s").generations == {0: 1}
    ledger.add([receipt(0, 0, 10, rows=1, generation=2, final=True)])
    assert ledger.counts().quarantined == {}
    assert ledger.state("s").quarantined == {}


def test_a_chain_goes_on_behind_a_cut_with_the_next_generation() -> None:
    ledger = ledger_of(cut())
    assert ledger.counts().cut == {"s": "byte 9"}
    assert (ledger.state("s").is_final, ledger.state("s").is_complete) == (True, False)
    ledger.add([receipt(1, 10, 20, generation=1)])
    assert not ledger.state("s").is_final
    ledger.add([receipt(2, 20, 30, generation=1, final=True)])
    assert ledger.state("s").is_complete
    assert ledger.counts().cut == {}


def test_all_receipts_are_read_without_a_manifest(storage: Storage) -> None:
    written = write(storage, *three(), receipt(shard="other", final=True))
    storage.put("receipts/README.txt", b"no receipt")
    ledger = Ledger.open(storage)
    assert {name: state.num_segments for name, state in ledger.states.items()} == {
        "s": 3,
        "other": 1,
    }
    assert sorted(map(repr, ledger.lines())) == sorted(repr(line_of(one)) for one in written)


def reads(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of receipts is read from now on."""
    names: list[str] = []
    read_many = storage.read_many
    monkeypatch.setattr(
        storage, "read_many", lambda files, **more: names.extend(files) or read_many(files, **more)
    )
    return names


def test_only_receipts_newer_than_the_manifest_are_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write(storage, *three()[:2])
    ledger_of(*written).publish(storage)
    last = write(storage, three()[2])
    found = reads(storage, monkeypatch)
    ledger = Ledger.open(storage)
    assert found == ["receipts/s.00002.json"]
    assert list(ledger.lines()) == [line_of(one) for one in [*written, *last]]
    assert ledger.num_unpublished == 1


def test_the_keys_of_a_begun_shard_come_back_from_the_manifest(storage: Storage) -> None:
    written = write(storage, *three()[:2], receipt(shard="final", final=True), cut(shard="cut"))
    before = ledger_of(*written)
    before.publish(storage)
    after = Ledger.open(storage)
    for shard in ("s", "final", "cut"):
        assert after.state(shard) == before.state(shard)


def test_every_receipt_file_is_read_when_manifests_are_not_trusted(storage: Storage) -> None:
    written = write(storage, *three())
    ledger_of(*written).publish(storage)
    storage.put(f"receipts/{written[0].name}", b"changed")
    assert len(Ledger.open(storage)) == 3
    with pytest.raises(RunError, match="cannot be trusted"):
        Ledger.open(storage, use_manifest=False)


def test_a_receipt_that_was_removed_is_gone_whatever_the_manifest_says(storage: Storage) -> None:
    written = write(storage, *three())
    ledger_of(*written).publish(storage)
    storage.delete(f"receipts/{written[2].name}")
    ledger = Ledger.open(storage)
    assert list(ledger.lines()) == [line_of(one) for one in written[:2]]
    assert ledger.num_unpublished == len(ledger), "the manifest that is there says more"


def test_the_newest_manifest_counts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write(storage, *three())
    for number in (1, 2, 3):
        ledger_of(*written[:number]).publish(storage)
    found = reads(storage, monkeypatch)
    assert len(Ledger.open(storage)) == 3
    assert found == []


def test_a_broken_receipt_is_an_error_that_names_it(storage: Storage) -> None:
    write(storage, *three())
    storage.put("receipts/s.00001.json", b"{}")
    with pytest.raises(RunError, match=r"s\.00001\.json"):
        Ledger.open(storage)


def test_one_shards_chain_is_read_without_a_listing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write(
        storage,
        *[receipt(0, 0, 10), cut(1, 10, 20), receipt(2, 20, 30, generation=1, final=True)],
    )
    monkeypatch.setattr(storage, "entries", None)
    assert read_chain(storage, "s") == written
    assert read_chain(storage, "other") == []


def test_the_same_receipts_give_the_same_manifest_in_whatever_order_they_came(
    storage: Storage,
) -> None:
    receipts = [
        receipt(n, 10 * n, 10 * n + 10, shard=shard, numerics={"device": f"{shard}{n}"})
        for shard in "abc"
        for n in range(3)
    ]
    shuffled, dice = sorted(receipts, key=lambda one: one.segment), random.Random(0)
    dice.shuffle(receipts)
    receipts.sort(key=lambda one: one.segment)
    first, second = ledger_of(*shuffled).publish(storage), ledger_of(*receipts).publish(storage)
    assert first == second
    assert list(storage.entries("manifests")) == [f"{first}.parquet"]


def test_a_manifest_is_published_once_for_the_same_receipts(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Ledger().publish(storage) is None
    ledger = ledger_of(*write(storage, *three()[:2]))
    digest = ledger.publish(storage)
    opened = Ledger.open(storage)
    monkeypatch.setattr(storage, "put_if_absent", None)
    assert (ledger.publish(storage), opened.publish(storage)) == (digest, digest)
    monkeypatch.undo()
    opened.add(three()[2:])
    assert opened.publish(storage) != digest


def test_a_manifest_is_worth_it_for_a_tenth_more(storage: Storage) -> None:
    ledger = ledger_of(*(receipt(n, n, n + 1) for n in range(20)))
    assert ledger.is_worth_publishing
    ledger.publish(storage)
    ledger.add([receipt(20, 20, 21), receipt(21, 21, 22)])
    assert not ledger.is_worth_publishing
    ledger.add([receipt(22, 22, 23)])
    assert ledger.is_worth_publishing


def test_many_new_receipts_are_folded_into_columns(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ledger._FOLD_LINES", 4)
    receipts = [
        receipt(n, n, n + 1, numerics={"device": str(n % 3)}, filtered={"too_short": n})
        for n in range(30)
    ]
    ledger = ledger_of(*receipts)
    assert len(ledger._fresh) < 4
    assert list(ledger.lines()) == [line_of(one) for one in receipts]
    digest = ledger.publish(storage)
    assert digest is not None
    assert list(Ledger.of_manifest(storage, digest).lines()) == [line_of(one) for one in receipts]


def test_texts_that_are_not_utf8_do_not_keep_a_manifest_from_being_written(
    storage: Storage,
) -> None:
    ledger = ledger_of(cut(source_url="/data/\udcff.tar", cut_reason="byte 7: '\udcff'"))
    digest = ledger.publish(storage)
    assert digest is not None
    (line,) = Ledger.of_manifest(storage, digest).lines()
    assert (line.source_url, line.cut_reason) == ("/data/\\udcff.tar", "byte 7: '\\udcff'")


def test_a_manifest_that_cannot_be_trusted_costs_time_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make_out(tmp_path / "out")
    whole = Ledger.open(storage)
    storage.put(f"manifests/{'0' * 64}.parquet", b"of an earlier version, or damaged")
    again = Ledger.open(storage)
    assert again.counts() == whole.counts()
    assert "every receipt is read instead" in caplog.text
    assert again.publish(storage) is not None


def test_lines_of_some_shards_are_those_of_all_in_the_same_order(storage: Storage) -> None:
    others = [receipt(shard=name, final=True) for name in ("a", "b", "c")]
    ledger = ledger_of(*others, *three())
    chosen = [line for line in ledger.lines() if line.shard in ("s", "b")]
    assert list(ledger.lines(shards=["s", "b"])) == chosen
    assert len(chosen) == 4
