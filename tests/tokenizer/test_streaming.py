"""Long videos in chunks: the same tokens and the same video as in one piece."""

from __future__ import annotations

import functools
import gc

import numpy as np
import pytest
import torch

from tests.close import assert_close_fp32, assert_close_stream, assert_exact
from tests.tokenizer.formulas import CASES, GOLDEN, formula_model, pattern
from tokenizer import EncoderState, MissingPart, ShapeError, UnknownName, VideoTokenizer

V1_0, V1_1 = "fsq_4x8x8", "fsq_4x8x8_32768_v1_1"
CAUSAL = [V1_0, V1_1, "kl_2x8x8_8chn", "kl_2x8x8_8chn_v1_1", "fsq_4x16x16", "fsq_8x8x8_32768_v1_1"]


@functools.cache
def streaming_model(name: str) -> VideoTokenizer:
    return formula_model(name, ch=16)


def encoder_outputs(model: VideoTokenizer, x_BCTHW: torch.Tensor, *sizes: int) -> torch.Tensor:
    """What the encoder gives before the quantiser, for chunks of these sizes."""
    outputs: list[torch.Tensor] = []
    hook = model.encoder.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    state = None
    for chunk_BCTHW in x_BCTHW.split(sizes, dim=2):
        _, state = model.encode_chunk(chunk_BCTHW, state)
    hook.remove()
    return torch.cat(outputs, dim=2)


def video_in_chunks(model: VideoTokenizer, z: torch.Tensor, *args: object) -> torch.Tensor:
    return torch.cat(list(model.stream_decode(z, *args)), dim=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("num_chunks", [1, 2, 4])
def test_chunks_encode_as_the_whole_clip(name: str, num_chunks: int) -> None:
    model = streaming_model(name)
    size = 4 // num_chunks * model.config.time_downsample_factor
    x_BCTHW = pattern(1, 1 + num_chunks * size, 32, 32)
    assert_close_stream(
        encoder_outputs(model, x_BCTHW, 1, *[size] * num_chunks), model.encoder(x_BCTHW)
    )


@pytest.mark.parametrize("sizes", [(2, 4, 8), (5, 8), (7, 4), (8, 4, 4)])
def test_first_chunk_of_the_length_modulo_four_encodes_as_the_whole_clip(
    sizes: tuple[int, ...],
) -> None:
    model, x_BCTHW = streaming_model(V1_1), pattern(1, sum(sizes), 32, 32)
    assert_close_stream(encoder_outputs(model, x_BCTHW, *sizes), model.encoder(x_BCTHW))


@pytest.mark.parametrize("sizes", [(5, 8), (4, 8)])
def test_v1_0_streams_may_start_with_any_length_that_it_does_not_cut(
    sizes: tuple[int, ...],
) -> None:
    model, x_BCTHW = streaming_model(V1_0), pattern(1, sum(sizes), 32, 32)
    assert_close_stream(encoder_outputs(model, x_BCTHW, *sizes), model.encoder(x_BCTHW))


@pytest.mark.parametrize("name", [V1_0, V1_1])
def test_frames_after_the_end_change_nothing_before(name: str) -> None:
    model, x_BCTHW = streaming_model(name), pattern(1, 13, 16, 16)
    filled = torch.cat([x_BCTHW[:, :, :9], torch.ones(1, 3, 4, 16, 16)], dim=2)
    _, state = model.encode_chunk(x_BCTHW[:, :, :1])
    whole, _ = model.encode_chunk(x_BCTHW[:, :, 1:], state)
    cut, _ = model.encode_chunk(filled[:, :, 1:], state)
    assert_exact(cut.latents[:, :, :2], whole.latents[:, :, :2])


def test_last_chunk_that_does_not_fit_is_padded_at_its_own_front() -> None:
    model, x_BCTHW = streaming_model(V1_1), pattern(1, 22, 16, 16)
    parts = [encoded.latents for encoded in model.stream_encode(x_BCTHW, 16)]
    assert [z.shape[2] for z in parts] == [1, 4, 2]
    assert video_in_chunks(model, torch.cat(parts, dim=2)).shape[2] == 28
    padded = torch.cat([x_BCTHW[:, :, :17], x_BCTHW[:, :, 17:18].expand(-1, -1, 3, -1, -1)], dim=2)
    padded = torch.cat([padded, x_BCTHW[:, :, 17:]], dim=2)
    assert_exact(torch.cat(parts, dim=2), model.encode(padded).latents)


def test_videos_share_a_batch_and_leave_it_one_by_one() -> None:
    model, x_BCTHW = streaming_model(V1_0), pattern(3, 9, 16, 16)
    states: list[EncoderState] = []
    for row in range(3):
        _, state = model.encode_chunk(x_BCTHW[row : row + 1, :, :1])
        states.append(state)
    both, state = model.encode_chunk(
        x_BCTHW[[2, 0], :, 1:5], EncoderState.cat([states[2], states[0]])
    )
    third, first = state.split()
    alone, _ = model.encode_chunk(x_BCTHW[:1, :, 5:], first)
    expected = model.encode(x_BCTHW).latents
    assert_exact(both.latents, expected[[2, 0], :, 1:2])
    assert_exact(alone.latents, expected[:1, :, 2:])
    assert third.num_rows == 1
    assert third.caches[0].untyped_storage().nbytes() == third.caches[0].nbytes


def test_uint8_chunks_equal_floats() -> None:
    model = streaming_model(V1_0)
    frames = torch.randint(0, 256, (1, 9, 16, 16, 3), dtype=torch.uint8)
    parts = list(model.stream_encode([frames[:, :3], frames[:, 3:4], frames[:, 4:]], 4))
    whole = model.encode_uint8(frames)
    assert_exact(torch.cat([part.indices for part in parts], dim=1), whole.indices)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*CAUSAL, "kl_4x4x4_4chn"])
