"""Quality columns, samples and the gate: real clips, inline and on Ray, resumed and stopped."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch

from pipeline import diff
from pipeline.columns import QUALITY
from pipeline.dataset import TokenDataset
from pipeline.errors import FingerprintMismatch, QualityCollapsed
from pipeline.quality_gate import QualityRules
from pipeline.verify import main as verify
from tests.pipeline import runs
from tokenizer import CheckpointError, load_tokenizer

FOREIGN = "tests.pipeline.foreign"
SLOTS = 1000


def arguments(shards: str, out: Path, *more: str, plugin: str = "Palette") -> tuple[str, ...]:
    return (
        *("+dataset=tars", f"dataset.shards={shards}", "+tokenizer=plugin", "tokenizer.name=mine"),
        *(f"tokenizer.plugin={FOREIGN}:{plugin}", "sampling.resolution=32", "encoder.threads=1"),
        *("encoder.decoders=1", "encoder.batch_clips=2", f"output.root={out}"),
        *("quality.sample_fraction=1", f"quality.max_samples={SLOTS}", "quality.window=3"),
        *("quality.min_recon_psnr=12", "commit.max_clips=4", *more),
    )


def run(shards: str, out: Path, *more: str, plugin: str = "Palette") -> int:
    return runs.execute_here(*arguments(shards, out, *more, plugin=plugin))


def samples(out: Path) -> dict[str, tuple[dict, bytes]]:
    """Line and picture by clip, of clips that have a slot of their own."""
    rules = QualityRules(max_samples=SLOTS)
    shared = Counter(rules.slot(name) for name in runs.rows(out))
    found = {}
    for path in sorted((out / "samples").glob("*.json")):
        line = json.loads(path.read_text())
        if shared[rules.slot(line["clip_id"])] == 1:
            found[line["clip_id"]] = (line, path.with_suffix(".png").read_bytes())
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two tars of two videos, four clips of nine frames each."""
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=2, num_videos=2)


