"""``pipeline.diff``: two generations are equal, or it is said in what they differ."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.diff import main
from pipeline.packing import pack_indices, pack_latents
from pipeline.run_record import write_run_record
from pipeline.shard_diff import MAX_NAMES, Named
from pipeline.storage import Storage
from pipeline.writer import write_part
from tests.pipeline import runs
from tests.pipeline.fakes import MATERIAL, indices_of, latent_row, make_out, row, token_format
from tests.pipeline.receipts import receipt

Printed = pytest.CaptureFixture[str]


def diff(one: Path | str, two: Path | str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code, and what --json says."""
    code = main([str(one), str(two), "--json", str(folder / "diff.json")])
    facts: dict[str, Any] = json.loads((folder / "diff.json").read_text())
    assert facts["equal"] == (code == 0)
    return code, facts


def out_of(root: Path, rows: list[Any], packing: str = "u16+u2", **changes: Any) -> Storage:
    """An OUT of one shard, committed in one segment."""
    storage = Storage(str(root))
    write_run_record(
        storage, material=MATERIAL, config={}, random_weights=False, batch_clips=1, device="cpu"
    )
    digest = write_part(root / "part", rows, token_format(packing), row_group_rows=2)
    storage.publish(root / "part", "parts/p.parquet")
    committed = receipt(
        part="p.parquet",
        rows=digest.rows,
        final=True,
        **digest.receipt_fields(),
        **changes,
    )
    storage.put(f"receipts/{committed.name}", committed.to_bytes())
    return storage


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two tars of two videos of two clips each."""
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=2, num_videos=2)


@pytest.fixture(scope="module")
def out(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("out")
    assert runs.run_inline(shards, root) == 0
    return root


def test_the_same_videos_in_other_segments_are_equal(
    shards: str, out: Path, tmp_path: Path, capsys: Printed
) -> None:
    assert runs.run_inline(shards, tmp_path / "out", "commit.max_clips=1") == 0
    assert len(runs.receipts(tmp_path / "out")) > len(runs.receipts(out))
    capsys.readouterr()
    code, facts = diff(out, tmp_path / "out", tmp_path)
    assert code == 0
    assert (facts["shards_in_both"], facts["clips_in_both"]) == (2, 8)
    assert facts["equal_share"] == 1
    assert facts["settings"]["config.commit.max_clips"] == [4096, 1]
    assert capsys.readouterr().out.splitlines()[-1] == "equal"


def test_another_model_and_another_list_of_shards_are_told_apart(
    shards: str, out: Path, tmp_path: Path, capsys: Printed
) -> None:
    first = shards.replace("{00000..00001}", "00000")
    assert runs.run_inline(first, tmp_path / "out", "tokenizer.seed=7") == 0
    capsys.readouterr()
    code, facts = diff(out, tmp_path / "out", tmp_path)
    assert code == 1
    assert list(facts["fingerprint"]) == ["checkpoint_digest"]
    assert facts["shards_only_in_1"]["count"] == 1
    assert facts["clips_only_in_1"]["count"] == facts["clips_in_both"] == 4
    assert facts["tokens_differ"]["count"] == 4
    mine, theirs = runs.rows(out), runs.rows(tmp_path / "out")
    low = [
        np.frombuffer(rows[name]["tokens"], "<u2")[:80]
        for rows in (mine, theirs)
        for name in theirs
    ]
    high = [
        np.frombuffer(rows[name]["tokens"], np.uint8)[160:, None] >> np.array([0, 2, 4, 6]) & 3
        for rows in (mine, theirs)
        for name in theirs
    ]
    equal = np.equal(low[:4], low[4:]) & np.equal(high[:4], high[4:]).reshape(4, 80)
    assert facts["equal_share"] == pytest.approx(equal.mean())
    assert list(facts["columns_differ"]) in ([], ["token_entropy"])  # follows from the tokens
    assert "fingerprint checkpoint_digest: " in capsys.readouterr().out


def test_indices_are_compared_by_value_whatever_their_packing(tmp_path: Path) -> None:
    plain = [replace(row(n), tokens=pack_indices(indices_of(n), "i32")) for n in range(3)]
    one = out_of(tmp_path / "1", [row(n) for n in range(3)])
    two = out_of(tmp_path / "2", plain, packing="i32")
    code, facts = diff(one.root, two.root, tmp_path)
    assert (code, facts["values"], facts["equal_values"]) == (0, 18, 18)


def test_one_index_of_one_clip_is_found_and_counted(tmp_path: Path) -> None:
    changed = indices_of(4)
    changed[0, 1, 2] ^= 1
    rows = [row(n) for n in range(5)]
    one = out_of(tmp_path / "1", rows)
    rows[4] = replace(rows[4], tokens=pack_indices(changed, "u16+u2"))
    code, facts = diff(one.root, out_of(tmp_path / "2", rows).root, tmp_path)
    assert code == 1
    assert facts["tokens_differ"] == {"count": 1, "names": [rows[4].clip_id]}
    assert facts["equal_share"] == pytest.approx(29 / 30)
    assert facts["equal_share_where_different"] == pytest.approx(5 / 6)


def test_latents_are_compared_by_their_distance(tmp_path: Path) -> None:
    values = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 1, 2, 3)
    other = values.copy()
    other[0, 0, 0, 0] += 0.5
    one = out_of(tmp_path / "1", [latent_row(0, values), latent_row(1, values)], "fp32")
    two = out_of(tmp_path / "2", [latent_row(0, values), latent_row(1, other)], "fp32")
    code, facts = diff(one.root, two.root, tmp_path)
    assert code == 1
    assert facts["max_absolute"] == pytest.approx(0.5)
    assert facts["mean_absolute"] == pytest.approx(0.5 / 48)
    half = [replace(latent_row(n, values), tokens=pack_latents(values, "fp16")) for n in (0, 1)]
    code, facts = diff(one.root, out_of(tmp_path / "3", half, "fp16").root, tmp_path)
    assert 0 < facts["max_absolute"] < 1e-3


def test_latents_against_indices_and_other_shapes_are_said_to_be_incomparable(
    tmp_path: Path,
) -> None:
    values = np.ones((4, 1, 2, 3), np.float32)
    one = out_of(tmp_path / "1", [row(0), row(1, shape=(1, 2, 4))])
    two = out_of(tmp_path / "2", [row(0), row(1)])
    three = out_of(tmp_path / "3", [latent_row(0, values)], "fp32")
    assert diff(one.root, two.root, tmp_path)[1]["shapes_differ"]["names"] == [row(1).clip_id]
    assert diff(one.root, three.root, tmp_path)[1]["shapes_differ"]["count"] == 1


def test_other_columns_are_named_one_by_one(tmp_path: Path) -> None:
    one = out_of(tmp_path / "1", [row(0), row(1)])
    two = out_of(tmp_path / "2", [row(0, caption="new"), row(1, source_width=1, caption="new")])
    code, facts = diff(one.root, two.root, tmp_path)
    assert code == 1
    counts = {name: clips["count"] for name, clips in facts["columns_differ"].items()}
    assert counts == {"caption": 2, "source_width": 1}
    assert facts["tokens_differ"]["count"] == 0


def test_quarantined_videos_are_compared_by_key_and_reason(tmp_path: Path, capsys: Printed) -> None:
    def bad(**reasons: str) -> list[dict[str, str]]:
        return [{"key": k, "reason": r, "message": "seen"} for k, r in reasons.items()]

    rows = [row(0)]
    one = out_of(tmp_path / "1", rows, quarantined=bad(a="crash", b="empty", c="memory"))
    two = out_of(tmp_path / "2", rows, quarantined=bad(b="empty", c="crash", d="too_long"))
    code, facts = diff(one.root, two.root, tmp_path)
    assert code == 1
    assert facts["quarantined_only_in_1"]["names"] == ["s::a (crash)"]
    assert facts["quarantined_only_in_2"]["names"] == ["s::d (too_long)"]
    assert facts["quarantined_otherwise"]["names"] == ["s::c (memory | crash)"]
    assert "quarantined only in 1: 1: s::a (crash)" in capsys.readouterr().out


def test_a_retry_that_saved_a_video_replaces_the_list_before_it(tmp_path: Path) -> None:
    bad = [{"key": "a", "reason": "crash", "message": "seen"}]
    one = out_of(tmp_path / "1", [row(0)])
    two = out_of(tmp_path / "2", [row(0)], quarantined=bad)
    assert diff(one.root, two.root, tmp_path)[0] == 1
    amended = receipt(generation=1, final=True)
    two.put(f"receipts/{amended.name}", amended.to_bytes())
    assert diff(one.root, two.root, tmp_path)[0] == 0


def test_names_are_few_and_counts_are_whole() -> None:
    both = Named()
    for _ in range(3):
        some = Named()
        for number in range(MAX_NAMES - 1):
            some.add(str(number))
        both.extend(some)
    assert (both.count, len(both.names)) == (3 * (MAX_NAMES - 1), MAX_NAMES)


@pytest.mark.parametrize("damage", ["no run.json", "part", "receipt", "numerics"])
def test_what_cannot_be_read_is_an_error_and_no_difference(
    damage: str, tmp_path: Path, capsys: Printed
) -> None:
    one = make_out(tmp_path / "1")
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    two = Storage(str(tmp_path / "2"))
    place = {
        "no run.json": "run.json",
        "part": f"parts/{min(two.entries('parts'))}",
        "receipt": "receipts/shard0.00000.json",
        "numerics": "numerics.json",
    }[damage]
    if damage == "no run.json":
        two.delete(place)
    else:
        two.put(place, b"{")
    assert main([one.root, two.root]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert Path(place).stem in err


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: Printed) -> None:
    one = make_out(tmp_path / "1")
    with pytest.raises(SystemExit, match="2"):
        main([one.root, one.root, "--json", str(tmp_path / "no" / "diff.json")])
    assert f"there is no folder {tmp_path / 'no'}" in capsys.readouterr().err
    assert main([one.root, one.root, "--json", "/dev/full"]) == 2
    assert "error: --json /dev/full: No space left on device" in capsys.readouterr().err


def test_an_out_on_s3_is_compared_with_a_local_one(
    bucket: str, tmp_path: Path, capsys: Printed
) -> None:
    one = make_out(tmp_path / "1", shards=1)
    two = make_out(f"s3://{bucket}/out", shards=1, max_clips=1)
    assert main([one.root, two.root]) == 0
    assert f"2: s3://{bucket}/out" in capsys.readouterr().out
