"""Whole runs in this process: what comes out, and what it does not depend on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.dataset import TokenDataset
from pipeline.errors import FingerprintMismatch
from pipeline.verify import main as verify
from tests.pipeline import runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three tars of three videos of two clips each."""
    return runs.write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def out(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with batches of four."""
    root = tmp_path_factory.mktemp("out")
    assert runs.run_inline(shards, root, "encoder.batch_clips=4") == 0
    return root


def test_every_clip_of_every_video_is_there_once_in_input_order(out: Path) -> None:
    names = [f"v{number:03d}@8fps#{index}" for number in range(9) for index in range(2)]
    assert list(runs.tokens(out)) == names


def test_no_two_clips_have_the_same_tokens(out: Path) -> None:
    found = runs.tokens(out)
    assert len(set(found.values())) == len(found) == 18


def test_a_row_says_where_its_clip_comes_from(out: Path, shards: str) -> None:
    row = next(row for name, row in runs.rows(out).items() if name.endswith("/v004@8fps#1"))
    assert row["clip_id"] == f"{row['shard']}/v004@8fps#1"
    assert row["caption"] == "caption 4"
    assert (row["source_width"], row["source_height"]) == (64, 64)
    assert row["source_fps"] == pytest.approx(8, rel=0.05)
    assert row["start_seconds"] == pytest.approx(17 / 8)
    assert row["end_seconds"] == pytest.approx(34 / 8)
    assert np.diff(row["frame_seconds"]) == pytest.approx(np.full(16, 1 / 8), abs=0.05)
    assert (row["bucket"], row["token_shape"]) == ("32x32", [5, 4, 4])


def test_the_loader_gives_the_tokens_that_were_stored(out: Path) -> None:
    stored = runs.rows(out)
    seen = 0
    for batch in TokenDataset(str(out), batch_size=3):
        for clip_id, caption, tokens in zip(
            batch["clip_id"], batch["caption"], batch["tokens"].numpy(), strict=True
        ):
            blob = np.frombuffer(stored[clip_id]["tokens"], np.uint8)
            low = blob[:160].view("<u2").astype(np.int64)
            high = (blob[160:, None] >> np.array([0, 2, 4, 6]) & 3).reshape(-1).astype(np.int64)
            assert (tokens.reshape(-1) == low + (high << 16)).all()
            assert tokens.shape == (5, 4, 4)
            assert caption == stored[clip_id]["caption"]
            seen += 1
    assert seen == len(stored)


@pytest.mark.parametrize(
    "override", ["commit.max_clips=1", "cluster.open_shards=1", "cluster.open_shards=3"]
)
def test_tokens_do_not_depend_on_companions_in_a_batch(
    override: str, shards: str, out: Path, tmp_path: Path
) -> None:
    assert runs.run_inline(shards, tmp_path, "encoder.batch_clips=4", override) == 0
    assert runs.rows(tmp_path) == runs.rows(out)


def test_tokens_do_not_depend_on_the_number_of_decoders(
    shards: str, out: Path, tmp_path: Path
) -> None:
    assert runs.run_inline(shards, tmp_path, "encoder.batch_clips=4", "encoder.decoders=3") == 0
    assert runs.rows(tmp_path) == runs.rows(out)


def test_segments_of_one_clip_are_one_receipt_per_video(shards: str, tmp_path: Path) -> None:
    assert runs.run_inline(shards, tmp_path, "commit.max_clips=1") == 0
    found = runs.receipts(tmp_path)
    assert sum(receipt["videos"] for receipt in found) == 9
    assert max(receipt["videos"] for receipt in found) == 1
    for receipt, following in itertools.pairwise(found):
        if following["segment"]:
            assert following["start_offset"] == receipt["end_offset"]


def test_the_order_of_shards_on_the_command_line_does_not_matter(
    shards: str, out: Path, tmp_path: Path
) -> None:
    folder = Path(shards).parent
    backwards = ",".join(f'"{folder}/{index:05d}.tar"' for index in (2, 1, 0))
    assert runs.run_inline(f"[{backwards}]", tmp_path, "encoder.batch_clips=4") == 0
    assert runs.rows(tmp_path) == runs.rows(out)


def test_two_rates_in_one_pass_are_the_union_of_two_runs(shards: str, tmp_path: Path) -> None:
    found = {}
    for name, rates in {"both": "[8,4]", "fast": "[8]", "slow": "[4]"}.items():
        out = tmp_path / name
        assert runs.run_inline(shards, out, f"sampling.fps={rates}", "encoder.batch_clips=4") == 0
        found[name] = runs.rows(out)
    assert found["both"] == found["fast"] | found["slow"]
    assert found["fast"]
    assert found["slow"]


def run_latents(shards: str, out: Path, *options: str) -> int:
    return runs.execute_here(
        "+dataset=tars",
        f"dataset.shards={shards}",
        *runs.TINY,
        "tokenizer=kl_4x8x8_4chn",
        "tokenizer.checkpoint=random",
        "output.latent_dtype=fp32",
        f"output.root={out}",
        *options,
    )


def test_compressed_latents_are_the_same_and_smaller(shards: str, tmp_path: Path) -> None:
    found = []
    for compression in ("none", "planes"):
        out = tmp_path / compression
        assert run_latents(shards, out, f"output.compression={compression}") == 0
        assert verify([str(out)]) == 0
        found += TokenDataset(str(out), batch_size=18)
    for name in ("tokens", "log_variance"):
        assert torch.equal(found[0][name], found[1][name])
    none, planes = (
        sum(part.stat().st_size for part in (tmp_path / name).glob("parts/*"))
        for name in ("none", "planes")
    )
    assert planes < none
    with pytest.raises(FingerprintMismatch, match="compression: 'none' there, 'planes' now"):
        run_latents(shards, tmp_path / "none", "output.compression=planes")


def test_latents_come_back_as_mean_and_log_variance(shards: str, tmp_path: Path) -> None:
    assert run_latents(shards, tmp_path) == 0
    [batch] = TokenDataset(str(tmp_path), batch_size=18)
    assert batch["tokens"].shape == batch["log_variance"].shape == (18, 4, 5, 4, 4)
    assert batch["tokens"].isfinite().all()
    assert len({tokens.numpy().tobytes() for tokens in batch["tokens"]}) == 18
    assert verify([str(tmp_path)]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["random_weights"] is True


def test_a_folder_gives_the_same_tokens_as_tars(shards: str, out: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for number in range(9):
        place = videos / f"scene{number % 2}" / f"v{number:03d}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(runs.video(number))
        place.with_suffix(".json").write_text(json.dumps({"caption": f"caption {number}"}))
    (videos / "notes.md").write_text("no video")
    status = runs.execute_here(
        "+dataset=folder",
        f"dataset.path={videos}",
        "dataset.num_buckets=3",
        *runs.TINY,
        "encoder.batch_clips=4",
        f"output.root={tmp_path / 'out'}",
    )
    assert status == 0
    found = runs.rows(tmp_path / "out")
    assert {row["key"] for row in found.values()} == {
        f"scene{number % 2}/v{number:03d}.mp4" for number in range(9)
    }
    by_caption = {(row["caption"], row["clip_index"]): row["tokens"] for row in found.values()}
    assert by_caption == {
        (row["caption"], row["clip_index"]): row["tokens"] for row in runs.rows(out).values()
    }


def test_verify_finds_nothing_to_complain_about(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([str(out)]) == 0
    assert "sound: 3 receipts, 3 parts, 18 clips" in capsys.readouterr().out


def test_nothing_unfinished_stays_behind(out: Path) -> None:
    assert [path for path in out.rglob("*") if ".tmp-" in path.name] == []
    assert not any((out / "progress").glob("probe-*"))


def test_a_dry_run_writes_nothing(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.run_inline(shards, tmp_path / "out", "dry_run=true") == 0
    assert "3 shards, 0.2 MB; 0 final, 3 to do (dry run)" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_same_command_again_has_nothing_to_do(
    shards: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert runs.run_inline(shards, out, "encoder.batch_clips=4") == 0
    assert "3 final, 0 to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()} == before
