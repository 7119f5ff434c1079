"""The clips of the demo: complete, licensed, small, and the same shards every time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import webdataset

from pipeline.demo import CLIPS, NUM_SHARDS, demo_shards, demo_videos

VIDEOS = demo_videos()
HEALTHY = [video for video in VIDEOS if video.stem != "damaged"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return demo_shards(tmp_path_factory.mktemp("shards"))


def digests(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_shards_have_the_same_bytes_every_time(shards: list[Path], tmp_path: Path) -> None:
    again = demo_shards(tmp_path)
    assert [path.name for path in again] == [path.name for path in shards]
    assert digests(again) == digests(shards)


def test_right_shards_are_left_alone_and_wrong_ones_replaced(tmp_path: Path) -> None:
    first, second, *_ = demo_shards(tmp_path)
    right = digests([first, second])
    untouched = first.stat()
    second.write_bytes(second.read_bytes()[:-1])

    demo_shards(tmp_path)

    assert first.stat().st_mtime_ns == untouched.st_mtime_ns
    assert first.stat().st_ino == untouched.st_ino
    assert digests([first, second]) == right
    assert len(list(tmp_path.iterdir())) == NUM_SHARDS, "an unfinished file was left"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it open
def test_webdataset_reads_every_clip_with_caption_and_licence(shards: list[Path]) -> None:
    samples = list(webdataset.WebDataset([str(path) for path in shards], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [video.stem for video in VIDEOS]
    for sample, video in zip(samples, VIDEOS, strict=True):
        assert sample[video.suffix.removeprefix(".")] == video.read_bytes()
        assert sample["txt"] == video.with_suffix(".txt").read_bytes()
        assert json.loads(sample["json"]).keys() == {"licence", "source"}


@pytest.mark.parametrize("video", HEALTHY, ids=lambda video: video.name)
def test_healthy_clip_decodes_to_its_end(video: Path) -> None:
    with av.open(str(video)) as container:
        num_frames = sum(1 for _ in container.decode(video=0))
    assert num_frames >= (36 if video.stem == "short" else 74)


def test_one_clip_is_damaged() -> None:
    (damaged,) = set(VIDEOS) - set(HEALTHY)
    with pytest.raises(av.error.InvalidDataError):
        av.open(str(damaged))


@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_readme_gives_source_and_licence_of_each_clip(video: Path) -> None:
    lines = (CLIPS / "README.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| `{video.name}` |")]
    cells = [cell.strip() for cell in row.split("|")]
    said = json.loads(video.with_suffix(".json").read_text())
    assert said["source"] in cells
    assert said["licence"] in cells


@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_caption_is_one_sentence(video: Path) -> None:
    caption = video.with_suffix(".txt").read_text()
    assert caption.endswith(".\n")
    assert caption.count("\n") == 1


def test_folder_holds_the_listed_clips_and_stays_small() -> None:
    present = {path.name for path in CLIPS.iterdir() if path.is_file()}
    listed = {path.name for video in VIDEOS for path in CLIPS.glob(f"{video.stem}.*")}
    assert present == listed | {"README.md"}
    assert sum(path.stat().st_size for path in CLIPS.iterdir()) < 6_000_000


def test_help_does_not_wait_for_torch() -> None:
    code = "import pipeline.demo, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
