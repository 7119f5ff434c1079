"""``pipeline.verify --deep``: stored tokens are those of their source, or the clip is named."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.demo import CLIPS
from pipeline.schema import TokenRow, read_token_format
from pipeline.storage import Storage
from pipeline.verify import main
from pipeline.writer import write_part
from tests.pipeline import runs
from tests.pipeline.receipts import all_receipts

Printed = pytest.CaptureFixture[str]
VIDEOS = ("beak.webm", "drums.3gp", "guitar.mkv")


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real videos."""
    path = tmp_path_factory.mktemp("source") / "00000.tar"
    path.write_bytes(runs.tar_bytes([(name, (CLIPS / name).read_bytes()) for name in VIDEOS]))
    return path


@pytest.fixture(scope="module")
def made(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their tokens, in two segments."""
    root = tmp_path_factory.mktemp("made")
    assert runs.run_inline(tar, root, "encoder.batch_clips=2", "commit.max_clips=2") == 0
    assert len(runs.receipts(root)) > 1
    return root


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Storage:
    """A copy, to be changed."""
    shutil.copytree(made, tmp_path / "out")
    return Storage(str(tmp_path / "out"))


@pytest.fixture(autouse=True)
def threads_of_torch() -> Iterator[None]:
    """A worker in this process sets them."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def deep(out: Storage | Path, capsys: Printed, *options: str) -> tuple[int, list[str]]:
    """Exit code, and the lines behind those of an ordinary verify."""
    capsys.readouterr()
    code = main([str(out), "--deep", *options])
    lines = capsys.readouterr().out.splitlines()
    assert " sound: " in lines[0]
    return code, lines[1:]


def change_record(out: Storage, section: str, **changes: Any) -> None:
    """Let run.json say something else of how it was configured."""
    record = json.loads(out.read("run.json"))
    record["config"][section] |= changes
    out.put("run.json", json.dumps(record).encode())


def change_rows(out: Storage, change: Callable[[list[TokenRow]], list[TokenRow]]) -> str:
    """Replace the first segment by one that is sound but for its rows; the first row's name."""
    receipt = next(one for one in all_receipts(out) if one.part)
    table = pq.read_table(out.path(f"parts/{receipt.part}"))
    own = {name for name, _ in read_token_format(table.schema.metadata).columns}
    rows = change(
        [
            TokenRow(
                **{name: value for name, value in row.items() if name not in own},
                columns={name: row[name] for name in own},
            )
            for row in table.to_pylist()
        ]
    )
    place = Path(out.path("part"))
    digest = write_part(place, rows, read_token_format(table.schema.metadata), row_group_rows=2)
    out.publish(place, f"parts/{receipt.part}")
    forged = replace(
        receipt,
        rows=digest.rows,
        **digest.receipt_fields(),
    )
    out.put(f"receipts/{receipt.name}", forged.to_bytes())
    return rows[0].clip_id


def one_index_changed(rows: list[TokenRow]) -> list[TokenRow]:
    """The lowest bit of the first clip's first index."""
    tokens = bytes([rows[0].tokens[0] ^ 1, *rows[0].tokens[1:]])
    return [replace(rows[0], tokens=tokens), *rows[1:]]


def test_clips_made_again_from_their_source_are_bit_equal(made: Path, capsys: Printed) -> None:
    num_clips = len(runs.rows(made))
    code, lines = deep(made, capsys)
    assert code == 0
    assert lines == [f"tokenised again: {num_clips} clips of 3 videos, {num_clips} bit-equal"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ("+tokenizer=kl_4x8x8_4chn", "tokenizer.checkpoint=random"),
            marks=pytest.mark.slow,
            id="latents",
        ),
        pytest.param(
            ("+tokenizer=demo", "sampling.mode=whole", "sampling.fps=[2,4]"), id="whole videos"
        ),
    ],
)
def test_other_kinds_of_tokens_and_videos_of_a_folder_are_made_again_too(
    options: tuple[str, ...], tmp_path: Path, capsys: Printed
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in VIDEOS:
        shutil.copy(CLIPS / name, folder)
    command = ["+dataset=folder", f"dataset.path={folder}", "dataset.num_buckets=2"]
    sizes = [option for option in runs.TINY if not option.startswith("+")]
    assert runs.execute_here(*command, *options, *sizes, f"output.root={tmp_path / 'out'}") == 0
    num_clips = len(runs.rows(tmp_path / "out"))
    code, lines = deep(tmp_path / "out", capsys)
    assert (code, len(lines)) == (0, 1)
    assert f"{num_clips} clips of 3 videos, {num_clips} bit-equal" in lines[0]


def test_a_source_on_s3_is_read_with_the_secrets_that_run_json_leaves_out(
    tar: Path, bucket: str, tmp_path: Path, capsys: Printed
) -> None:
    source = Storage(f"s3://{bucket}")
    source.put("00000.tar", tar.read_bytes())
    secrets = {"key": "testing", "secret": "a-secret-of-the-test"}
    options = [f"+dataset.storage_options.{name}={value}" for name, value in secrets.items()]
    assert runs.run_inline(f"{source}/00000.tar", tmp_path / "out", *options) == 0
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())["config"]["dataset"]
    assert recorded["storage_options"] == dict.fromkeys(secrets, "***")
    sent = ["--source-options", json.dumps(secrets), "--sample", "1"]
    code, [line] = deep(tmp_path / "out", capsys, *sent)
    assert code == 0
    assert "of 1 videos" in line
    source.delete("00000.tar")
    code, lines = deep(tmp_path / "out", capsys, *sent)
    assert code == 1
    assert f"{source}/00000.tar is not there" in lines[0]


