"""``python -m pipeline.plan``: a probe on real videos, and its prediction beside the real run."""

import json
import os
import subprocess
import sys
import time

import boto3
import pytest
import torch

from pipeline import pieces, plan
from pipeline.shards import Shard, ShardKind
from tests.pipeline import runs

PRICES = ("--gpu-price", "2.5", "--core-price", "0.04")


@pytest.fixture
def predicted(tmp_path, capsys):
    """Runs the command here; gives its JSON and what it printed."""

    def run(*arguments):
        threads = torch.get_num_threads()
        file = tmp_path / "plan.json"
        try:
            code = plan.main([*arguments, *runs.TINY, *PRICES, "--json", str(file)])
        finally:
            torch.set_num_threads(threads)
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(file.read_text()), said.out

    return run


@pytest.mark.slow
def test_demo_is_predicted_within_a_quarter(predicted, tmp_path):
    out = f"output.root={tmp_path / 'out'}"
    facts, said = predicted("+dataset=demo", out, "--probe-seconds", "60", "--workers", "3")
    assert not (tmp_path / "out").exists()
    assert runs.execute_here("+dataset=demo", *runs.TINY, out) == 0
    real = runs.receipts(tmp_path / "out")
    prediction = facts["prediction"]
    for name, amount in (
        ("clips", sum(receipt["rows"] for receipt in real)),
        ("videos", sum(receipt["videos"] for receipt in real)),
        ("token_bytes", sum(receipt["part_bytes"] for receipt in real)),
    ):
        assert prediction[name]["value"] == pytest.approx(amount, rel=0.25), name
    assert prediction["clips"]["low"] <= 19 <= prediction["clips"]["high"] + 1e-6
    assert prediction["quarantined"]["value"] == pytest.approx(1, abs=0.5)
    assert prediction["hours"]["value"] > 0
    assert facts["machine"]["cores"] == os.cpu_count()
    lines = ("demo: 4 shards", "clips: ", "hours with 3 x worker (CPU)", "money: ", "assumed:")
    assert [line for line in lines if line not in said] == []


def test_part_of_a_data_set_stands_for_all_of_it(predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "MAX_SHARDS", 4)
    monkeypatch.setattr(pieces, "PIECES_PER_SHARD", 1)
    monkeypatch.setattr(pieces, "PIECE_VIDEOS", 2)
    shards = runs.write_shards(tmp_path / "in", num_shards=8, num_videos=4)
    arguments = ("+dataset=tars", f"dataset.shards={shards}", f"output.root={tmp_path / 'out'}")
    facts, _ = predicted(*arguments, "--probe-seconds", "60")
    assert 0.15 < facts["prediction"]["sampled_share"] < 0.35
    assert facts["prediction"]["clips"]["value"] == pytest.approx(8 * 4 * 2, rel=0.25)
    assert facts["prediction"]["videos"]["value"] == pytest.approx(32, rel=0.25)
    assert len(facts["probe"]["units"]) == 4


def test_folder_is_covered_by_files(predicted, tmp_path):
    for number in range(6):
        (tmp_path / f"v{number}.mp4").write_bytes(runs.video(number))
    facts, _ = predicted(
        "+dataset=folder", f"dataset.path={tmp_path}", "dataset.num_buckets=2",
        f"output.root={tmp_path / 'out'}", "--probe-seconds", "60",
    )  # fmt: skip
    assert facts["prediction"]["videos"]["value"] == 6
    assert facts["prediction"]["clips"]["value"] == 12
    assert facts["prediction"]["sampled_share"] == 1.0


@pytest.mark.slow
def test_time_that_is_over_ends_the_probe_with_what_is_there(predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_VIDEOS", 40)
    shards = runs.write_shards(tmp_path / "in", num_shards=1, num_videos=40)
    began = time.monotonic()
    arguments = ("+dataset=tars", f"dataset.shards={shards}", f"output.root={tmp_path / 'out'}")
    facts, _ = predicted(*arguments, "--probe-seconds", "3", "sampling.resolution=128")
    assert time.monotonic() - began < 100
    assert facts["prediction"]["videos"]["value"] == pytest.approx(40, rel=0.3)


def test_help_takes_no_time():
    began = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-m", "pipeline.plan", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--gpu-price USD_PER_HOUR" in said.stdout
    assert time.monotonic() - began < 20  # on a busy machine; 0.2 s on an idle one


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-price", "much"], "--gpu-price: a number is needed, got 'much'"),
        (["--core-price", "-1"], "must not be negative"),
        (["--probe-seconds", "0"], "must be above 0"),
        (["--workers", "1.5"], "a whole number is needed"),
        (["--surprise"], "unrecognized arguments: --surprise"),
    ],
)
def test_wrong_option_is_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        plan.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no dataset chosen"),
        (["+dataset=demo"], "no tokenizer chosen"),
        (["+dataset=demo", "+tokenizer=demo", "sampling.fps=[0]"], "sampling.fps must be"),
        (["+dataset=demo", "+tokenizer=demo", "nothing.here=1"], "nothing"),
        (["+dataset=tars", "+tokenizer=demo", "dataset.shards=/not/there.tar"], "none of 1 shards"),
        (["+dataset=demo", "+tokenizer=demo", "--config-dir", "/not/there"], "no such folder"),
    ],
)
def test_wrong_input_is_one_line(arguments, words, capsys):
    assert plan.main(arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ")
    assert words in line


def test_data_set_without_a_clip_says_so_in_one_line(tmp_path, capsys):
    broken = runs.tar_bytes([(f"v{number}.mp4", b"no video") for number in range(3)])
    (tmp_path / "s.tar").write_bytes(broken)
    shards = f"dataset.shards={tmp_path / 's.tar'}"
    out = f"output.root={tmp_path / 'out'}"
    threads = torch.get_num_threads()
    assert plan.main(["+dataset=tars", shards, out, *runs.TINY, "--probe-seconds", "20"]) == 1
    torch.set_num_threads(threads)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "gave no clip" in lines[0]


def test_shards_are_chosen_by_their_names_alone():
    shards = [Shard(name=f"s{n}", url="", kind=ShardKind.tar) for n in range(100)]
    chosen = pieces.choose(shards)
    assert len(chosen) == pieces.MAX_SHARDS
    assert pieces.choose(shards[::-1]) == chosen
    assert [shard.name for shard in chosen] != sorted(shard.name for shard in chosen)


def test_shards_in_a_bucket(predicted, bucket, tmp_path):
    runs.write_shards(tmp_path, num_shards=2, num_videos=2)
    client = boto3.client("s3")
    for name in ("00000.tar", "00001.tar"):
        client.upload_file(str(tmp_path / name), bucket, name)
    facts, _ = predicted(
        "+dataset=tars",
        f"dataset.shards=s3://{bucket}/{{00000..00001}}.tar",
        f"output.root=s3://{bucket}/out",
        "--probe-seconds",
        "60",
    )
    assert facts["prediction"]["clips"]["value"] == pytest.approx(8)
    names = {entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert names == {"00000.tar", "00001.tar"}
