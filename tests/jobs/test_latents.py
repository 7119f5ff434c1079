"""``jobs.benchmark latents``: sizes are those of the formats; nothing is measured of indices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.benchmark.latents import main
from pipeline.errors import RunError
from pipeline.receipts import commit
from pipeline.storage import Storage
from pipeline.writer import write_part
from tests.pipeline.fakes import latent_row, make_out, token_format
from tests.pipeline.receipts import receipt


def test_sizes_and_rates_of_every_packing_are_told(tmp_path: Path) -> None:
    smooth = np.linspace(-1, 1, 2 * 2 * 3 * 16 * 16, dtype=np.float32).reshape(4, 3, 16, 16)
    storage = Storage(str(tmp_path / "out"))
    form = token_format("fp32")
    rows = [latent_row(number, smooth + number) for number in range(3)]
    digest = write_part(tmp_path / "part", rows, form, row_group_rows=2)
    storage.publish(tmp_path / "part", "parts/p")
    commit(storage, receipt(part="p", rows=3, final=True, **digest.receipt_fields()))
    assert main([storage.root, "--passes", "1", "--json", str(tmp_path / "figures")]) == 0
    figures = json.loads((tmp_path / "figures").read_text())
    sizes = {name: row["bytes_per_value"] for name, row in figures.items()}
    assert (sizes["fp32+none"], sizes["fp16+none"], sizes["bf16+none"]) == (4, 2, 2)
    assert sizes["bf16+planes"] < 1.9
    assert all(row["read_mb_per_cpu_second"] > 0 for row in figures.values())


def test_an_out_without_latents_is_named(tmp_path: Path) -> None:
    storage = make_out(tmp_path / "out")
    with pytest.raises(RunError, match="out holds no latents"):
        main([storage.root])
