"""Latents and joined columns as a training loop asks for them, through `TokenDataset`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.dataset import TokenDataset
from pipeline.storage import Storage
from tests.pipeline.fakes import latent_row, make_out, row, token_format
from tests.pipeline.test_dataset import out_of

NUM_CLIPS = 12


@pytest.fixture
def latents(tmp_path: Path) -> str:
    """Clips of ``[2, 1, 2, 3]``: channel means near 5 and -3, deviations 2 and 0.5."""
    noise = np.random.default_rng(0).normal(size=(NUM_CLIPS, 4, 1, 2, 3)).astype(np.float32)
    scale = np.array([2, 0.5, 0.1, 0.1], np.float32).reshape(4, 1, 1, 1)
    values = noise * scale + np.array([5, -3, -1, 1], np.float32).reshape(4, 1, 1, 1)
    rows = [latent_row(number, clip) for number, clip in enumerate(values)]
    return out_of(tmp_path, rows, token_format("fp32"))


def test_normalised_latents_have_mean_0_and_variance_1_by_channel(latents: str) -> None:
    (batch,) = TokenDataset(latents, batch_size=NUM_CLIPS, normalize=True)
    by_channel = batch["tokens"].transpose(0, 1).reshape(2, -1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(by_channel.std(1, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_normalising_indices_is_refused(tmp_path: Path) -> None:
    out = make_out(tmp_path / "out", shards=1, videos=2)
    with pytest.raises(ValueError, match="normalize is for latents"):
        TokenDataset(out.root, batch_size=1, normalize=True)


def test_samples_are_of_the_stored_gaussian_and_the_same_on_any_number_of_ranks(
    latents: str,
) -> None:
    def drawn(**changes: int) -> dict[str, torch.Tensor]:
        world = changes.get("world_size", 1)
        found = {}
        for rank in range(world):
            dataset = TokenDataset(
                latents,
                batch_size=4 // world,
                shuffle=True,
                latents="sample",
                rank=rank,
                world_size=world,
                seed=changes.get("seed", 0),
            )
            for batch in dataset:
                found.update(zip(batch["clip_id"], batch["tokens"], strict=True))
        return found

    means = {
        clip: (mean, log_variance)
        for batch in TokenDataset(latents, batch_size=1)
        for clip, mean, log_variance in zip(
            batch["clip_id"], batch["tokens"], batch["log_variance"], strict=True
        )
    }
    alone, shared, other = drawn(), drawn(world_size=2), drawn(seed=1)
    assert alone.keys() == shared.keys() == means.keys()
    assert all(torch.equal(alone[clip], shared[clip]) for clip in alone)
    assert not any(torch.equal(alone[clip], other[clip]) for clip in alone)
    noise = torch.stack(
        [(alone[clip] - mean) / (0.5 * logs).exp() for clip, (mean, logs) in means.items()]
    )
    assert abs(float(noise.mean())) < 0.35  # 4 deviations of the mean of 144 normal numbers
    assert 0.75 < float(noise.std()) < 1.25


def test_joined_columns_stand_beside_their_clips(tmp_path: Path) -> None:
    out: Storage = make_out(tmp_path / "out", shards=2, videos=3)
    ids = [clip for batch in TokenDataset(out.root, batch_size=1) for clip in batch["clip_id"]]
    table = pa.table(
        {"clip_id": ids[::-1], "score": [float(len(ids) - n) for n in range(len(ids))]}
    )
    pq.write_table(table, tmp_path / "scores.parquet")
    dataset = TokenDataset(
        out.root, batch_size=2, shuffle=True, join=str(tmp_path / "scores.parquet")
    )
    seen = {
        clip: float(score)
        for batch in dataset
        for clip, score in zip(batch["clip_id"], batch["score"], strict=True)
    }
    assert seen == {clip: number + 1.0 for number, clip in enumerate(ids)}


def test_places_may_be_paths(tmp_path: Path) -> None:
    out: Storage = make_out(tmp_path / "out", shards=1, videos=2)
    (tmp_path / "side.csv").write_text("clip_id,score\nnobody,1.0\n")
    dataset = TokenDataset(
        Path(out.root), batch_size=2, join=tmp_path / "side.csv", cache_dir=tmp_path / "cache"
    )
    (batch,) = dataset
    assert batch["score"].isnan().all()
    assert dataset.refresh() is False


def test_a_joined_column_never_takes_the_place_of_one_of_the_data_set(tmp_path: Path) -> None:
    record = token_format(columns=(("aesthetic", "float"),))
    rows = [row(number, columns={"aesthetic": float(number)}) for number in range(4)]
    root = out_of(tmp_path, rows, record)
    (tmp_path / "side.csv").write_text("clip_id,aesthetic\nnobody,1.0\n")
    with pytest.raises(ValueError, match=r"side\.csv: batches have a 'aesthetic' already; rename"):
        TokenDataset(root, batch_size=2, columns=(), join=str(tmp_path / "side.csv"))


@pytest.mark.parametrize("name", ["tokens", "samples", "is_padding", "caption"])
def test_a_joined_column_never_takes_the_place_of_one_that_a_batch_has(
    tmp_path: Path, name: str
) -> None:
    out: Storage = make_out(tmp_path / "out", shards=1, videos=2)
    pq.write_table(pa.table({"clip_id": ["a"], name: [1]}), tmp_path / "side.parquet")
    with pytest.raises(ValueError, match=name):
        TokenDataset(out.root, batch_size=1, columns=(), join=str(tmp_path / "side.parquet"))
