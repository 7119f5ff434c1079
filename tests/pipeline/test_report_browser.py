"""The page of a run in a real browser: pictures load, the network is not asked, two colours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import av
import pytest

from tests.pipeline import runs

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
COUNT_PICTURES = """<script>addEventListener("load", () => {
  const all = [...document.images]
  const good = all.filter(one => one.complete && one.naturalWidth)
  document.body.dataset.pictures = `${good.length} of ${all.length}`
})</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    shards = runs.write_shards(folder / "shards", num_shards=2, num_videos=2)
    broken = [("x0.mp4", b"no video"), ("x1.mp4", runs.video(7))]
    (folder / "shards" / "00001.tar").write_bytes(runs.tar_bytes(broken))
    options = ("quality.sample_fraction=1", "output.report=true")
    assert runs.run_inline(shards, folder / "out", *options) == 0
    return folder / "out" / "report" / "index.html"


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *("--virtual-time-budget=5000", *options, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_every_picture_loads_and_the_console_stays_empty(page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy.write_text(text + COUNT_PICTURES)
    done = browse(copy, "--dump-dom")
    found = re.search(r'data-pictures="(\d+) of (\d+)"', done.stdout)
    assert found is not None
    assert found[1] == found[2]
    assert int(found[2]) >= 3, "strips and token maps"
    assert "CONSOLE" not in done.stderr
    assert "CONSOLE" not in browse(page, "--dump-dom").stderr
    copy.write_text(text + '<img src="https://elsewhere.example/x.png"><script>nothing()</script>')
    assert browse(copy, "--dump-dom").stderr.count("CONSOLE") == 1, "what a fault looks like"


def test_it_is_light_or_dark_as_the_reader_wants(page: Path, tmp_path: Path) -> None:
    dark = ("--blink-settings=preferredColorScheme=0", "--force-dark-mode")
    means = []
    for number, options in enumerate(((), dark)):
        picture = tmp_path / f"{number}.png"
        browse(page, f"--screenshot={picture}", "--window-size=900,700", *options)
        with av.open(str(picture)) as container:
            means.append(next(container.decode(video=0)).to_ndarray(format="gray").mean())
    assert means[0] > 150 > 100 > means[1]
