"""A run from bucket to bucket, killed and resumed, against a server that speaks S3."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline.dataset import TokenDataset
from pipeline.errors import PipelineError
from pipeline.status import main as status
from pipeline.verify import main as verify
from tests.pipeline import runs


def test_a_killed_run_from_s3_to_s3_is_finished_with_the_tokens_of_a_local_one(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = runs.write_shards(tmp_path / "shards")
    more = ("encoder.batch_clips=4", "commit.max_clips=1")
    assert runs.run_inline(pattern, tmp_path / "local", *more) == 0
    files = fsspec.filesystem("s3")
    for path in (tmp_path / "shards").iterdir():
        files.put_file(str(path), f"{bucket}/in/{path.name}")

    out = f"s3://{bucket}/out"
    arguments = (
        *("+dataset=tars", f"dataset.shards=s3://{bucket}/in/*.tar", *runs.TINY, *more),
        *("cluster=inline", f"output.root={out}"),
    )
    command = runs.start(*arguments, cwd=tmp_path)
    runs.wait_for_receipts(command, out)
    command.kill()
    assert command.leftovers() == []
    kept = runs.receipts(out)
    assert 1 <= len(kept) < 12

    assert runs.execute_here(*arguments) == 0
    assert runs.tokens(out) == runs.tokens(tmp_path / "local")
    assert [receipt for receipt in runs.receipts(out) if receipt in kept] == kept

    assert verify([out]) == 0
    assert status([out]) == 0
    said = capsys.readouterr().out
    assert f"{out}: sound: 12 receipts, 9 parts, 18 clips" in said
    assert f"{out}: finished" in said

    batches = list(TokenDataset(out, batch_size=6))
    assert [tuple(batch["tokens"].shape) for batch in batches] == [(6, 5, 4, 4)] * 3
    assert [caption for batch in batches for caption in batch["caption"]] == [
        f"caption {number}" for number in range(9) for _ in range(2)
    ]


@pytest.mark.parametrize("missing", ["dataset.shards", "output.root"])
def test_a_bucket_that_is_not_there_is_one_line(missing: str, bucket: str, tmp_path: Path) -> None:
    pattern = runs.write_shards(tmp_path / "shards", num_shards=1, num_videos=1)
    with pytest.raises(PipelineError) as refusal:
        runs.run_inline(pattern, tmp_path / "out", f"{missing}=s3://{bucket}-not/x")
    assert "\n" not in str(refusal.value)
    assert f"{bucket}-not" in str(refusal.value)
    assert not (tmp_path / "out/receipts").exists()
