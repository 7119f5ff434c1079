"""Names, files and overrides of configurations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tokenizer import ConfigError, UnknownName, get_config, list_tokenizers

FOLDER = Path(__file__).parent.parent.parent / "conf" / "tokenizer"


def test_names_are_sorted_and_complete() -> None:
    names = list_tokenizers()
    assert names == sorted(names)
    assert len(names) == 24
    assert "demo" in names


@pytest.mark.parametrize("name", list_tokenizers())
def test_file_is_short_plain_and_named_after_its_tokenizer(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert "defaults:" not in text
    assert len(text.splitlines()) <= 13
    assert get_config(name).name == name


@pytest.mark.parametrize("name", list_tokenizers())
def test_name_tells_stride_quantizer_and_family(name: str) -> None:
    config = get_config(name)
    if config.official is None:
        return
    kind, stride, *rest = name.split("_")
    assert config.quantizer.kind.name == kind
    assert "x".join(map(str, config.stride)) == stride
    assert config.is_causal == ("noncausal" not in rest)
    assert (config.version.name == "v1_1") == name.endswith("v1_1")
    if kind == "fsq":
        codes = [part for part in rest if part.isdigit() and len(part) > 1]
        assert config.codebook_size == int(codes[0] if codes else 262144)
    else:
        assert rest[0] == f"{config.latent_channels}chn"
    assert config.checkpoint_file == f"{config.official}.ckpt"


@pytest.mark.parametrize("name", list_tokenizers())
def test_natural_clip_fits_the_model(name: str) -> None:
    config = get_config(name)
    config.check_clip(config.clip_frames, config.resolution, config.resolution)


def test_overrides_reach_nested_fields() -> None:
    config = get_config("fsq_4x8x8", ch=16, quantizer={"levels": [8, 5]}, init_pad_mode="constant")
    assert (config.ch, config.quantizer.levels) == (16, [8, 5])
    assert config.quantizer.kind.name == "fsq"
    assert config.init_pad_mode.name == "constant"


def test_unknown_name_lists_near_matches() -> None:
    with pytest.raises(UnknownName, match=r"'fsq_4x8'.*did you mean fsq_4x8x8.*known: demo, "):
        get_config("fsq_4x8")


def test_unknown_override_lists_the_fields() -> None:
    with pytest.raises(UnknownName, match=r"'chn'.*did you mean ch\?.*ch_mult"):
        get_config("demo", chn=3)


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        ({"ch": "wide"}, "tokenizer.ch cannot be 'wide'"),
        ({"version": "v2"}, "tokenizer.version cannot be 'v2'"),
        ({"quantizer": {"lvels": [1]}}, "tokenizer.quantizer cannot be .*lvels"),
    ],
)
def test_override_of_the_wrong_type_names_its_field(overrides: dict, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        get_config("demo", **overrides)


def test_configurations_are_read_without_torch() -> None:
    code = (
        "import sys, tokenizer; tokenizer.list_tokenizers(); tokenizer.get_config('demo');"
        "bad = {'torch', 'ray', 'hydra', 'av'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent.parent)
