"""Tiles change where intermediate results lie, not what they are."""

from __future__ import annotations

import pytest
import torch

from tests.close import assert_close_fp32, assert_exact
from tests.tokenizer.formulas import formula_model, pattern
from tokenizer.layers import tiles
from tokenizer.layers.stream import Stream
from tokenizer.layers.tiles import FRAMES, ROWS, by_tiles, places

NAMES = ["fsq_4x8x8", "fsq_4x8x8_32768_v1_1", "kl_4x8x8_4chn_noncausal"]


@pytest.mark.parametrize(
    ("axis", "growth", "tile_values", "bounds"),
    [
        (FRAMES, 1, 10**6, [(0, 5)]),
        (FRAMES, 1, 2 * 6 * 4 * 8, [(0, 1), (1, 3), (3, 5)]),
        (FRAMES, 2, 2 * 6 * 4 * 8, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (ROWS, 1, 3 * 5 * 4 * 8, [(0, 3), (3, 6)]),
        (ROWS, 1, 1, [(row, row + 1) for row in range(6)]),
    ],
)
def test_tiles_of_a_clip_are_nearly_equal(
    axis: int,
    growth: int,
    tile_values: int,
    bounds: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "TILE_VALUES", tile_values)
    found = list(places(torch.zeros(2, 5, 6, 4, 8), axis, growth))
    assert [(p[axis].start, p[axis].stop) for p in found] == 2 * bounds
    assert [p[0] for p in found] == [slice(0, 1)] * len(bounds) + [slice(1, 2)] * len(bounds)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_tiles_give_what_the_whole_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x_BCTHW = formula_model(name, ch=16), pattern(2, 8, 16, 24)
    expected = model(x_BCTHW)
    monkeypatch.setattr(tiles, "TILE_VALUES", 1)
    assert_close_fp32(model(x_BCTHW), expected)


@pytest.mark.parametrize("name", NAMES)
def test_recording_gradients_changes_rounding_only(name: str) -> None:
    model, x_BCTHW = formula_model(name, ch=16), pattern(1, 8, 16, 16)
    expected = model(x_BCTHW)
    assert_close_fp32(model.requires_grad_(True)(x_BCTHW), expected)


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_stream_in_tiny_tiles_goes_on_where_it_stopped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, frames = formula_model(name, ch=16), pattern(2, 9, 16, 16)
    whole = model.encode(frames).latents
    monkeypatch.setattr(tiles, "TILE_VALUES", 1)
    chunks = [tokens.latents for tokens in model.stream_encode(frames, chunk=4)]
    assert_exact(torch.cat(chunks, dim=2), whole)


def test_what_is_overwritten_is_the_input_where_its_shape_allows() -> None:
    x_BTHWC = torch.ones(1, 2, 3, 4, 8)

    def one_more(x: torch.Tensor, _: Stream, out: torch.Tensor) -> None:
        torch.add(x, 1, out=out)

    def twice(x: torch.Tensor, _: Stream, out: torch.Tensor) -> None:
        torch.cat([x, x], -1, out=out)

    same = by_tiles(one_more, x_BTHWC, Stream(), axis=FRAMES, channels=8)
    assert same is x_BTHWC
    wider = by_tiles(twice, same, Stream(), axis=FRAMES, channels=16)
    assert_exact(same, torch.full((1, 2, 3, 4, 8), 2.0))
    assert_exact(wider, torch.full((1, 2, 3, 4, 16), 2.0))


def test_a_batch_gives_each_clip_what_it_gets_alone_up_to_the_bottleneck() -> None:
    """Blocks work clip by clip, so that up to there the size of the batch rounds nothing."""
    model = formula_model("fsq_4x8x8", ch=16)
    x_BTHWC = torch.randn(3, 5, 32, 32, 16, generator=torch.Generator().manual_seed(0))
    block = model.encoder.down[0].block[0]
    alone = torch.cat([block(x_BTHWC[b : b + 1].clone(), Stream()) for b in range(3)])
    assert_exact(block(x_BTHWC.clone(), Stream()), alone)
