"""``OUT/README.md``: true, readable for people and for Hugging Face, and its code runs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.card import COLUMNS, LICENSES, MARK
from pipeline.resolve_spans import stored_columns
from pipeline.schema import TokenRow
from pipeline.storage import Storage
from pipeline.verify import main as verify
from tests.pipeline import runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=2, num_videos=2)


@pytest.fixture(scope="module")
def out(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("out")
    assert runs.run_inline(shards, root, "dataset.license=cc-by-4.0") == 0
    return root


def header(text: str) -> dict[str, Any]:
    _, block, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(block))


def table(text: str, title: str) -> dict[str, list[str]]:
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in lines[2:]}


def test_the_header_is_one_that_hugging_face_takes(out: Path) -> None:
    found = header((out / "README.md").read_text())
    assert found["license"] == "cc-by-4.0"
    assert found["pretty_name"] == "tars, tokens of demo"
    assert found["size_categories"] == ["n<1K"]
    [config] = found["configs"]
    assert config["config_name"] == "default"
    assert {path.name for path in out.glob(config["data_files"])} == {
        receipt["part"] for receipt in runs.receipts(out)
    }


def test_counts_and_columns_are_those_of_the_parts(out: Path) -> None:
    text, rows = (out / "README.md").read_text(), runs.rows(out)
    counts = {name: values[0] for name, values in table(text, "Counts").items()}
    assert (counts["shards"], counts["videos"]) == ("2 complete", "4")
    assert counts["clips (rows)"] == counts["clips of shape [5,4,4]"] == str(len(rows)) == "8"
    assert counts["latent positions"] == str(8 * 5 * 4 * 4)
    size = sum(path.stat().st_size for path in out.glob("parts/*"))
    assert counts["bytes of parts"] == f"{size:,}"
    schema = pq.read_schema(next(out.glob("parts/*")))
    columns = table(text, "Columns")
    always = [name for name in COLUMNS if name != "span_index"]  # of an OUT with spans only
    assert [name.strip("`") for name in columns] == schema.names == always
    assert all(meaning != "of the data set" for _, meaning in columns.values())
    assert "indices in [0, 262,144)" in text


def test_every_column_that_is_not_the_users_own_has_a_meaning() -> None:
    own = ("score", "short")
    run = runs.config(
        *("+dataset=demo", "+tokenizer=demo", "dataset.spans=/d/spans.csv"),
        *("dataset.columns={score: float}", "dataset.captions=[short]"),
    )
    stored = [name for name, _ in stored_columns(run)]
    assert {"span_index", "luma_mean", *own} <= set(stored)
    rows = [item.name for item in fields(TokenRow) if item.name != "columns"]
    assert {*rows, *stored} - {*own} == set(COLUMNS)


def test_provenance_is_that_of_the_run(out: Path) -> None:
    found = table((out / "README.md").read_text(), "Provenance")
    receipt = runs.receipts(out)[0]
    assert found["fingerprint"] == [f"`{receipt['fingerprint']}`"]
    assert found["version of torch"][0] in found["made on (environment 0)"][0]
    assert re.fullmatch("`[0-9a-f]{64}`", found["checkpoint digest (SHA-256)"][0])
    assert "**The weights are random" in (out / "README.md").read_text()


def test_its_six_lines_read_the_data_set(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 6
    monkeypatch.chdir(out)
    exec(code, {})
    first, second = capsys.readouterr().out.splitlines()
    clip_id, caption = first.split(" ", 1)
    assert runs.rows(out)[clip_id]["caption"] == caption
    assert second == "torch.int32 [8, 5, 4, 4]"


def test_verify_takes_it_for_no_orphan(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([str(out), "--clean"]) == 0
    assert "no receipt names" not in capsys.readouterr().out
    assert (out / "README.md").exists()


def test_a_run_refreshes_it_and_an_equal_one_leaves_it(shards: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert runs.run_inline(shards.replace("{00000..00001}", "00000"), tmp_path) == 0
    text = path.read_text()
    assert header(text)["license"] == "unknown"
    assert table(text, "Counts")["shards"] == ["1 complete"]
    assert runs.run_inline(shards, tmp_path) == 0
    assert table(path.read_text(), "Counts")["shards"] == ["2 complete"]
    written = path.stat().st_mtime_ns
    assert runs.run_inline(shards, tmp_path) == 0
    assert path.stat().st_mtime_ns == written
    assert runs.run_inline(shards, tmp_path, "dataset.license='Our Own: v1'") == 0
    found = header(path.read_text())
    assert (found["license"], found["license_name"]) == ("other", "Our Own: v1")
    path.write_text("# my own words")
    assert runs.run_inline(shards, tmp_path) == 0
    assert path.read_text() == "# my own words"
    assert "Without this line" in MARK


def test_an_unfinished_run_has_one_that_says_so(tmp_path: Path) -> None:
    shards = Path(runs.write_shards(tmp_path / "in", num_shards=1, num_videos=2)).parent
    tar = shards / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    assert runs.run_inline(tar, tmp_path / "out") == 1
    counts = table((tmp_path / "out" / "README.md").read_text(), "Counts")
    assert any(name.startswith("cut: ") for name in counts)


def test_a_dry_run_writes_none(shards: str, tmp_path: Path) -> None:
    assert runs.run_inline(shards, tmp_path / "out", "dry_run=true") == 0
    assert not (tmp_path / "out").exists()


def test_it_is_written_to_s3(shards: str, bucket: str) -> None:
    out = f"s3://{bucket}/out"
    assert (
        runs.run_inline(shards, out, "tokenizer=kl_4x8x8_4chn", "tokenizer.checkpoint=random") == 0
    )
    text = Storage(out).read("README.md").decode()
    assert "4 channels, mean and log-variance; axes `c t h w`, packed as `fp16`" in text
    assert table(text, "Counts")["clips of shape [4,5,4,4]"] == ["8"]


def test_known_licenses_are_spelt_as_hugging_face_spells_them() -> None:
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in LICENSES)
