"""Images beside videos: whole runs, resumed, in folders and on Ray, checked again and loaded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import plan, status, verify
from pipeline.dataset import TokenDataset
from pipeline.errors import ConfigError, FingerprintMismatch
from pipeline.mixture import MixedTokenDataset
from pipeline.resolve import identity
from tests.pipeline import pictures, runs, tars

IMAGES = ("dataset.image_extensions=[jpg,png,webp]",)
SMALL = ("sampling.clip_frames=5", "tokenizer.checkpoint=random", "commit.max_clips=3")


def scene(seed: int) -> np.ndarray:
    dice = np.random.default_rng(seed)
    return dice.integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)


def members() -> list[tuple[str, bytes]]:
    """Three videos, six images of three formats, a thumbnail, and what is refused."""
    encoders = {"jpg": pictures.jpeg, "png": pictures.image, "webp": pictures.webp}
    found: list[tuple[str, bytes]] = []
    for number in range(6):
        ending = list(encoders)[number % 3]
        found += [
            (f"i{number}.{ending}", encoders[ending](scene(number))),
            (f"i{number}.json", json.dumps({"caption": f"image {number}"}).encode()),
        ]
        if number % 2 == 0:
            found += [(f"v{number}.mp4", runs.video(number, num_frames=12))]
    found += [("v0b.mp4", runs.video(50, num_frames=12)), ("v0b.jpg", pictures.jpeg(scene(9)))]
    found += [("two.jpg", pictures.jpeg(scene(7))), ("two.png", pictures.image(scene(7)))]
    return [*found, ("bad.png", b"no picture"), ("liar.jpg", runs.video(3, num_frames=8))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "0.tar").write_bytes(tars.tar_bytes(members()))
    (folder / "1.tar").write_bytes(tars.tar_bytes([("x.jpg", pictures.jpeg(scene(20)))]))
    return str(folder / "{0,1}.tar")


def run(shards: str, out: Path, *options: str) -> int:
    return runs.run_inline(shards, out, *IMAGES, *SMALL, *options)


@pytest.fixture(scope="module")
def out(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    assert run(shards, folder) == 0
    return folder


def rows_of(out: Path) -> dict[str, dict]:
    parts = [pq.read_table(path) for path in sorted((out / "parts").iterdir())]
    table = pa.concat_tables([part.drop_columns(["tokens"]) for part in parts])
    return {row["key"] + "#" + str(row["clip_index"]): row for row in table.to_pylist()}


def quarantined(out: Path) -> dict[str, str]:
    receipts = [json.loads(path.read_text()) for path in (out / "receipts").iterdir()]
    return {bad["key"]: bad["reason"] for one in receipts for bad in one["quarantined"]}


def test_a_mixed_tar_gives_rows_of_one_frame_and_of_clips(out) -> None:
    rows = rows_of(out)
    image = rows["i1#0"]
    assert image["clip_id"].endswith("/i1@0fps#0")
    assert image["token_shape"] == [1, 4, 4]
    assert (image["fps"], image["source_fps"], image["frame_seconds"]) == (0.0, 0.0, [0.0])
    assert (image["start_seconds"], image["end_seconds"]) == (0.0, 0.0)
    assert (image["source_width"], image["source_height"]) == (96, 64)
    assert (image["caption"], image["bucket"]) == ("image 1", "32x32")
    assert {key for key, row in rows.items() if row["fps"] == 0} == {
        *(f"i{number}#0" for number in range(6)),
        "x#0",
    }
    assert {row["token_shape"][0] for row in rows.values() if row["fps"] == 8} == {2}
    assert "v0b#0" in rows  # a video with an image beside it: the image is its thumbnail
    assert rows["v0b#0"]["fps"] == 8.0


def test_images_have_quality_columns_but_nothing_in_them_moves(out) -> None:
    rows = rows_of(out)
    for number in range(6):
        row = rows[f"i{number}#0"]
        luma = scene(number) @ [0.299, 0.587, 0.114]
        assert abs(row["luma_mean"] - luma.mean()) < 12  # the picture is cropped to a square
        assert row["black_fraction"] == pytest.approx((luma <= 16).mean(), abs=0.1)
        assert row["frame_difference"] is None
        assert row["token_entropy"] >= 0
    assert rows["v0#0"]["frame_difference"] > 0


def test_what_is_no_image_or_too_many_of_them_is_quarantined(out) -> None:
    assert quarantined(out) == {
        "two": "several_images",
        "bad": "not_a_video",
        "liar": "not_an_image",
    }


def test_a_killed_run_goes_on_and_gives_the_same(shards, out, tmp_path) -> None:
    assert run(shards, tmp_path / "out") == 0
    receipts = sorted((tmp_path / "out/receipts").iterdir())
    assert len(receipts) > 3
    for path in receipts[1:]:
        path.unlink()
    for path in (tmp_path / "out/manifests").iterdir():
        path.unlink()
    assert run(shards, tmp_path / "out") == 0
    assert runs.tokens(tmp_path / "out") == runs.tokens(out)


@pytest.mark.slow
def test_ray_gives_what_this_process_gives(shards, out, tmp_path) -> None:
    result = runs.run(
        *("+dataset=images", f"dataset.shards={shards}", *runs.TINY, *IMAGES, *SMALL),
        *("cluster.num_workers=2", f"output.root={tmp_path / 'out'}"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "(7 images)" in result.stdout
    assert runs.tokens(tmp_path / "out") == runs.tokens(out)


def test_stored_images_are_made_again_from_their_tar(out) -> None:
    assert verify.main([str(out), "--deep", "--sample", "30"]) == 0


def test_status_and_dry_run_count_images(shards, out, capsys) -> None:
    assert status.main([str(out)]) == 0
    assert "(7 images)" in capsys.readouterr().out
    assert run(shards, out, "dry_run=true") == 0
    assert "images (jpg, png, webp) are clips of one frame; 7 are" in capsys.readouterr().out


def test_a_plan_counts_images_among_the_clips(shards, capsys) -> None:
    options = ["+dataset=tars", f"dataset.shards={shards}", *runs.TINY, *IMAGES, *SMALL]
    assert plan.main([*options, "cluster=inline", "--probe-seconds", "6"]) == 0
    assert "clips" in capsys.readouterr().out


def test_a_folder_of_images_and_videos(tmp_path) -> None:
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(pictures.image(scene(1)))
    (folder / "a.mp4").write_bytes(runs.video(1, num_frames=12))
    (folder / "deep/b.JPG").write_bytes(pictures.jpeg(scene(2)))
    (folder / "deep/b.txt").write_text("two")
    options = ("+dataset=folder", f"dataset.path={folder}", "dataset.num_buckets=2", *IMAGES)
    out = tmp_path / "out"
    assert runs.execute_here(*options, *runs.TINY, *SMALL, f"output.root={out}") == 0
    rows = rows_of(out)
    assert {key: row["fps"] for key, row in rows.items()} == {
        "a.png#0": 0.0,
        "a.mp4#0": 8.0,
        "a.mp4#1": 8.0,
        "deep/b.JPG#0": 0.0,
    }
    assert rows["deep/b.JPG#0"]["caption"] == "two"


def test_whole_videos_and_images_share_first_pieces(shards, out, tmp_path) -> None:
    whole = [one for one in SMALL if "clip_frames" not in one]
    options = (*IMAGES, *whole, "sampling.mode=whole", "encoder.batch_clips=2")
    assert runs.run_inline(shards, tmp_path / "out", *options) == 0
    rows = rows_of(tmp_path / "out")
    assert rows["i0#0"]["token_shape"] == [1, 4, 4]
    assert rows["v0#0"]["token_shape"][0] > 1
    images = {k: v for k, v in runs.tokens(tmp_path / "out").items() if "@0fps" in str(k)}
    assert len(images) == 7
    clips = runs.tokens(out)
    same = np.mean([np.array_equal(images[key], clips[key]) for key in images])
    assert same == 1.0


def test_buckets_hold_for_images(shards, tmp_path) -> None:
    options = [one for one in runs.TINY if "resolution" not in one]
    buckets = "sampling.buckets=[[32,32],[32,48]]"
    arguments = ("+dataset=tars", f"dataset.shards={shards}", *options, *IMAGES, *SMALL, buckets)
    assert runs.execute_here(*arguments, f"output.root={tmp_path / 'out'}") == 0
    assert rows_of(tmp_path / "out")["i0#0"]["bucket"] == "32x48"


def test_a_loader_mixes_images_and_clips_one_shape_a_batch(out) -> None:
    dataset = TokenDataset(str(out), batch_size=2, drop_last=False)
    shapes = [tuple(batch["tokens"].shape[1:]) for batch in dataset]
    assert set(shapes) == {(1, 4, 4), (2, 4, 4)}
    images = TokenDataset(str(out), batch_size=7, filters=[("fps", "==", 0.0)])
    assert [tuple(batch["tokens"].shape) for batch in images] == [(7, 1, 4, 4)]


def test_a_mixture_draws_images_and_clips_by_weight_and_goes_on_where_it_stood(out) -> None:
    def mixed() -> MixedTokenDataset:
        images, clips = (
            TokenDataset(str(out), batch_size=1, shuffle=True, filters=[("fps", operator, 0.0)])
            for operator in ("==", ">")
        )
        return MixedTokenDataset({images: 0.5, clips: 0.5}, seed=3, steps=20)

    def shown(batches) -> list[tuple[int, str, int]]:
        return [(one["source"], one["clip_id"][0], one["tokens"].shape[1]) for one in batches]

    straight = mixed()
    expected = shown(straight)
    assert {(source, frames) for source, _, frames in expected} == {(0, 1), (1, 2)}
    first, second = mixed(), mixed()
    begun = shown(itertools.islice(first, 8))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (begun + shown(second))[:20] == expected


def test_a_pack_holds_images_and_clips(out) -> None:
    packed = TokenDataset(str(out), batch_size=1, pack_length=64, shuffle=True, drop_last=False)
    lengths, rates = set(), set()
    for batch in packed:
        lengths |= set(batch["cu_seqlens"].diff()[~batch["padding_sequences"]].tolist())
        rates |= set(batch["fps"].tolist())
    assert (lengths, rates) == ({16, 32}, {0.0, 8.0})


def test_a_spans_table_chooses_among_images(shards, tmp_path) -> None:
    table = tmp_path / "spans.jsonl"
    lines = [
        {"key": "i0", "start_seconds": 0.0, "end_seconds": 1.0, "caption": "chosen"},
        {"key": "i0", "start_seconds": 2.0, "end_seconds": 3.0, "caption": "later"},
        {"key": "i3", "caption": None},
    ]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(shards, tmp_path / "out", f"dataset.spans={table}") == 0
    rows = rows_of(tmp_path / "out")
    found = {key: (row["caption"], row["span_index"]) for key, row in rows.items()}
    assert found == {"i0#0": ("chosen", 0), "i3#0": ("image 3", 0)}


def test_images_are_part_of_the_fingerprint_only_where_they_are_asked_for(shards, out) -> None:
    plain = runs.config("+dataset=tars", f"dataset.shards={shards}", *runs.TINY)
    assert "image_extensions" not in identity(plain, "digest").material["dataset"]
    with pytest.raises(FingerprintMismatch, match=r"image_extensions: \['jpg', 'png', 'webp'\]"):
        runs.run_inline(shards, out, *SMALL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("tokenizer.is_causal=false", "sampling.clip_frames=4"),
            "an image is a clip of one frame, which tokenizer demo does not take",
        ),
        (("dataset.video_extensions=[mp4,jpg]",), "both name jpg"),
    ],
)
def test_images_that_cannot_be_served_are_refused_in_one_line(
    shards, tmp_path, options, words
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        run(shards, tmp_path, *options)
    assert "\n" not in str(caught.value)
