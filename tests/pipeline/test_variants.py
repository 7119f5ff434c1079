"""``sampling.variant``: flipped pictures and the ends of wide ones, from pixels to tokens."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import pipeline.resolve_sampling
from pipeline.decode_image import decode_image
from pipeline.decode_messages import read_settings, settings_message
from pipeline.demo import CLIPS
from pipeline.errors import FingerprintMismatch
from pipeline.plan import print_data
from pipeline.planning import make_plan
from pipeline.records import Clip, ClipPlan, SamplingMode, TailPolicy, Variant, VideoLimits
from pipeline.report import main as report
from pipeline.reporting.frames import decode_frames
from pipeline.resolve import identity
from pipeline.run import list_shards
from pipeline.storage import Storage
from pipeline.verify import main as verify
from tests.pipeline import pictures, runs
from tests.pipeline.media import decoded, encode, plan_of

SIDE = 64
WIDE, TALL = "bunny.mp4", "cup_portrait.mp4"
LENGTHS = {WIDE: int(SIDE * 1280 / 720), TALL: int(SIDE * 640 / 360)}
"""Pixels of the long side of the scaled picture."""
OTHERS = [variant for variant in Variant if variant is not Variant.none]


def frames_of(name: str, variant: Variant = Variant.none, **plan: object) -> np.ndarray:
    """All frames of a demo clip, uint8 ``[N, H, W, 3]``."""
    chosen = plan_of(8.0, variant=variant, max_clips_per_video=2, **plan)
    clips, _ = decoded((CLIPS / name).read_bytes(), chosen)
    assert clips
    return np.concatenate([clip.frames for clip in clips])


def mirrored(frames: np.ndarray) -> np.ndarray:
    return frames[..., ::-1, :]


def test_doctests() -> None:
    assert doctest.testmod(pipeline.resolve_sampling).failed == 0


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"mode": SamplingMode.whole, "time_factor": 4, "tail": TailPolicy.pad},
        {"buckets": ((32, 64), (64, 32))},
        {"cut_threshold": 27.0},
    ],
    ids=["clips", "whole", "buckets", "cuts"],
)
@pytest.mark.parametrize("name", [WIDE, TALL, "drums.3gp"])
def test_flip_is_the_mirror_of_what_is_shown(name: str, plan: dict[str, object]) -> None:
    plain, flipped = frames_of(name, **plan), frames_of(name, Variant.flip, **plan)
    assert np.array_equal(flipped, mirrored(plain))
    assert not np.array_equal(flipped, plain)


@pytest.mark.parametrize("name", [WIDE, TALL])
def test_a_crop_is_the_end_of_the_whole_scaled_picture(name: str) -> None:
    long = LENGTHS[name]
    across = name == WIDE
    whole = frames_of(name, buckets=((SIDE, long) if across else (long, SIDE),))
    start = whole[:, :, :SIDE] if across else whole[:, :SIDE]
    end = whole[:, :, long - SIDE :] if across else whole[:, long - SIDE :]
    assert np.array_equal(frames_of(name, Variant.crop_start), start)
    assert np.array_equal(frames_of(name, Variant.crop_end), end)
    assert not np.array_equal(start, end)


@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("name", [WIDE, TALL])
def test_a_flipped_crop_is_cropped_and_then_flipped(name: str, end: str) -> None:
    cropped = frames_of(name, Variant[f"crop_{end}"])
    assert np.array_equal(frames_of(name, Variant[f"flip_crop_{end}"]), mirrored(cropped))


def test_of_a_square_picture_all_crops_are_equal() -> None:
    dice = np.random.default_rng(0)
    data = encode(range(4), draw=lambda _: dice.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    found = {}
    for variant in Variant:
        [clip], _ = decoded(data, plan_of(30.0, variant=variant))
        found[variant] = clip.frames
    for variant in Variant:
        plain = Variant.flip if variant.is_flipped else Variant.none
        assert np.array_equal(found[variant], found[plain])
    assert np.array_equal(found[Variant.flip], mirrored(found[Variant.none]))


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_an_image_has_variants_of_what_its_exif_shows(orientation: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    data = pictures.turned_png(pictures.image(picture), orientation)

    def shown(variant: Variant, bucket: tuple[int, int] = (64, 64)) -> np.ndarray:
        plan = plan_of(8.0, variant=variant, buckets=(bucket,))
        (_, clip), _ = decode_image(data, [plan], VideoLimits())
        assert isinstance(clip, Clip)
        return clip.frames

    whole = shown(Variant.none, (64, 160) if orientation == 1 else (160, 64))
    axis = 2 if orientation == 1 else 1
    start, end = np.split(whole, [64], axis)[0], np.split(whole, [96], axis)[1]
    assert np.array_equal(shown(Variant.crop_start), start)
    assert np.array_equal(shown(Variant.crop_end), end)
    assert np.array_equal(shown(Variant.flip), mirrored(shown(Variant.none)))
    assert np.array_equal(shown(Variant.flip_crop_start), mirrored(start))
    assert np.array_equal(shown(Variant.flip_crop_end), mirrored(end))


# ---- what the child is told ----


def told(plan: ClipPlan) -> dict[str, object]:
    return dict(json.loads(json.dumps(settings_message([plan], VideoLimits(), 3))))


@pytest.mark.parametrize("variant", Variant)
def test_a_plan_comes_through_the_settings_as_it_was(variant: Variant) -> None:
    plan = plan_of(8.0, variant=variant)
    assert read_settings(told(plan)) == ((plan,), VideoLimits(), 3)


def test_a_variant_that_is_none_is_not_read() -> None:
    message = settings_message([plan_of(8.0)], VideoLimits(), 3)
    message["plans"][0]["variant"] = "upside_down"
    with pytest.raises(KeyError, match="upside_down"):
        read_settings(message)


def test_a_child_makes_the_variant_that_it_was_told() -> None:
    plan, data = plan_of(8.0, max_clips_per_video=2), (CLIPS / WIDE).read_bytes()
    plain, other = (
        decode_frames({0: data}, replace(plan, variant=variant), VideoLimits(), seconds=60)[0]
        for variant in (Variant.crop_end, Variant.flip_crop_end)
    )
    assert list(plain) == list(other) == [(8.0, 0), (8.0, 1)]
    assert all(np.array_equal(other[place], mirrored(plain[place])) for place in plain)


# ---- the fingerprint ----


def material(*options: str) -> tuple[str, dict[str, object]]:
    run = runs.config("+dataset=tars", "dataset.shards=x.tar", *runs.TINY, *options)
    made = identity(run, "0" * 64)
    return made.fingerprint, made.material


@pytest.mark.parametrize("options", [(), ("sampling.variant=none",)])
def test_without_a_variant_the_fingerprint_is_that_of_earlier_versions(
    options: tuple[str, ...],
) -> None:
    fingerprint, made = material(*options)
    assert fingerprint == "ce44cfcb3cd35b55458f4b26a469b2fa1ef4c20f3521134167779cd6b92db80b"
    assert "variant" not in made["sampling"]
    assert made["transform"] == {"resize": "short side, bilinear, antialiased", "crop": "centre"}
    cut, _ = material("sampling.cuts=detect", *options)
    assert cut == "603d489382818aadd18c854f005cf8de20a38df44b7c03a6855a34d270ff67c2"


def test_every_variant_has_a_fingerprint_of_its_own() -> None:
    found = {variant: material(f"sampling.variant={variant.name}") for variant in Variant}
    assert len({fingerprint for fingerprint, _ in found.values()}) == len(Variant)
    crops = {variant: made["transform"]["crop"] for variant, (_, made) in found.items()}
    assert crops == dict(
        zip(Variant, ["centre", "centre", "start", "end", "start", "end"], strict=True)
    )


# ---- whole runs ----


def lossless(number: int, *, is_mirrored: bool = False) -> bytes:
    """A video of the size of its clips, whose pixels come back as they were drawn."""
    dice = np.random.default_rng(number)
    scenes = dice.integers(0, 256, (34, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    scenes = mirrored(scenes) if is_mirrored else scenes
    return encode(
        range(len(scenes)),
        time_base=Fraction(1, 8),
        container="matroska",
        codec="ffv1",
        pix_fmt="bgr0",
        draw=lambda k: np.ascontiguousarray(scenes[k]),
    )


def write_tar(path: Path, *, is_mirrored: bool = False) -> Path:
    """Two such videos."""
    videos = [(f"v{n}.mkv", lossless(n, is_mirrored=is_mirrored)) for n in range(2)]
    path.write_bytes(runs.tar_bytes(videos))
    return path


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tar(tmp_path_factory.mktemp("source") / "00000.tar")


@pytest.fixture(scope="module")
def out(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of flipped pictures."""
    root = tmp_path_factory.mktemp("out")
    assert runs.run_inline(tar, root, "sampling.variant=flip", "encoder.batch_clips=2") == 0
    return root