def test_state_is_as_large_as_its_arithmetic_says(name: str, precision: str) -> None:
    model = streaming_model(name)
    model.set_precision(precision)
    _, state = model.encode_chunk(pattern(2, 1, 32, 48))
    size = model.config.state_bytes(32, 48, model.precision)
    model.set_precision("fp32")
    assert state.nbytes == 2 * size


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_exact_chunks_decode_as_the_whole_clip(name: str, chunk: int) -> None:
    model = streaming_model(name)
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(1, model.config.latent_channels, 6, 2, 2, generator=generator) * 2 - 1
    assert_close_stream(video_in_chunks(model, z, chunk), model.decode(z))


@pytest.mark.parametrize("case", [case for case in CASES if "chunk" in CASES[case]])
def test_published_chunks_give_the_published_numbers(case: str) -> None:
    spec, golden = CASES[case], np.load(GOLDEN / f"{case}.npz")
    model, x_BCTHW = (
        formula_model(spec["tokenizer"], **spec["overrides"]),
        pattern(*spec["input_BTHW"]),
    )
    parts = list(model.stream_encode(x_BCTHW, spec["chunk"]))
    z = torch.cat([part.latents for part in parts], dim=2)
    if "indices" in golden:
        assert_exact(z, golden["z"])
        assert_exact(torch.cat([part.indices for part in parts], dim=1), golden["indices"])
    else:
        assert_close_fp32(z, golden["z"])
    chunk = spec["chunk"] // model.config.time_downsample_factor
    x_hat_BCTHW = video_in_chunks(model, z, chunk, spec["mode"])
    assert_close_fp32(x_hat_BCTHW[:, :, -x_BCTHW.shape[2] :], golden["recon"])


def test_overlap_differs_from_the_whole_clip_after_the_first_latent() -> None:
    """As measured on the published code: the last frames of the next latent are taken twice."""
    model = streaming_model(V1_1)
    z = model.encode(pattern(1, 33, 32, 32)).latents
    difference = (video_in_chunks(model, z, 4, "overlap") - model.decode(z)).abs()
    per_frame = difference.amax(dim=(0, 1, 3, 4))
    assert 0.005 < per_frame.max() < 0.05
    assert (per_frame > 1e-5).nonzero().flatten().tolist() == list(range(4, 21))


def test_indices_decode_in_chunks() -> None:
    model = streaming_model(V1_1)
    indices = torch.randint(0, 32768, (1, 5, 2, 2), dtype=torch.int32)
    blocks = [indices[:, :2], indices[:, 2:]]
    assert_exact(
        torch.cat(list(model.stream_decode(blocks, 2)), dim=2),
        torch.cat(list(model.stream_decode(indices, 2)), dim=2),
    )


def test_memory_does_not_grow_with_the_length() -> None:
    model = streaming_model(V1_1)
    before = {id(thing) for thing in gc.get_objects() if type(thing) is torch.Tensor}
    blocks = (torch.zeros(1, 3, 4, 16, 16) for _ in range(12))
    latents = (encoded.latents for encoded in model.stream_encode(blocks, 4))
    alive = []
    for _ in model.stream_decode(latents, 1):
        tensors = (thing for thing in gc.get_objects() if type(thing) is torch.Tensor)
        alive.append(sum(tensor.nbytes for tensor in tensors if id(tensor) not in before))
    assert len(alive) == 12
    assert alive[8] == alive[2]


def test_models_that_look_ahead_refuse_to_stream() -> None:
    model = formula_model("fsq_4x8x8_noncausal", ch=16)
    frames = pattern(1, 4, 16, 16)
    for call in (model.encode_chunk, model.stream_encode, model.stream_decode):
        with pytest.raises(MissingPart, match=r"noncausal.*depend on later frames"):
            call(frames)


def test_published_modes_are_for_v1_1() -> None:
    with pytest.raises(MissingPart, match=r"mode=overlap is for v1\.1 only"):
        streaming_model(V1_0).stream_decode(torch.zeros(1, 6, 2, 2, 2), mode="overlap")
    with pytest.raises(UnknownName, match="unknown mode 'exakt'"):
        streaming_model(V1_0).stream_decode(torch.zeros(1, 6, 2, 2, 2), mode="exakt")


def test_chunks_that_cannot_be_are_refused() -> None:
    model = streaming_model(V1_0)
    _, state = model.encode_chunk(pattern(1, 1, 16, 16))
    with pytest.raises(ShapeError, match=r"first chunk: expected k\*4 or 1 \+ k\*4 frames, got 6"):
        model.encode_chunk(pattern(1, 6, 16, 16))
    with pytest.raises(ShapeError, match=r"state: .*\[2, 16, 16\], got \[1, 16, 16\]"):
        model.encode_chunk(pattern(2, 4, 16, 16), state)
    with pytest.raises(ShapeError, match=r"chunk: expected a multiple of 4 frames"):
        model.stream_encode(pattern(1, 9, 16, 16), 6)
    _, wide = model.encode_chunk(pattern(1, 1, 16, 32))
    with pytest.raises(ShapeError, match="one model, precision and frame size"):
        EncoderState.cat([state, wide])
