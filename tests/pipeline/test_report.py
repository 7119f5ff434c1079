"""``pipeline.report``: the page about a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.png import png
from pipeline.report import ReportOptions, compose_report, main, write_report
from pipeline.reporting.charts import area, histogram, nice_ceiling
from pipeline.reporting.ledger_facts import collect, throughput
from pipeline.reporting.pictures import address, index_colours, jpeg, latent_colours
from pipeline.storage import Storage
from tests.pipeline import runs
from tests.pipeline.fakes import make_out
from tests.pipeline.receipts import ledger_of, receipt
from tests.pipeline.runs import run_inline, video
from tests.pipeline.tars import tar_bytes


class Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.pictures: list[tuple[str, str]] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.addresses += [found[name] for name in ("src", "href", "srcset") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        assert not any(name.startswith("on") for name in found)
        if tag == "img":
            self.pictures.append((found["alt"], found["src"]))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def pixels(address_: str) -> np.ndarray[Any, Any]:
    """A picture, decoded by another decoder than the one that wrote it."""
    import base64
    import io

    content = base64.b64decode(address_.partition("base64,")[2], validate=True)
    with av.open(io.BytesIO(content)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A finished run with two rates, a caption that is markup, and a video that breaks off."""
    folder = tmp_path_factory.mktemp("report")
    broken = bytearray(video(3))
    middle = len(broken) // 2
    broken[middle : middle + 400] = bytes(400)
    members = {
        "one.mp4": video(1),
        "one.txt": b"<script>alert(1)</script> & a caption",
        "two.mp4": video(2),
        "bad.mp4": b"no video at all",
        "broken.mp4": bytes(broken),
    }
    (folder / "a.tar").write_bytes(tar_bytes(members.items()))
    root = folder / "out"
    code = run_inline(folder / "a.tar", root, "sampling.fps=[4,8]", "output.report=true")
    assert code == 0
    return Storage(str(root))


@pytest.fixture(scope="module")
def shown(out: Storage) -> Page:
    return Page(out.read("report/index.html").decode())


def test_a_run_ends_with_a_report_that_asks_nobody_for_anything(shown: Page) -> None:
    assert shown.open == []
    assert shown.tags["script"] == 0
    outside = [a for a in shown.addresses if not a.startswith(("data:", "#"))]
    assert outside == []
    targets = {a[1:] for a in shown.addresses if a.startswith("#")}
    assert targets == set(shown.ids)


def test_names_and_captions_are_text_not_markup(out: Storage, shown: Page) -> None:
    assert "<script>" not in out.read("report/index.html").decode()
    assert "<script>alert(1)</script> & a caption" in shown.text


def test_every_picture_of_a_report_can_be_decoded(shown: Page) -> None:
    kinds = Counter(alt.split(" of ")[0] for alt, _ in shown.pictures)
    assert kinds["source"] == kinds["reconstruction"] == 4
    assert kinds["tokens"] == 6
    for _, address_ in shown.pictures:
        assert pixels(address_).ndim == 3


def test_the_source_strip_shows_the_source_and_psnr_is_of_its_reconstruction(shown: Page) -> None:
    strips = {alt: pixels(a) for alt, a in shown.pictures if "source of" in alt}
    for strip in strips.values():
        assert strip.shape[0] == 32
        assert strip.std() > 20  # a scene, not a blank
    assert re.search(r"\d+\.\d\d dB · a-[0-9a-f]{12}/(one|two)@(4|8)fps#\d", shown.text)
    for kind in ("4 fps, 32x32", "8 fps, 32x32"):
        assert kind in shown.text


def test_a_report_names_what_was_quarantined_and_why(shown: Page) -> None:
    assert "cannot be opened" in shown.text
    assert "not_a_video" in shown.text


def test_sums_and_provenance_stand_in_the_report(out: Storage, shown: Page) -> None:
    record = json.loads(out.read("run.json"))
    for expected in (
        record["fingerprint"],
        record["fingerprint_of"]["checkpoint_digest"],
        record["versions"]["torch"],
        "random weights",
        "core-seconds, decoding",
        "perplexity",
        "finished",
    ):
        assert expected in shown.text
    assert "(encoder)" in shown.text or "encoder starved" in shown.text


