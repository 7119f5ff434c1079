"""Whole runs on storage that fails: nothing is lost, nothing quarantined, hopeless cases stop."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from jobs.drill.proxy import Fault, FaultProxy
from pipeline import backends
from pipeline.errors import PipelineError, StorageRefused
from pipeline.verify import main as verify
from tests.pipeline import runs
from tests.pipeline.refusals import refusing

SMALL = ("encoder.batch_clips=4", "commit.max_clips=2")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=2)


@pytest.fixture(scope="module")
def clean(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Tokens of a run without faults."""
    out = tmp_path_factory.mktemp("clean") / "out"
    assert runs.run_inline(shards, out, *SMALL) == 0
    return runs.tokens(out)


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint, seed=1, delay_seconds=0.2, stall_seconds=20) as running:
        yield running


def through(proxy: FaultProxy) -> list[str]:
    """Options by which a run reads and writes through a proxy, with little patience."""
    config = "{read_timeout:1,connect_timeout:2,retries:{total_max_attempts:2,mode:standard}}"
    return [
        f"+{section}.storage_options.{name}"
        for section in ("dataset", "output")
        for name in (
            f"client_kwargs.endpoint_url='{proxy.url}'",
            f"config_kwargs={config}",
        )
    ]


def test_a_run_over_storage_that_fails_in_every_way_has_the_tokens_of_a_clean_one(
    shards: str,
    clean: dict[str, bytes],
    bucket: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "RETRY_SECONDS", (0.01,) * 8)
    files = fsspec.filesystem("s3")
    for path in Path(shards).parent.iterdir():
        files.put_file(str(path), f"{bucket}/in/{path.name}")
    rare = dict.fromkeys((Fault.stall, Fault.delay), 0.03)
    proxy.set_rates(dict.fromkeys(Fault, 0.1) | rare)
    out, pattern = f"s3://{bucket}/out", f"s3://{bucket}/in/*.tar"
    assert runs.run_inline(pattern, out, *SMALL, *through(proxy), "cluster.retry_seconds=0.1") == 0
    assert runs.tokens(out) == clean
    assert runs.quarantined(out) == {}
    assert verify([out]) == 0
    assert len(proxy.faults) >= 5, proxy.faults
    assert sum(proxy.faults.values()) >= 10, proxy.faults


@pytest.mark.parametrize("section", ["dataset", "output"])
def test_storage_that_says_no_stops_the_run_in_one_line_without_the_secret(
    section: str, shards: str, bucket: str, s3_endpoint: str, tmp_path: Path
) -> None:
    with refusing(403, "SignatureDoesNotMatch") as endpoint:
        options = [
            f"+{section}.storage_options.{name}"
            for name in (
                f"client_kwargs.endpoint_url='{endpoint}'",
                "key=AKIAEXAMPLE",
                "secret=sesame-open-up",
            )
        ]
        places = {"dataset": (f"s3://{bucket}/{{0..3}}.tar", tmp_path / "out")}
        pattern, out = places.get(section, (shards, f"s3://{bucket}/out"))
        with pytest.raises(StorageRefused, match="access denied") as refusal:
            runs.run_inline(pattern, out, *options)
    assert "\n" not in str(refusal.value)
    assert "sesame" not in str(refusal.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free_bytes", [n << 10 for n in (0, 24, 48, 72, 96)])
def test_a_full_disk_stops_the_run_and_the_same_command_finishes_it_when_there_is_room(
    small_disk: Path, shards: str, clean: dict[str, bytes], free_bytes: int
) -> None:
    ballast, out = small_disk / "ballast", small_disk / "out"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - free_bytes))
    with pytest.raises(PipelineError, match=r"disk full|cannot be written") as refusal:
        runs.run_inline(shards, out, *SMALL)
    assert "\n" not in str(refusal.value)
    ballast.unlink()
    assert runs.run_inline(shards, out, *SMALL) == 0
    assert runs.tokens(out) == clean
    assert runs.quarantined(out) == {}
    assert verify([str(out)]) == 0
    assert json.loads((out / "run.json").read_text())
