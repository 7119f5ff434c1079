"""The canary: one real clip that every worker encodes now and then, to notice arithmetic that lies.

A GPU may compute wrongly without any error. At its start a worker's tokens of the canary are
compared with the run's reference, which the driver computes in fp32 on its own CPU when an OUT is
new (where there is no driver of its own, the first worker does).
Afterwards they must be bit-equal to the worker's own first ones: before every commit the canary is
encoded again, behind the last clip of the segment, so that a segment becomes visible only between
two canaries that were right. A worker that fails is expelled, and what it has done since its last
good canary was never committed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encode import ClipEncoder, Encoder, EncoderSpec
from pipeline.errors import RunError, WorkerExpelled
from pipeline.fingerprint import digest_of
from pipeline.records import CanaryMode
from pipeline.storage import Storage
from tokenizer import TokenizerConfig

REFERENCE = "canary.json"
SIDE = 64
"""Least pixels of the canary's sides where its size is free: any machine is quick with them."""
INDEX_BOUNDS = {"fp32": 0.05, "tf32": 0.15, "bf16": 0.35}
"""Precision -> largest share of FSQ indices that may differ from the reference.
Measured with random weights: fp32 0, tf32 (emulated) 0.01, bf16 0.13 at most; of a device that
lies nearly all indices differ."""
LATENT_BOUNDS = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}
"""Precision -> largest root mean square error of latents, relative to theirs."""

Tokens = list[npt.NDArray[Any]]


class Canary:
    """One worker's checks of its own encoder."""

    def __init__(self, encoder: Encoder, spec: EncoderSpec, *, mode: CanaryMode) -> None:
        self._encoder, self._spec, self._mode = encoder, spec, mode
        self._first: Tokens = []
        self._frames = np.empty(0, np.uint8)

    def start(self, storage: Storage) -> None:
        """Compare with the run's reference, and keep what later checks must give.

        Raises:
            WorkerExpelled: this device computes something else than the reference.
        """
        if self._mode is CanaryMode.off:
            return
        spec = self._spec
        self._frames = _small_canary(spec)
        self._first = self._encode()
        check_reference(storage, spec, self._first[0], self._reference)
        if spec.device != "cpu":
            # The shape of the run itself: then the kernels are those that make the tokens.
            self._frames = canary_frames(spec.batch_clips, _canary_length(spec), *spec.buckets[0])
            self._first = self._encode()

    def _encode(self) -> Tokens:
        return self._encoder.encode(self._frames, len(self._frames))

    def check(self) -> None:
        """Encode the canary once more.

        Raises:
            WorkerExpelled: its tokens are not those of the start.
        """
        found = self._encode()
        share = max(map(disagreement, self._first, found))
        if not all(map(np.array_equal, self._first, found)):
            raise WorkerExpelled(
                self._encoder.numerics["device"],
                f"the canary clip does not give the tokens that it gave at the start (they differ "
                f"by {share:.2%}): this device computes wrongly",
            )

    def _reference(self) -> npt.NDArray[Any]:
        if (self._spec.device, self._spec.precision) == ("cpu", "fp32"):
            return self._first[0]
        return reference_tokens(self._spec)