def test_the_command_writes_the_page_anew_and_says_where(
    out: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = out.read("report/index.html")
    assert main([out.root, "--reconstruct", "0"]) == 0
    assert capsys.readouterr().out.strip() == out.path("report/index.html")
    after = Page(out.read("report/index.html").decode())
    assert before != out.read("report/index.html")
    assert "No clip was reconstructed" in after.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no run.json there"),
        (("--reconstruct", "-1"), "argument --reconstruct: must not be negative, got -1"),
    ],
)
def test_a_mistake_is_one_line_without_a_traceback(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.exit_status(main, str(tmp_path), *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_report_says_why_nothing_could_be_reconstructed(tmp_path: Path) -> None:
    storage = make_out(tmp_path / "out", shards=1, videos=2)
    page = Page(compose_report(storage, ReportOptions(num_reconstructed=2)))
    assert re.search(r"No clip was reconstructed: .{10,}", page.text)


def test_a_report_is_written_to_s3(bucket: str) -> None:
    storage = make_out(f"s3://{bucket}/out", shards=2, videos=2)
    place = write_report(storage, ReportOptions(num_reconstructed=0))
    assert place.endswith("report/index.html")
    assert Page(storage.read("report/index.html").decode()).tags["section"] == 8


def test_samples_of_the_workers_are_shown_and_psnr_is_of_all(tmp_path: Path) -> None:
    storage = make_out(tmp_path / "out", shards=1, videos=1)
    dice = np.random.default_rng(5)
    for slot in range(20):
        line = {"clip_id": f"s/<k>{slot}@8fps#0", "fps": 8.0 if slot % 4 else 3.0}
        line |= {"bucket": "64x64", "recon_psnr": 20.0 + slot, "frames": [0, 5]}
        storage.put(f"samples/{slot:04d}.json", json.dumps(line).encode())
        storage.put(f"samples/{slot:04d}.png", png(dice.integers(0, 255, (8, 8, 3), np.uint8)))
    page = Page(compose_report(storage, ReportOptions()))
    strips = [alt for alt, _ in page.pictures if "reconstruction" in alt]
    assert len(strips) == 6
    assert sum("@" in alt for alt in strips) == 6
    assert "3 fps, 64x64528.00" in page.text  # 5 clips, median 28
    assert "8 fps, 64x641530.00" in page.text


def test_a_sample_that_no_run_wrote_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = make_out(tmp_path / "out", shards=1, videos=1)
    storage.put("samples/0003.json", b"[]")
    assert main([storage.root]) == 2
    assert "samples/0003.json is no sample" in capsys.readouterr().err


# ---- pure parts ----


def test_png_and_jpeg_hold_the_picture() -> None:
    dice = np.random.default_rng(0)
    exact = dice.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    assert np.array_equal(pixels(address(png(exact))), exact)
    smooth = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 3, 2)
    smooth = np.repeat(smooth, 48, 0)
    assert np.abs(pixels(address(jpeg(smooth))).astype(int) - smooth).max() <= 6


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_without_a_log_variance_are_shown_with_all_channels(
    channels: int, tmp_path: Path
) -> None:
    code = runs.execute_here(
        *("+dataset=tars", f"dataset.shards={runs.write_shards(tmp_path, 1, 1)}"),
        *("+tokenizer=plugin", "tokenizer.name=bright", "cluster=inline", "sampling.resolution=32"),
        *("tokenizer.plugin=tests.pipeline.foreign:Brightness", f"output.root={tmp_path / 'out'}"),
        *(f"+tokenizer.options={{channels:{channels}}}", "output.report=true", "encoder.threads=1"),
    )
    assert code == 0
    page = Page((tmp_path / "out/report/index.html").read_text())
    maps = [pixels(place) for name, place in page.pictures if name.startswith("tokens of ")]
    assert maps
    has_colour = any((one[..., 0] != one[..., 2]).any() for one in maps)
    assert has_colour == (channels == 3)


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[H, W, 3\] and not empty, got \[0, 4, 3\]"):
        png(np.zeros((0, 4, 3), np.uint8))


def test_an_index_has_one_colour_and_others_have_others() -> None:
    indices = np.array([[0, 1, 2], [2, 1, 262143]])
    colours = index_colours(indices)
    assert np.array_equal(colours[0, 1], colours[1, 1])
    assert len({tuple(c) for c in colours.reshape(-1, 3)}) == 4


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
def test_latents_of_any_number_of_channels_have_colours(channels: int) -> None:
    values = np.random.default_rng(1).normal(size=(channels, 6, 8))
    assert latent_colours(values).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("began", "ended", "rows", "worked", "num_breaks"),
    [
        ([0, 10], [10, 20], [5, 5], 20.0, 0),
        ([0, 1000], [10, 1010], [5, 5], 20.0, 1),
        ([0, 0, 5000, 90000], [10, 10, 5010, 90010], [1, 2, 3, 4], 30.0, 2),
        ([7], [7], [3], 0.0, 0),
        ([], [], [], 0.0, 0),
    ],
)
def test_throughput_keeps_every_clip_and_leaves_out_time_without_work(
    began: list[float], ended: list[float], rows: list[float], worked: float, num_breaks: int
) -> None:
    flow = throughput(began, ended, rows, num_steps=20)
    assert flow.worked_seconds == pytest.approx(worked)
    assert len(flow.breaks) == num_breaks
    if worked:
        assert flow.rates.sum() * worked / 20 == pytest.approx(sum(rows))


