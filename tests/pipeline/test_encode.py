"""The encoder as a worker holds it: eager, compiled, recorded, and when memory is short."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encode import ClipEncoder, EncoderSpec, share_compiled_code
from pipeline.errors import RunError
from pipeline.schema import TokenFormat
from tests.close import assert_exact
from tests.pipeline.fakes import token_format
from tokenizer import checkpoint_digest, get_config, load_tokenizer

SIDE = 16


def spec(**changes: Any) -> EncoderSpec:
    """A tiny network (one block a level would be another family, so it is narrow instead)."""
    config = get_config(changes.pop("tokenizer", "demo"), ch=8)
    digest = checkpoint_digest(config, "random").digest
    packing = token_format()
    fields: dict[str, Any] = {
        "tokenizer": config,
        "checkpoint": "random",
        "seed": 0,
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "batch_clips": 2,
        "clip_frames": 5,
        "buckets": ((SIDE, SIDE),),
        "token_format": TokenFormat(
            **{name: getattr(packing, name) for name in TokenFormat.__slots__}
            | {"checkpoint_digest": digest}
        ),
    }
    return EncoderSpec(**fields | changes)


def clips(num: int = 2) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (num, 5, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _compiler_as_before() -> Iterator[None]:
    before = dict(os.environ)
    yield
    torch._dynamo.reset()
    os.environ.clear()
    os.environ.update(before)


def test_padding_is_cut_off_and_the_time_is_told() -> None:
    encoder = ClipEncoder(spec())
    whole = encoder.encode(clips(), 2)
    assert_exact(encoder.encode(clips(), 1)[0], whole[0])
    assert len(whole) == 2
    assert encoder.busy_seconds > 0 < encoder.start_seconds
    assert encoder.numerics["compiled"] is False


def test_the_network_is_one_graph_for_a_compiler_and_gives_the_same_tokens() -> None:
    model = load_tokenizer(get_config("demo", ch=8, num_res_blocks=1), "random", decoder=False)
    frames = torch.from_numpy(clips())
    with torch.inference_mode():
        expected = model.encode_uint8(frames).indices
        model.encoder.compile(backend="eager", dynamic=False, fullgraph=True)
        assert expected is not None
        assert_exact(model.encode_uint8(frames).indices, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it is imported
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_code_gives_the_tokens_of_the_layers(tmp_path: Path, precision: str) -> None:
    """On a CPU, in C++; what a GPU gets comes from the same graph."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path)
    eager, compiled = (ClipEncoder(spec(precision=precision, compiled=c)) for c in (False, True))
    expected, found = eager.encode(clips(), 2), compiled.encode(clips(), 2)
    assert compiled.numerics["compiled"] is True
    assert np.mean(np.stack(found) == np.stack(expected)) > (0.99 if precision == "fp32" else 0.8)
    assert any(tmp_path.iterdir())
    first = np.ascontiguousarray(clips()[:, :1])
    for (one, _), (other, _) in zip(
        eager.encode_pieces(first, [None]), compiled.encode_pieces(first, [None]), strict=True
    ):
        assert_exact(one, other)  # pieces are not compiled


def test_without_a_compiler_it_encodes_as_it_is_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/c++",))
    encoder = ClipEncoder(spec(compiled=True))
    assert encoder.numerics["compiled"] is False
    assert "kernels cannot be compiled here" in caplog.text
    expected = ClipEncoder(spec()).encode(clips(), 2)
    assert_exact(np.stack(encoder.encode(clips(), 2)), np.stack(expected))


def test_compiled_code_is_kept_where_all_workers_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    share_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "vidtok-pipeline" / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    share_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


@pytest.mark.parametrize(
    ("batch", "remedy"), [(8, "encoder.batch_clips=4"), (1, "lower sampling.resolution")]
)
def test_a_batch_that_does_not_fit_stops_the_run_with_a_remedy(
    batch: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ClipEncoder(spec(batch_clips=batch))

    def no_memory(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "_encode_batch", no_memory)
    with pytest.raises(RunError, match=f"a batch of {batch} clips does not fit.*{remedy}"):
        encoder.encode(clips(batch), batch)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_batches_give_the_tokens_of_the_layers_from_any_thread(compiled: bool) -> None:
    encoder = ClipEncoder(spec(device="cuda", compiled=compiled))
    expected = ClipEncoder(spec()).encode(clips(), 2)
    first = encoder.encode(clips(), 2)
    with ThreadPoolExecutor(encoder.num_callers) as threads:
        again = list(threads.map(lambda _: encoder.encode(clips(), 2), range(8)))
    assert np.mean(np.stack(first) == np.stack(expected)) > 0.99
    for tokens in again:
        assert_exact(np.stack(tokens), np.stack(first))
