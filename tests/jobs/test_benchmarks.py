"""The encoder, decoder and worker benchmarks, on a small network and small clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmark import decoder, encoder, outputs
from jobs.benchmark.rates import ConvShape, mean_rate, shape_of
from tokenizer.cost import Product

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--tokenizer", "demo", "--size", "32x32", "--frames", "5"]
KEYS = {
    "clips_per_second",
    "tflops",
    "fraction_of_conv_rate",
    "fraction_of_matmul_rate",
    "peak_bytes",
    "index_agreement",
}
WITHOUT = ["ray", "hydra", "rich", "s3fs", "botocore", "aiobotocore", "boto3"]
RUN_WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"no {name} here", name=name)

sys.meta_path.insert(0, Blocked())

if __name__ == "__main__":
    from jobs.benchmark.__main__ import main

    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("part", [encoder, decoder])
def test_a_network_is_measured_against_the_machine(
    part: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert part.main([*SMALL, "--rounds", "1", "--json", str(path)]) == 0  # type: ignore[attr-defined]
    figures = json.loads(path.read_text())
    assert figures.keys() >= KEYS
    assert figures["index_agreement"] == 1
    assert figures["ms_per_clip"] == pytest.approx(1e3 / figures["clips_per_second"])
    assert figures["tflops"] == pytest.approx(
        figures["flops_per_clip"] * figures["clips_per_second"] / 1e12
    )
    in_layers = sum(layer["flops"] for layer in figures["layers"])
    assert in_layers == figures["flops_per_clip"]
    assert "mid.attn_1" in capsys.readouterr().out


def test_a_worker_runs_without_ray_hydra_and_s3(tmp_path: Path) -> None:
    """A GPU machine need not have them."""
    script, path = tmp_path / "run_without.py", tmp_path / "figures.json"
    script.write_text(RUN_WITHOUT)
    command = [sys.executable, str(script), ",".join(WITHOUT), "worker", *SMALL]
    done = subprocess.run(
        [*command, "--json", str(path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    assert figures["videos"] == 13
    assert figures["quarantined"] == 1
    assert figures["clips"] > 19
    assert figures["segments"] == 4
    assert 0 < figures["encoder_busy"] < 1.01
    assert figures["bytes_read"] > 3e6


def test_rates_are_weighted_by_operations() -> None:
    assert mean_rate([100, 300], [10.0, 10.0]) == 10.0
    assert mean_rate([100, 100], [10.0, 30.0]) == pytest.approx(15.0)


def test_every_product_is_compared_with_a_convolution_of_its_place_and_width() -> None:
    product = Product(taps=3, in_channels=128, out_channels=256, shape=(20, 64, 32))
    assert shape_of(product) == ConvShape(20, 64, 32, 256)
    assert ConvShape(2, 4, 8, 16).flops == 2 * 9 * 16 * 16 * 2 * 4 * 8


def test_one_pass_for_three_outputs_is_measured_against_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert outputs.main(["--videos", "1", "--rounds", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert len(figures) == 2
    assert figures["all"]["clips"] > 3
    assert figures["all"]["ratio"] > 1
    assert "a pass each" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        outputs.main(["--videos", "0"])