def test_tokens_of_flip_are_those_of_mirrored_videos(tar: Path, out: Path, tmp_path: Path) -> None:
    other = write_tar(tmp_path / "00000.tar", is_mirrored=True)
    for source, name in ((other, "mirrored"), (tar, "plain")):
        assert runs.run_inline(source, tmp_path / name, "encoder.batch_clips=2") == 0
    flipped = runs.tokens(out)
    assert len(flipped) == 4
    assert flipped == runs.tokens(tmp_path / "mirrored")
    plain = runs.tokens(tmp_path / "plain")
    assert list(plain) == list(flipped)
    assert not any(plain[name] == flipped[name] for name in plain)


def test_an_out_of_a_variant_goes_on_as_that_variant_only(tar: Path, out: Path) -> None:
    assert runs.run_inline(tar, out, "sampling.variant=flip") == 0
    for option in ([], ["sampling.variant=crop_start"]):
        with pytest.raises(FingerprintMismatch, match=r"sampling\.variant: 'flip' there"):
            runs.run_inline(tar, out, *option)


def test_a_deep_verify_makes_the_variant_again(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([str(out), "--deep"]) == 0
    assert "4 clips of 2 videos, 4 bit-equal" in capsys.readouterr().out


WORDS = "flip: the centre, left and right exchanged"


def test_card_and_report_say_the_variant(out: Path) -> None:
    assert f"| variant | {WORDS} |" in (out / "README.md").read_text()
    assert report([str(out)]) == 0
    assert f"variant {WORDS}" in (out / "report" / "index.html").read_text()


def test_a_dry_run_and_a_plan_say_the_variant_where_there_is_one(
    tar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant, is_said in (("none", False), ("flip", True)):
        options = (f"sampling.variant={variant}", "dry_run=true")
        assert runs.run_inline(tar, tmp_path / "out", *options) == 0
        assert (f"\nvariant {WORDS}\n" in capsys.readouterr().out) == is_said
        run = runs.config("+dataset=tars", f"dataset.shards={tar}", *runs.TINY, *options)
        plan = make_plan(
            list_shards(run), Storage(str(tmp_path / "out")), options={}, redo_changed=False
        )
        print_data(run, plan, is_random=True)
        assert (f"\nvariant {WORDS}\n" in capsys.readouterr().out) == is_said