def canary_frames(
    num_clips: int, num_frames: int, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """The shipped clip, repeated to any shape: uint8 ``[B, T, H, W, 3]``, all rows the same."""
    with (files("pipeline") / "canary.npy").open("rb") as file:
        clip: npt.NDArray[np.uint8] = np.load(file, allow_pickle=False)
    repeats = [
        -(-wanted // had)
        for wanted, had in zip((num_frames, height, width), clip.shape, strict=False)
    ]
    tiled = np.tile(clip, (*repeats, 1))[:num_frames, :height, :width]
    return np.repeat(tiled[None], num_clips, axis=0)


def disagreement(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Share of indices that differ; of latents the root mean square error, relative to theirs."""
    if expected.shape != found.shape:
        return 1.0
    if np.issubdtype(expected.dtype, np.integer):
        return float((expected != found).mean())
    scale = float(np.sqrt(np.square(expected, dtype=np.float64).mean())) or 1.0
    error = np.sqrt(np.square(expected.astype(np.float64) - found).mean())
    return float(error) / scale if np.isfinite(error) else 1.0


def reference_tokens(spec: EncoderSpec) -> npt.NDArray[Any]:
    """Tokens of one canary clip in fp32, on the CPU of this machine; loads the model for it.

    Raises:
        RunError: the tokenizer does not give what its specification says, or not twice the same.
    """
    plain = replace(spec, device="cpu", precision="fp32", batch_clips=1, compiled=False)
    encoder, frames = ClipEncoder(plain), _small_canary(spec)
    first, again = (encoder.encode(frames, 1)[0] for _ in range(2))
    if not np.array_equal(first, again):
        raise RunError(
            f"tokenizer {spec.token_format.tokenizer!r} is not deterministic: encoding the canary "
            f"clip twice gave tokens that differ by {disagreement(first, again):.2%}; encode must "
            "draw no random numbers (of a Gaussian, give mean and log-variance)"
        )
    return first


def _small_canary(spec: EncoderSpec) -> npt.NDArray[np.uint8]:
    """One clip of a size that the tokenizer takes."""
    _, *strides = spec.open().spec.stride
    height, width = (-(-SIDE // stride) * stride for stride in strides)
    return canary_frames(1, _canary_length(spec), height, width)


def _canary_length(spec: EncoderSpec) -> int:
    """T; the pieces of whole videos are no clips, of which a plugin has a rule."""
    if isinstance(spec.tokenizer, TokenizerConfig):
        return spec.clip_frames
    rule = spec.open().spec
    return rule.num_frames(rule.token_shape(spec.clip_frames, *rule.stride[1:])[-3])


def make_reference(storage: Storage, spec: EncoderSpec) -> None:
    """Compute the reference of a new OUT, unless there is one."""
    if _read_reference(storage) is None:
        _write_reference(storage, reference_tokens(spec))


def check_reference(
    storage: Storage,
    spec: EncoderSpec,
    found: npt.NDArray[Any],
    make: Callable[[], npt.NDArray[Any]],
) -> None:
    """Compare a worker's first canary with the run's reference, which the first worker makes.

    Args:
        storage: OUT.
        spec: precision and kind of tokens.
        found: the worker's tokens.
        make: computes the reference; called where there is none yet.

    Raises:
        WorkerExpelled: beyond the bound.
        RunError: the reference cannot be read.
    """
    expected = _read_reference(storage)
    if expected is None:
        _write_reference(storage, make())
        expected = _read_reference(storage)
    assert expected is not None
    is_index = np.issubdtype(expected.dtype, np.integer)
    bound = (INDEX_BOUNDS if is_index else LATENT_BOUNDS)[spec.precision]
    share = disagreement(expected, found)
    if share > bound:
        raise WorkerExpelled(
            "canary",
            f"the tokens of the canary clip differ by {share:.2%} from the run's reference "
            f"({storage}/{REFERENCE}), {bound:.2%} are allowed in {spec.precision}: this device "
            "computes wrongly",
        )


def _write_reference(storage: Storage, tokens: npt.NDArray[Any]) -> None:
    fields = {
        "shape": list(tokens.shape),
        "dtype": tokens.dtype.name,
        "tokens": tokens.ravel().tolist(),
    }
    record = fields | {"digest": digest_of(fields)}
    storage.put_if_absent(REFERENCE, json.dumps(record).encode())


def _read_reference(storage: Storage) -> npt.NDArray[Any] | None:
    try:
        record = json.loads(storage.read(REFERENCE))
        digest = record.pop("digest")
        if digest != digest_of(record):
            raise ValueError("its digest does not match its content")
        tokens = np.array(record["tokens"], dtype=record["dtype"])
        return tokens.reshape(record["shape"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{storage}/{REFERENCE} cannot be trusted: {error}") from error
