"""Manifests: what is kept of receipts, what it takes to read them, and what is no manifest."""

from __future__ import annotations

import hashlib
import io
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiobotocore.httpsession import AIOHTTPSession

from pipeline import manifest
from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.manifest import Line, line_of, read_manifest
from pipeline.receipt_values import RowGroup
from pipeline.receipts import Receipt, commit
from pipeline.storage import Storage
from tests.pipeline.receipts import ledger_of, receipt


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def five() -> list[Receipt]:
    bad = [{"key": "k", "reason": "decode", "message": "m"}]
    return [
        receipt(0, 0, 10, part="p-0", rows=3, part_sha256="a" * 64, footer_sha256="b" * 64),
        receipt(1, 10, 20, final=True, complete=False, cut_reason="byte 20", quarantined=bad),
        receipt(1, 10, 20, generation=1, final=True, complete=False, filtered={"too_short": 1}),
        receipt(2, 20, 30, generation=1, final=True),
        receipt(shard="t", part="p-1", rows=1, numerics={"device": "other"}),
    ]


def publish(storage: Storage) -> str:
    digest = ledger_of(*five()).publish(storage)
    assert digest is not None
    return digest


def test_a_manifest_holds_typed_columns(storage: Storage) -> None:
    table = pq.read_table(storage.path(f"manifests/{publish(storage)}.parquet"))
    assert table.column("shard").to_pylist() == ["s", "s", "s", "s", "t"]
    assert table.column("segment").to_pylist() == [0, 1, 1, 2, 0]
    assert table.column("generation").to_pylist() == [0, 0, 1, 1, 0]
    assert table.column("part").to_pylist() == ["p-0", None, None, None, "p-1"]
    assert table.column("part_sha256").to_pylist()[0] == b"\xaa" * 32
    assert table.column("quarantined").to_pylist()[1] == [("decode", 1)]
    assert [keys and len(keys) for keys in table.column("key_digests").to_pylist()] == [
        None, None, None, None, 8,
    ], "only of a shard that is not complete"  # fmt: skip


def test_a_ledger_comes_back_from_its_manifest(storage: Storage) -> None:
    before = ledger_of(*five())
    digest = before.publish(storage)
    assert digest is not None
    after = Ledger.of_manifest(storage, digest)
    assert after.states == before.states
    assert after.counts() == before.counts()
    assert list(after.lines()) == list(before.lines())


def test_any_flipped_byte_is_found(storage: Storage) -> None:
    digest = publish(storage)
    place = f"manifests/{digest}.parquet"
    content, dice = storage.read(place), random.Random(0)
    for _ in range(60):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        storage.put(place, bytes(flipped))
        with pytest.raises(RunError, match="does not match its digest"):
            read_manifest(storage, digest)


@pytest.mark.parametrize("digest", ["abc", "../run", "a/b", "", "*"])
def test_a_manifest_that_is_not_there_is_named(storage: Storage, digest: str) -> None:
    publish(storage)
    with pytest.raises(RunError, match=r"manifest .* of .* cannot be read"):
        read_manifest(storage, digest)


def put(storage: Storage, content: bytes) -> str:
    """A file that bears its own digest, as somebody may make it who can write to OUT."""
    digest = hashlib.sha256(content).hexdigest()
    storage.put(f"manifests/{digest}.parquet", content)
    return digest


def rewrite(storage: Storage, change: Callable[[pa.Table], pa.Table]) -> str:
    """A manifest with a right digest and other columns."""
    table = change(pq.read_table(storage.path(f"manifests/{publish(storage)}.parquet")))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return put(storage, buffer.getvalue())


def with_values(name: str, *values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        column = [*values, *table.column(at).to_pylist()[len(values) :]]
        return table.set_column(at, field, pa.array(column, field.type))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_values("shard", "../../etc"), "shard must be a name"),
        (with_values("shard", "a/b"), "shard must be a name"),
        (with_values("part", "../../../etc/passwd"), "part must be a name"),
        (with_values("part", "/etc/passwd"), "part must be a name"),
        (with_values("rows", -1), "rows must be a whole number"),
        (with_values("part_bytes", -1), "part_bytes must be a whole number"),
        (with_values("segment", 7), "do not form a chain"),
        (with_values("end_offset", 12), "do not form a chain"),
        (with_values("generation", 1), "do not form a chain"),
        (with_values("final", True), "go on behind the final one"),
        (lambda table: table.drop_columns(["rows"]), "not those of a manifest"),
        (lambda table: table.append_column("x", table["rows"]), "not those of a manifest"),
        (lambda table: table.replace_schema_metadata({}), "version None, this code reads 3"),
        (
            lambda table: table.replace_schema_metadata({"vidtok.manifest": '{"version":1}'}),
            "version 1, this code reads 3",
        ),
        (lambda table: table.replace_schema_metadata({"vidtok.manifest": "["}), "cannot be read"),
    ],
)
def test_a_manifest_that_no_run_writes_is_refused(
    storage: Storage, change: Callable[[pa.Table], pa.Table], words: str
) -> None:
    digest = rewrite(storage, change)
    with pytest.raises(RunError, match=words):
        Ledger.of_manifest(storage, digest)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet", b"PAR1" * 10])