def test_one_index_that_is_not_that_of_its_source_is_found(out: Storage, capsys: Printed) -> None:
    name = change_rows(out, one_index_changed)
    code, lines = deep(out, capsys)
    assert code == 1
    assert lines[0].startswith(f"problem: {name}: tokens differ by ")
    assert "in the same numeric environment" in lines[0]
    assert "in the worst clip" in lines[-1]


def test_a_clip_that_its_source_does_not_give_is_named(out: Storage, capsys: Printed) -> None:
    name = change_rows(out, lambda rows: rows[:1])
    code, lines = deep(out, capsys)
    assert code == 1
    video = name.split("@")[0]
    assert any(f"{video}: " in line and "clips in its source, 1 stored" in line for line in lines)


def test_in_another_environment_a_few_indices_may_differ_and_no_more(
    out: Storage, capsys: Printed
) -> None:
    change_record(out, "encoder", threads=2)

    def change(rows: list[TokenRow]) -> list[TokenRow]:
        wrong = replace(rows[1], tokens=rows[0].tokens)
        return [*one_index_changed(rows[:1]), wrong]

    first = change_rows(out, change)
    code, lines = deep(out, capsys)
    assert code == 1
    [problem, verdict] = lines
    assert problem.startswith(f"problem: {first.removesuffix('#0')}#1: tokens differ by ")
    assert "in another numeric environment, at most 5.0% may" in problem
    assert verdict.endswith("in another numeric environment: threads 1 -> 2")
    num_clips = len(runs.rows(out.root))
    assert f"{num_clips} clips of 3 videos, {num_clips - 2} bit-equal" in verdict


@contextlib.contextmanager
def moved_away(tar: Path) -> Iterator[None]:
    tar.rename(tar.with_suffix(".away"))
    try:
        yield
    finally:
        tar.with_suffix(".away").rename(tar)


@contextlib.contextmanager
def touched(tar: Path) -> Iterator[None]:
    before = tar.stat().st_mtime_ns
    os.utime(tar, ns=(before + 10**9, before + 10**9))
    try:
        yield
    finally:
        os.utime(tar, ns=(before, before))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [(moved_away, "00000.tar is not there"), (touched, "has changed since it was tokenised")],
)
def test_a_source_that_is_gone_or_changed_is_said(
    trouble: Any, said: str, tar: Path, made: Path, capsys: Printed
) -> None:
    with trouble(tar):
        code, lines = deep(made, capsys)
    assert code == 1
    assert len(lines) == len({one["segment"] for one in runs.receipts(made) if one["rows"]}) + 1
    assert "drawn videos cannot be compared: " in lines[0]
    assert said in lines[0]
    assert lines[-1] == "tokenised again: 0 clips of 0 videos, 0 bit-equal"


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            {"video_bytes": 10},
            "cannot be read with the limits in run.json (--limits raises them): too_large",
        ),
        ({"frames": 1}, "with the limits in run.json (--limits raises them): too_many_frames"),
    ],
)
def test_a_video_that_is_refused_now_is_named_with_the_reason(
    limits: dict[str, int], said: str, out: Storage, capsys: Printed
) -> None:
    change_record(out, "limits", **limits)
    code, lines = deep(out, capsys, "--sample", "1")
    assert code == 1
    assert said in lines[0]


def test_a_video_that_a_later_run_rescued_is_made_again_with_the_limits_of_that_run(
    tar: Path, tmp_path: Path, capsys: Printed
) -> None:
    assert runs.run_inline(tar, tmp_path, "limits.frames=100") == 0
    assert runs.quarantined(tmp_path)
    assert runs.run_inline(tar, tmp_path, "retry=quarantined") == 0
    num_clips = len(runs.rows(tmp_path))
    code, lines = deep(tmp_path, capsys)
    assert code == 1
    assert "too_many_frames" in lines[0]
    code, [line] = deep(tmp_path, capsys, "--limits", '{"frames": 1000}')
    assert code == 0
    assert f"{num_clips} clips of 3 videos, {num_clips} bit-equal" in line
    code, [line] = deep(tmp_path, capsys, "--limits", '{"patience": 1}')
    assert code == 1
    assert "patience" in line


def test_another_model_is_refused_before_anything_is_encoded(out: Storage, capsys: Printed) -> None:
    change_record(out, "tokenizer", seed=5)
    code, lines = deep(out, capsys)
    assert code == 1
    [line] = lines
    assert "this code or checkpoint would make other rows: checkpoint_digest" in line


def test_a_field_that_this_code_does_not_know_is_an_error_in_one_line(
    out: Storage, capsys: Printed
) -> None:
    change_record(out, "encoder", quantum=True)
    code, lines = deep(out, capsys)
    assert code == 1
    [line] = lines
    assert "the configuration in run.json" in line
    assert "quantum" in line


def test_a_checkpoint_that_is_gone_is_an_error_in_one_line(out: Storage, capsys: Printed) -> None:
    change_record(out, "tokenizer", checkpoint="/nowhere/model.ckpt")
    code, lines = deep(out, capsys)
    assert code == 1
    [line] = lines
    assert "/nowhere/model.ckpt" in line


def test_what_is_damaged_is_not_encoded(out: Storage, capsys: Printed) -> None:
    out.delete(f"parts/{min(out.entries('parts'))}")
    assert main([str(out), "--deep"]) == 1
    assert "tokenised again" not in capsys.readouterr().out