def test_segments_are_spread_from_the_commit_before_or_the_start_of_their_run() -> None:
    ledger = ledger_of(
        receipt(0, 0, 10, created_seconds=130.0),
        receipt(1, 10, 20, created_seconds=150.0),
        receipt(2, 20, 30, created_seconds=9000.0),
    )
    facts = collect(ledger.lines(), run_starts=[100.0, 8990.0], num_drawn=4, num_bad=4)
    assert list(facts.began) == [100.0, 130.0, 8990.0]
    assert list(facts.ended) == [130.0, 150.0, 9000.0]


def test_many_receipts_are_looked_at_one_by_one_and_few_are_kept() -> None:
    bad = [{"key": "k", "reason": "decode_error", "message": "m"}]
    parts = [
        receipt(
            shard=f"s{n}", part=f"s{n}.parquet", rows=2, created_seconds=float(n), quarantined=bad
        )
        for n in range(300)
    ]
    facts = collect(ledger_of(*parts).lines(), run_starts=[], num_drawn=5, num_bad=3)
    again = collect(ledger_of(*parts[::-1]).lines(), run_starts=[], num_drawn=5, num_bad=3)
    assert (facts.receipts, facts.clips, facts.num_tokens) == (300, 600, 3600)
    assert [line.shard for line in facts.drawn] == [line.shard for line in again.drawn]
    assert len(facts.drawn) == 5
    assert [line.shard for line in facts.bad] == ["s299", "s298", "s297"]


@pytest.mark.parametrize("value", [0.003, 0.2, 1.0, 3.3, 99.0, 12345.0])
def test_axes_end_at_a_round_number_that_is_not_below(value: float) -> None:
    top = nice_ceiling(value)
    assert value <= top <= 2.5 * value
    assert f"{top:e}"[0] in "125"


@pytest.mark.parametrize("values", [[], [0.0], [1.0, 5.0, 2.0]])
def test_charts_are_well_formed_for_any_number_of_values(values: list[float]) -> None:
    import xml.etree.ElementTree as ET

    for chart in (
        area(values, label="a < b & c", ticks=[(0.0, "0"), (1.0, "1")], breaks=[0.5]),
        histogram(values, low=0.0, high=1.0, label='"quoted"', unit=" s"),
    ):
        assert ET.fromstring(chart).tag == "svg"
