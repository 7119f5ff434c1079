"""Equality with the published implementation: parameter names, and outputs on formula weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.close import assert_close_fp32, assert_close_groupnorm, assert_exact
from tests.tokenizer.formulas import CASES, GOLDEN, formula_model, pattern, published_keys
from tokenizer import build, get_config, list_tokenizers

NAMES = [name for name in list_tokenizers() if get_config(name).official]


def test_every_published_configuration_has_a_name() -> None:
    assert sorted(str(get_config(name).official) for name in NAMES) == sorted(published_keys())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_is_the_published_one(name: str) -> None:
    config = get_config(name)
    with torch.device("meta"):
        state = build(config).state_dict()
    found = [[key, list(tensor.shape)] for key, tensor in state.items()]
    assert found == published_keys()[str(config.official)]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("case", [case for case in CASES if "chunk" not in CASES[case]])
def test_outputs_are_those_of_the_published_model(case: str) -> None:
    spec, golden = CASES[case], np.load(GOLDEN / f"{case}.npz")
    close = assert_close_groupnorm if "groupnorm" in case else assert_close_fp32
    model = formula_model(spec["tokenizer"], **spec["overrides"])
    x_BCTHW = pattern(*spec["input_BTHW"])
    seen: dict[str, Any] = {}
    for part in ("encoder", "quantizer"):
        getattr(model, part).register_forward_hook(
            lambda _module, _inputs, output, part=part: seen.update({part: output})
        )

    close(model(x_BCTHW), golden["recon"])

    close(seen["encoder"], golden["pre"])
    assert seen["encoder"].shape[2:] == model.config.latent_shape(*x_BCTHW.shape[2:])
    first, second = seen["quantizer"]
    if "indices" in golden:
        assert_exact(first, golden["z"])
        assert_exact(second, golden["indices"])
        assert second.dtype == torch.int32
    else:
        close(first, golden["z"])
