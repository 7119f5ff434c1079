"""``python -m tokenizer.list`` and the arithmetic of costs behind it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenizer import (
    TokenizerConfig,
    Version,
    build,
    cost,
    decode_flops,
    encode_flops,
    get_config,
    list_tokenizers,
    num_parameters,
)
from tokenizer import list as listing

ROOT = Path(__file__).parent.parent.parent


def test_json_has_everything_about_everyone(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert sorted(rows) == list_tokenizers()
    row = rows["kl_4x8x8_16chn_v1_1"]
    assert row["official"] == "vidtok_kl_causal_488_16chn_v1_1"
    assert row["checkpoint_file"] == "vidtok_kl_causal_488_16chn_v1_1.ckpt"
    assert row["published"] == {"psnr": 35.13, "ssim": 0.941, "lpips": 0.049, "fvd": 87.4}
    assert row["compression"] == 48
    assert sum(row["published"] is not None for row in rows.values()) == 21


def test_table_of_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["kl_4x8x8_4chn_noncausal", "demo"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()[:3]
    assert head.split()[-6:] == ["PSNR", "SSIM", "LPIPS", "FVD", "official", "configuration"]
    assert first.split()[-5:] == [
        "30.60",
        "0.876",
        "0.098",
        "157.9",
        "vidtok_kl_noncausal_488_4chn",
    ]
    assert second.split()[-5:] == ["-", "-", "-", "-", "(ours)"]


def test_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["fsq_4x8"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown tokenizer 'fsq_4x8': did you mean")


def test_command_needs_no_torch() -> None:
    code = (
        "import sys, tokenizer.list; tokenizer.list.main(['demo']);"
        "bad = {'torch', 'numpy', 'fsspec'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize("name", list_tokenizers())
def test_parameters_are_those_of_the_network(name: str) -> None:
    config = get_config(name)
    with torch.device("meta"):
        model = build(config)
    assert model.decoder is not None
    found = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert num_parameters(config) == tuple(found)


@pytest.mark.parametrize(
    "name", ["fsq_4x8x8", "kl_4x16x16_4chn_noncausal", "fsq_8x8x8_32768_v1_1", "kl_4x4x4_4chn"]
)
def test_operations_are_those_of_the_network(name: str) -> None:
    config = get_config(name, ch=32)
    with torch.device("meta"):
        model = build(config)
        x_BCTHW = torch.zeros(1, 3, 17, 64, 64)
        z_Bcthw = torch.zeros(1, config.latent_channels, *config.latent_shape(17, 64, 64))
        with FlopCounterMode(display=False) as encoding:
            model.encoder(x_BCTHW)
        assert model.decoder is not None
        with FlopCounterMode(display=False) as decoding:
            model.decoder(z_Bcthw)
    saved = operations_of_equal_frames(config, 17, 64, 64)
    assert encoding.get_total_flops() == encode_flops(config, 17, 64, 64) - saved
    saved = operations_of_repeated_input(config, *z_Bcthw.shape[2:])
    assert decoding.get_total_flops() == decode_flops(config, 17, 64, 64) - saved


def operations_of_equal_frames(config: TokenizerConfig, *shape: int) -> int:
    """v1.1: what copies of the first frame would cost before the first stride in time."""
    if config.version is not Version.v1_1:
        return 0
    num_frames = shape[0] + config.front_padding(shape[0])
    before = itertools.takewhile(lambda p: not p.has_blend, cost.encoder_products(config, *shape))
    return sum(p.flops for p in before) * config.front_padding(shape[0]) // num_frames


def operations_of_repeated_input(config: TokenizerConfig, t: int, h: int, w: int) -> int:
    """What convolving repeated pixels and frames costs more than doing it by phases."""
    saved = 0
    for level, factor in reversed(list(enumerate(config.ch_mult))):
        product = 2 * (config.ch * factor) ** 2
        if level in config.spatial_levels_up:
            saved += product * t * (9 * 2 * h * 2 * w - 4 * 4 * (h + 1) * (w + 1))
            h, w = 2 * h, 2 * w
            if level in config.time_levels_up and config.version is Version.v1_0:
                computed = t if config.is_causal else t + 1
                saved += product * h * w * (27 * 2 * t - 18 * 2 * computed)
            t *= 2 if level in config.time_levels_up else 1
    return saved


def test_operations_of_the_published_model_at_full_size() -> None:
    config = get_config("fsq_4x8x8")
    assert encode_flops(config, 17, 256, 256) == pytest.approx(5.824e12, rel=1e-4)
    assert decode_flops(config, 17, 256, 256) == pytest.approx(14.867e12, rel=1e-4)