@pytest.fixture(scope="module")
def straight(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "out"
    assert run(shards, out) == 0
    return out


def test_every_row_says_how_its_clip_looks(straight: Path) -> None:
    rows = runs.rows(straight)
    assert len(rows) == 16
    for row in rows.values():
        assert 20 < row["luma_mean"] < 235
        assert 1 < row["frame_difference"] < 255
        assert 0 <= row["black_fraction"] < 0.7
        assert 0 < row["token_entropy"] <= 6  # of 64 colours
        assert 12 < row["recon_psnr"] < 80


def test_samples_show_source_and_reconstruction_and_are_no_orphans(
    straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, found = runs.rows(straight), samples(straight)
    assert len(found) > 10
    for name, (line, picture) in found.items():
        assert line["recon_psnr"] == rows[name]["recon_psnr"]
        assert (line["fps"], line["bucket"]) == (8.0, "32x32")
        assert picture.startswith(b"\x89PNG")
    assert verify([str(straight), "--deep", "--sample", "3"]) == 0
    said = capsys.readouterr().out
    assert "no receipt names" not in said
    assert "bit-equal" in said


def test_columns_are_read_and_filtered_and_the_card_explains_them(straight: Path) -> None:
    rows = runs.rows(straight)
    middle = sorted(row["token_entropy"] for row in rows.values())[8]
    chosen = TokenDataset(
        str(straight),
        batch_size=1,
        columns=["clip_id", "luma_mean"],
        filters=[("token_entropy", ">=", middle)],
    )
    found = {batch["clip_id"][0]: float(batch["luma_mean"][0]) for batch in chosen}
    assert found == {
        name: row["luma_mean"] for name, row in rows.items() if row["token_entropy"] >= middle
    }
    card = (straight / "README.md").read_text()
    assert all(f"| `{name}` | double, may be null |" in card for name, _ in QUALITY)


def test_a_run_that_was_killed_gives_what_a_straight_one_gives(
    shards: str, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    slow = ("cluster=inline", "cluster.open_shards=1", "commit.max_clips=1")
    command = runs.start(*arguments(shards, out, *slow), cwd=tmp_path)
    runs.wait_for_receipts(command, out, 2)
    command.kill()
    assert run(shards, out) == 0
    assert runs.rows(out) == runs.rows(straight)
    assert samples(out) == samples(straight)
    assert diff.main([str(out), str(straight)]) == 0


def test_ray_chooses_the_same_clips(shards: str, tmp_path: Path) -> None:
    half = "quality.sample_fraction=0.5"
    assert run(shards, tmp_path / "one", half) == 0
    ended = runs.run(*arguments(shards, tmp_path / "two", half), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = runs.rows(tmp_path / "one")
    assert runs.rows(tmp_path / "two") == rows
    assert samples(tmp_path / "two") == samples(tmp_path / "one")
    rules = QualityRules(sample_fraction=0.5)
    assert {name for name, row in rows.items() if row["recon_psnr"] is not None} == {
        name for name in rows if rules.chooses(name)
    }


def test_swapped_channels_stop_a_run_and_quarantine_nothing(shards: str, tmp_path: Path) -> None:
    with pytest.raises(QualityCollapsed, match=r"below quality\.min_recon_psnr=12") as raised:
        run(shards, tmp_path / "out", plugin="Swapped")
    assert "\n" not in str(raised.value)
    assert runs.quarantined(tmp_path / "out") == {}


def test_a_decoder_of_another_size_stops_a_run_with_one_line(shards: str, tmp_path: Path) -> None:
    line = "decode gave [9, 16, 32, 3] for a clip of [9, 32, 32, 3]: correct decode, or leave it"
    with pytest.raises(QualityCollapsed, match=re.escape(line)) as raised:
        run(shards, tmp_path / "out", plugin="HalfTheRows")
    assert "\n" not in str(raised.value)
    assert runs.quarantined(tmp_path / "out") == {}


@pytest.mark.slow
def test_swapped_channels_stop_a_run_on_ray_with_one_line(shards: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = runs.run(*arguments(shards, out, plugin="Swapped"), cwd=tmp_path)
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "median recon_psnr of the last 3 sampled clips" in line
    assert "below quality.min_recon_psnr=12" in line
    assert runs.quarantined(out) == {}
    assert len(runs.rows(out)) < 16


def test_random_weights_are_stopped_only_by_a_bound_that_was_given(
    shards: str, tmp_path: Path
) -> None:
    options = ("tokenizer.checkpoint=random", "quality.sample_fraction=1", "quality.window=2")
    assert runs.run_inline(shards, tmp_path / "free", *options) == 0
    worst = min(row["recon_psnr"] for row in runs.rows(tmp_path / "free").values())
    assert worst < 15
    with pytest.raises(QualityCollapsed, match=r"below quality\.min_recon_psnr=60"):
        runs.run_inline(shards, tmp_path / "bound", *options, "quality.min_recon_psnr=60")


def test_weights_that_do_not_belong_together_stop_a_run(shards: str, tmp_path: Path) -> None:
    weights = load_tokenizer("demo", checkpoint="random", ch=8, num_res_blocks=1).state_dict()
    path = tmp_path / "wrong.safetensors"
    safetensors.torch.save_file(weights, path)
    options = (f"tokenizer.checkpoint={path}", "quality.sample_fraction=1", "quality.window=2")
    with pytest.raises(QualityCollapsed, match=r"below quality\.min_recon_psnr=15"):
        runs.run_inline(shards, tmp_path / "out", *options)


def test_weights_with_nan_are_refused_by_name(shards: str, tmp_path: Path) -> None:
    weights = load_tokenizer("demo", checkpoint="random", ch=8, num_res_blocks=1).state_dict()
    name = next(name for name in weights if name.startswith("encoder."))
    weights[name].view(-1)[0] = float("nan")
    safetensors.torch.save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=name) as raised:
        runs.run_inline(
            shards, tmp_path / "out", f"tokenizer.checkpoint={tmp_path / 'nan.safetensors'}"
        )
    assert "\n" not in str(raised.value)


def test_latents_that_are_no_numbers_stop_a_run(shards: str, tmp_path: Path) -> None:
    with pytest.raises(QualityCollapsed, match="latents that are not finite"):
        run(shards, tmp_path / "out", "encoder.canary=off", plugin="NotANumber")
    assert runs.rows(tmp_path / "out") == {}


def test_without_a_decoder_or_a_fraction_there_is_no_recon_psnr(
    shards: str, straight: Path, tmp_path: Path
) -> None:
    assert run(shards, tmp_path / "one", plugin="WithoutDecode") == 0
    assert run(shards, tmp_path / "two", "quality.sample_fraction=0") == 0
    for out in (tmp_path / "one", tmp_path / "two"):
        rows = runs.rows(out)
        assert {row["recon_psnr"] for row in rows.values()} == {None}
        assert not (out / "samples").exists()
        wanted = {name: row | {"recon_psnr": None} for name, row in runs.rows(straight).items()}
        assert rows == wanted


def test_an_out_from_before_there_were_such_columns_is_continued_without_them(
    shards: str, tmp_path: Path
) -> None:
    first = shards.replace("{00000..00001}", "00000")
    without = ("quality.columns=false", "quality.sample_fraction=0")
    assert run(first, tmp_path / "out", *without) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "quality" not in record["fingerprint_of"]
    del record["config"]["quality"]  # as it was written then
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    with pytest.raises(FingerprintMismatch, match=r"quality\.sample_fraction"):
        run(shards, tmp_path / "out")
    assert run(shards, tmp_path / "out", *without) == 0
    rows = runs.rows(tmp_path / "out").values()
    assert len(rows) == 16
    assert not any(name in row for row in rows for name, _ in QUALITY)
    assert verify([str(tmp_path / "out"), "--deep", "--sample", "2"]) == 0


def test_a_whole_video_has_means_of_all_its_pieces_and_a_look_at_its_first_two(
    shards: str, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(shards, out, "sampling.mode=whole") == 0
    rows, clips = runs.rows(out), runs.rows(straight).values()
    assert len(rows) == 4
    for row in rows.values():
        own = [clip for clip in clips if clip["key"] == row["key"]]
        mean = sum(clip["luma_mean"] for clip in own) / len(own)
        assert row["luma_mean"] == pytest.approx(mean, rel=0.05)
        assert row["frame_difference"] > 1
        assert 12 < row["recon_psnr"] < 80
    lines = [line for line, _ in samples(out).values()]
    assert {max(line["frames"]) for line in lines} == {16}