def test_what_is_no_parquet_file_is_refused(storage: Storage, content: bytes) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        read_manifest(storage, put(storage, content))


def test_a_giant_manifest_is_refused_before_it_is_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = publish(storage)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 100)
    monkeypatch.setattr(storage, "read", None)
    with pytest.raises(RunError, match="bytes, more than 100"):
        read_manifest(storage, digest)


def test_a_manifest_that_unpacks_to_giant_columns_is_refused(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = rewrite(storage, with_values("source_url", "x" * 1_000_000))
    assert storage.entry(f"manifests/{digest}.parquet").size_bytes < 100_000
    monkeypatch.setattr(manifest, "MAX_TABLE_BYTES", 500_000)
    with pytest.raises(RunError, match="bytes unpacked, more than 500,000"):
        read_manifest(storage, digest)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """HTTP requests to S3, by kind."""
    counted: Counter[str] = Counter()
    send = AIOHTTPSession.send

    async def counting_send(session: Any, request: Any) -> Any:
        counted["LIST" if "list-type=2" in request.url else request.method] += 1
        return await send(session, request)

    monkeypatch.setattr(AIOHTTPSession, "send", counting_send)
    return counted


def test_opening_1050_receipts_on_s3_takes_two_listings_and_the_new_ones(
    bucket: str, requests: Counter[str]
) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    storage = Storage(f"s3://{bucket}/out")
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    receipts = [receipt(shard=f"shard{n}", final=True) for n in range(1050)]
    for one in receipts:
        backend.put_object(bucket, f"out/receipts/{one.name}", one.to_bytes())
    ledger_of(*receipts).publish(storage)
    for n in range(5):
        commit(storage, receipt(shard=f"new{n}", final=True))
    requests.clear()
    ledger = Ledger.open(storage)
    assert len(ledger) == 1055
    assert ledger.num_unpublished == 5
    assert requests == {"LIST": 2 + 1, "HEAD": 2, "GET": 1 + 5}
    requests.clear()
    ledger.publish(storage)
    assert requests.total() <= 3, "a listing, and the manifest"


def test_lines_are_those_of_receipts() -> None:
    groups = tuple(RowGroup(n + 1, 100 * (n + 1), f"{n}" * 64) for n in range(3))
    latents = {"latent_mean": (0.5, -1.0), "latent_std": (1.0, 0.0), "shapes": {"2,1,2,3": 6}}
    for one in [*five(), receipt(part="p", rows=6, row_groups=groups, **latents)]:
        assert list(manifest.lines_of(manifest.table_of([line_of(one)]))) == [line_of(one)]


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_row_groups_stay_with_their_lines_however_many_are_read_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(manifest, "_ROWS_AT_ONCE", at_once)
    lines = []
    for n in range(7):
        groups = tuple(RowGroup(2, 100 * (g + 1), f"{n}{g}" * 32) for g in range(n))
        part = {"part": f"p{n}", "rows": 2 * n, "row_groups": groups} if n else {}
        lines.append(line_of(receipt(n, 10 * n, 10 * n + 10, **part)))
    table = manifest.table_of(lines)
    assert list(manifest.lines_of(table)) == lines
    assert list(manifest.lines_of(table.slice(3))) == lines[3:]


def with_groups(*groups: tuple[int, int]) -> Line:
    """A line whose part has these row groups: clips and ends."""
    return replace(
        line_of(receipt(part="p", rows=3)),
        row_groups=tuple(RowGroup(rows, end, "c" * 64) for rows, end in groups),
    )


@pytest.mark.parametrize(
    "groups",
    [
        (),
        ((2, 900),),
        ((3, 0),),
        ((3, 1000),),
        ((0, 100), (3, 900)),
        ((1, 900), (2, 900)),
        ((1, 900), (2, 800)),
        ((1 << 62, 100), (3 - (1 << 62), 900)),
    ],
)
def test_row_groups_that_do_not_make_up_the_part_are_refused_among_others(
    groups: tuple[tuple[int, int], ...],
) -> None:
    good = with_groups((1, 400), (2, 900))
    table = manifest.table_of([good, with_groups(*groups), good])
    for is_read in (True, False):
        with pytest.raises(ValueError, match="row_groups of segment 0 of s do not make up its"):
            list(manifest.lines_of(table, with_groups=is_read))
    assert list(manifest.lines_of(table.slice(2))) == [good]


def test_row_groups_without_a_part_are_refused() -> None:
    alone = replace(with_groups((3, 900)), part=None)
    with pytest.raises(ValueError, match="do not make up its part"):
        list(manifest.lines_of(manifest.table_of([alone])))


def test_lines_without_row_groups_are_the_others_otherwise() -> None:
    lines = [with_groups((1, 400), (2, 900)), line_of(receipt(1, 10, 20))]
    found = manifest.lines_of(manifest.table_of(lines), with_groups=False)
    assert list(found) == [replace(line, row_groups=()) for line in lines]
