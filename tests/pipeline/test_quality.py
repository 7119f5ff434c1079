"""What pixels and tokens say of a clip, which clips are decoded again, and what stops a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import QualityCollapsed
from pipeline.film import spread
from pipeline.pixel_stats import index_entropy, pixel_columns, pixel_sums
from pipeline.png import png
from pipeline.quality_gate import PsnrGate, QualityRules
from pipeline.reconstruction import frame_psnr
from pipeline.samples import MAX_FRAMES, MAX_PIXELS, Sampled, SampleLine, keep_sample, strip
from pipeline.storage import Storage


def grey(*levels: int, size: int = 16) -> np.ndarray:
    """One frame of each level."""
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


@pytest.mark.parametrize(
    ("frames", "luma", "change", "black"),
    [
        (grey(0, 0, 0), 0.0, 0.0, 1.0),
        (grey(255, 255), 255.0, 0.0, 0.0),
        (grey(10, 30, 20), 20.0, 15.0, 0.3333),
        (grey(200), 200.0, None, 0.0),
    ],
)
def test_pixels_say_how_bright_how_black_and_how_still_a_clip_is(
    frames: np.ndarray, luma: float, change: float | None, black: float
) -> None:
    expected = {"luma_mean": luma, "frame_difference": change, "black_fraction": black}
    assert pixel_columns([pixel_sums(frames)]) == expected


def test_luma_weighs_red_green_and_blue_as_eyes_do() -> None:
    def luma(*rgb: int) -> float | None:
        frame = np.full((1, 8, 8, 3), rgb, np.uint8)
        return pixel_columns([pixel_sums(frame)])["luma_mean"]

    assert (luma(255, 0, 0), luma(0, 255, 0), luma(0, 0, 255)) == (77.0, 149.0, 29.0)


def test_pieces_of_a_video_add_up_but_for_the_changes_between_them() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    whole = pixel_columns([pixel_sums(frames)])
    pieces = pixel_columns([pixel_sums(frames[:1]), pixel_sums(frames[1:])])
    assert (pieces["luma_mean"], pieces["black_fraction"]) == (
        whole["luma_mean"],
        whole["black_fraction"],
    )
    assert pieces["frame_difference"] == pytest.approx(whole["frame_difference"], rel=0.05)


@pytest.mark.parametrize(("indices", "bits"), [([7] * 8, 0.0), ([0, 1] * 4, 1.0), (range(8), 3.0)])
def test_entropy_is_in_bits(indices: list[int], bits: float) -> None:
    found = index_entropy(np.array(indices, np.int32).reshape(2, 2, 2))
    assert (found, math.copysign(1, found)) == (bits, 1)


def test_clips_are_chosen_by_their_names_about_as_many_as_asked_for() -> None:
    names = [f"shard/video_{number}@8fps#0" for number in range(20_000)]
    few = {name for name in names if QualityRules(sample_fraction=0.01).chooses(name)}
    more = {name for name in names if QualityRules(sample_fraction=0.02).chooses(name)}
    assert 150 < len(few) < 250
    assert few < more
    slots = [QualityRules(max_samples=10).slot(name) for name in names]
    assert set(slots) == set(range(10))
    assert QualityRules().slot("a") is None


def test_the_psnr_of_frames_is_that_of_the_metrics() -> None:
    torch = pytest.importorskip("torch")
    from tokenizer.metrics.distortion import psnr

    dice = np.random.default_rng(1)
    one, two = (dice.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    as_floats = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (one, two)]
    assert frame_psnr(one, two) == pytest.approx(float(psnr(*as_floats).mean()), abs=0.01)
    assert frame_psnr(one, one) == 80.0


RULES = QualityRules(sample_fraction=1.0, min_recon_psnr=15.0, max_psnr_drop=10.0, window=4)


def note(*values: float, rules: QualityRules = RULES) -> None:
    gate = PsnrGate(rules)
    for number, value in enumerate(values):
        gate.note(f"clip {number}", value)


@pytest.mark.parametrize(
    "values",
    [
        [30.0, 5.0, 31.0, 29.0, 30.0, 5.0, 28.0, 31.0],  # a bad one does not move the median
        [5.0, 5.0, 5.0],  # too few to judge
        [30.0] * 8 + [21.0] * 8,
        [15.0] * 8,
    ],
)
def test_the_gate_lets_through(values: list[float]) -> None:
    note(*values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([9.0] * 4, r"is 9\.0 dB, below quality\.min_recon_psnr=15"),
        ([30.0] * 8 + [18.0] * 4, r"it was 30\.0 dB: more than quality\.max_psnr_drop=10 lower"),
        ([30.0, float("nan")], r"reconstruction of clip 1 is not a number"),
    ],
)
def test_the_gate_stops(values: list[float], reason: str) -> None:
    with pytest.raises(QualityCollapsed, match=reason) as raised:
        note(*values)
    assert "\n" not in str(raised.value)


def test_a_slow_decline_is_held_against_the_best_median_of_before() -> None:
    with pytest.raises(QualityCollapsed, match=r"it was 40\.0 dB"):
        note(*[40.0 - 0.5 * max(0, number - 3) for number in range(60)])


def test_without_bounds_only_nan_stops() -> None:
    free = QualityRules(sample_fraction=1.0, window=2)
    note(50.0, 50.0, 3.0, 3.0, rules=free)
    with pytest.raises(QualityCollapsed):
        note(math.nan, rules=free)


def test_a_strip_shows_sources_above_reconstructions(tmp_path: Path) -> None:
    source, made = grey(10, 20, 30, 40, 50), grey(110, 120, 130, 140, 150)
    shown = spread(5, MAX_FRAMES)
    assert shown == (0, 1, 3, 4)
    picture = strip(source, made, shown)
    assert picture[::16, ::16, 0].tolist() == [[10, 20, 40, 50], [110, 120, 140, 150]]
    (tmp_path / "strip.png").write_bytes(png(picture))
    with av.open(str(tmp_path / "strip.png")) as file:
        (frame,) = file.decode(video=0)
    assert np.array_equal(frame.to_ndarray(format="rgb24"), picture)


def test_the_png_is_lossless_for_noise_and_a_large_strip_stays_within_bounds(
    tmp_path: Path,
) -> None:
    dice = np.random.default_rng(2)
    frames = dice.integers(0, 256, (4, 700, 1300, 3), dtype=np.uint8)
    picture = strip(frames, frames, (0, 1, 2, 3))
    assert picture.shape[0] * picture.shape[1] <= MAX_PIXELS
    content = png(picture)
    assert len(content) < 2_000_000
    (tmp_path / "noise.png").write_bytes(content)
    with av.open(str(tmp_path / "noise.png")) as file:
        (frame,) = file.decode(video=0)
    assert np.array_equal(frame.to_ndarray(format="rgb24"), picture)


def sampled(name: str) -> Sampled:
    line = SampleLine(clip_id=name, fps=8.0, bucket="16x16", recon_psnr=20.0, frames=(0,))
    return Sampled(slot=3, line=line, png=name.encode())


def test_the_first_clip_takes_a_slot_and_completes_it_after_a_kill(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    keep_sample(storage, sampled("one"))
    (tmp_path / "samples" / "0003.png").unlink()  # killed between the two
    keep_sample(storage, sampled("two"))
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["0003.json"]
    keep_sample(storage, sampled("one"))
    keep_sample(storage, sampled("two"))
    assert json.loads((tmp_path / "samples" / "0003.json").read_text())["clip_id"] == "one"
    assert (tmp_path / "samples" / "0003.png").read_bytes() == b"one"


def test_a_line_that_was_cut_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(str(tmp_path))
    keep_sample(storage, sampled("one"))
    place = tmp_path / "samples" / "0003.json"
    line = place.read_bytes()
    for broken in (line[: len(line) // 2], b"", b"[]", b"{}", b"[" * 100_000):
        place.write_bytes(broken)
        caplog.clear()
        keep_sample(storage, sampled("one"))
        assert f"{place} is no sample, remove it" in caplog.text
        assert place.read_bytes() == broken
