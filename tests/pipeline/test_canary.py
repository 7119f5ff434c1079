"""An encoder that computes wrongly is found out before anything of it can be seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.canary import REFERENCE, Canary, canary_frames, disagreement, make_reference
from pipeline.encode import ClipEncoder, EncoderSpec
from pipeline.errors import RunError, WorkerExpelled
from pipeline.records import CanaryMode
from pipeline.segments import ShardTask
from pipeline.storage import Storage
from pipeline.worker import Worker
from tests.pipeline import test_encode
from tests.pipeline.fakes import FakeEncoder
from tests.pipeline.test_worker import VIDEO, shard_of, spec
from tokenizer import get_config


class Liar(FakeEncoder):
    """Right for so many batches, then off by one in every index."""

    def __init__(self, honest: int) -> None:
        super().__init__()
        self.honest = honest

    def encode(self, frames: npt.NDArray[np.uint8], num_clips: int) -> list[npt.NDArray[Any]]:
        self.honest -= 1
        lie = int(self.honest < 0)
        return [tokens + lie for tokens in super().encode(frames, num_clips)]


def encoder_spec(tmp_path: Path, **changes: Any) -> EncoderSpec:
    return replace(spec(tmp_path).encoder, **{"tokenizer": get_config("demo")} | changes)


def test_the_canary_is_a_real_clip_of_any_shape() -> None:
    frames = canary_frames(2, 33, 80, 48)
    assert frames.shape == (2, 33, 80, 48, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 30, "a picture"
    assert (frames[0, 0] != frames[0, 5]).mean() > 0.5, "that moves"
    assert (frames[0] == frames[1]).all()


@pytest.mark.parametrize(
    ("expected", "found", "share"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 4]), 0.0),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.array([3.0, 4.0]), np.array([3.0, 4.5]), 0.1),
        (np.array([3.0, 4.0]), np.array([3.0, np.nan]), 1.0),
        (np.array([1, 2]), np.array([1, 2, 3]), 1.0),
    ],
)
def test_disagreement(expected: Any, found: Any, share: float) -> None:
    assert disagreement(expected, found) == pytest.approx(share)


def test_the_first_worker_leaves_a_reference_that_the_next_is_held_to(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    Canary(FakeEncoder(), encoder_spec(tmp_path), mode=CanaryMode.commit).start(storage)
    record = json.loads(storage.read(REFERENCE))
    assert record["shape"] == [1, 2, 2]
    Canary(FakeEncoder(), encoder_spec(tmp_path), mode=CanaryMode.commit).start(storage)
    liar = Canary(Liar(0), encoder_spec(tmp_path), mode=CanaryMode.start)
    with pytest.raises(WorkerExpelled, match=r"differ by 100\.00% .* 5\.00% are allowed in fp32"):
        liar.start(storage)
    Canary(Liar(0), encoder_spec(tmp_path), mode=CanaryMode.off).start(storage)


def test_a_reference_that_was_changed_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    Canary(FakeEncoder(), encoder_spec(tmp_path), mode=CanaryMode.commit).start(storage)
    record = json.loads(storage.read(REFERENCE))
    record["tokens"][0] += 1
    storage.put(REFERENCE, json.dumps(record).encode())
    with pytest.raises(RunError, match=r"canary\.json cannot be trusted: its digest"):
        Canary(FakeEncoder(), encoder_spec(tmp_path), mode=CanaryMode.commit).start(storage)


def test_one_index_that_changes_later_is_enough(tmp_path: Path) -> None:
    class OneBit(FakeEncoder):
        lies = False

        def encode(self, frames: Any, num_clips: int) -> list[npt.NDArray[Any]]:
            tokens = super().encode(frames, num_clips)
            tokens[-1].flat[0] += self.lies
            return tokens

    encoder = OneBit()
    canary = Canary(encoder, encoder_spec(tmp_path), mode=CanaryMode.commit)
    canary.start(Storage(str(tmp_path / "out")))
    canary.check()
    encoder.lies = True
    with pytest.raises(WorkerExpelled, match="does not give the tokens that it gave at the start"):
        canary.check()


def test_nothing_that_a_lying_worker_made_is_committed(tmp_path: Path) -> None:
    out, shard = tmp_path / "out", shard_of(tmp_path, *[VIDEO] * 5)
    # its first canary, which is the reference; then honest for one segment and its canary
    worker = Worker(
        spec(
            out,
            encoder=encoder_spec(out),
            canary=CanaryMode.commit,
            commit={"max_clips": 2},
            decoders=1,
        ),
        Liar(1 + 1 + 1),
    )
    try:
        with pytest.raises(WorkerExpelled):
            worker.run_shard(ShardTask(shard=shard, source=None))
    finally:
        worker.close()
    receipts = list(worker.storage.entries("receipts"))
    assert len(receipts) <= 1
    assert len(worker.storage.entries("parts")) == len(receipts), "the refused part is gone"

    honest = Worker(spec(out, encoder=encoder_spec(out), canary=CanaryMode.commit), FakeEncoder())
    try:
        done = honest.run_shard(ShardTask(shard=shard, source=None))
        assert done[-1].final
        assert honest.report().counters["canaries"] >= 1
    finally:
        honest.close()


def test_a_first_worker_that_lies_is_not_its_own_judge(tmp_path: Path) -> None:
    real = test_encode.spec()
    storage = Storage(str(tmp_path / "out"))
    make_reference(storage, real)
    made = storage.read(REFERENCE)
    make_reference(storage, real)
    assert storage.read(REFERENCE) == made
    encoder = ClipEncoder(real)
    Canary(encoder, real, mode=CanaryMode.start).start(storage)

    class Lying(ClipEncoder):
        def encode(self, frames: Any, num_clips: int) -> list[npt.NDArray[Any]]:
            return [tokens ^ 1 for tokens in super().encode(frames, num_clips)]

    with pytest.raises(WorkerExpelled, match="this device computes wrongly"):
        Canary(Lying(real), real, mode=CanaryMode.start).start(storage)
