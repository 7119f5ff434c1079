"""Clips of an OUT, tokenised again from their source and compared with what is stored.

An ordinary worker does it, configured as ``run.json`` says, into a temporary OUT. A clip is made
again with its whole video; all clips of that video are compared. In the numeric environment of a
clip's receipt its tokens must be equal bit for bit. In another one they may differ as much as the
canary of such an environment may (``canary.INDEX_BOUNDS``, ``canary.LATENT_BOUNDS``).
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import compose, resolve
from pipeline.attempts import Finished
from pipeline.canary import INDEX_BOUNDS, LATENT_BOUNDS, REFERENCE, disagreement
from pipeline.config import DatasetKind, Device, RunConfig
from pipeline.draw import Clips, DrawnVideo, Sources, draw, stored_clips
from pipeline.errors import RunError
from pipeline.fingerprint import differences
from pipeline.inline import OWNER, InlineWorkers
from pipeline.pieces import tar_of
from pipeline.plan import this_machine
from pipeline.quality_gate import QualityRules
from pipeline.receipts import Receipt
from pipeline.records import CanaryMode
from pipeline.run_output import read_weights
from pipeline.segments import ShardTask
from pipeline.shards import tar_shards
from pipeline.storage import Storage
from pipeline.worker_spec import WorkerSpec

OPEN_VIDEOS = 2
"""Videos in hand at once."""
SHOW_SECONDS = 5.0
"""Between two lines of progress."""


@dataclass(slots=True)
class Agreement:
    """How the clips that were made again compare with those that are stored."""

    is_discrete: bool
    """Whether tokens are indices."""
    videos: int = 0
    clips: int = 0
    equal_clips: int = 0
    """Bit for bit."""
    other_environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """In what the numeric environments of some receipts differ from that of here."""
    sum_disagreement: float = 0.0
    max_disagreement: float = 0.0

    def count(self, stored: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
        """Add a clip; its share of indices that differ, or the relative rms error of latents."""
        self.clips += 1
        if np.array_equal(stored, found):
            self.equal_clips += 1
            return 0.0
        share = disagreement(stored, found)
        self.sum_disagreement += share
        self.max_disagreement = max(self.max_disagreement, share)
        return share

    def verdict(self) -> str:
        """One line that says it all."""
        text = (
            f"tokenised again: {self.clips:,} clips of {self.videos:,} videos, "
            f"{self.equal_clips:,} bit-equal"
        )
        if self.clips > self.equal_clips:
            mean, worst = self.sum_disagreement / self.clips, self.max_disagreement
            text += (
                f"; {1 - mean:.3%} of the indices agree, {1 - worst:.3%} in the worst clip"
                if self.is_discrete
                else f"; relative rms error {mean:.2g} on average, {worst:.2g} in the worst clip"
            )
        if self.other_environment:
            text += f"; in another numeric environment: {_changes(self.other_environment)}"
        return text


class Reencoding:
    """Makes a sample of clips again and compares them."""

    def __init__(
        self,
        storage: Storage,
        record: Mapping[str, Any],
        *,
        source_options: Mapping[str, Any],
        limits: Mapping[str, Any],
    ) -> None:
        """Restore the configuration.

        Args:
            storage: OUT.
            record: its ``run.json``.
            source_options: fsspec options for the source, over those in the record.
            limits: over those in the record, which are of the first run; later ones may have had
                others.

        Raises:
            RunError: what is here cannot make the rows of this OUT.
        """
        run = recorded_run(record, source_options, limits)
        self._storage, self._spec = storage, recorded_spec(run, record)
        self._sources = Sources(
            storage=storage,
            rules=self._spec.read_rules,
            options=self._spec.input_options,
            num_buckets=run.dataset.num_buckets if run.dataset.kind is DatasetKind.folder else None,
        )
        self._running: dict[str, DrawnVideo] = {}
        is_discrete = self._spec.encoder.token_format.is_discrete
        bounds = INDEX_BOUNDS if is_discrete else LATENT_BOUNDS
        self._bound = bounds[self._spec.encoder.precision]
        self.agreement = Agreement(is_discrete)

    def problems(self, *, num_clips: int, seed: int, show: Callable[[str], None]) -> Iterator[str]:
        """Everything in which stored clips are not what their source gives, in plain words.

        Args:
            num_clips: drawn.
            seed: of the draw.
            show: takes a line about how far it is.

        Raises:
            PipelineError: nothing can be encoded here.
        """
        drawn = draw(self._storage, num_clips=num_clips, seed=seed)
        num_videos, shown = sum(len(keys) for _, keys in drawn), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="vidtok-verify-") as folder:
            again = self._temporary_out(Path(folder) / "out")
            spec = replace(
                self._spec,
                output_root=again.root,
                output_options={},
                input_options={},
                read_rules=replace(self._spec.read_rules, has_original_keys=True),
            )
            with contextlib.closing(InlineWorkers(spec, open_shards=OPEN_VIDEOS)) as workers:
                for receipt, keys in drawn:
                    for found in self._sources.read(receipt, keys):
                        if isinstance(found, str):
                            yield found
                            continue
                        while len(self._running) == OPEN_VIDEOS:
                            yield from self._collect(workers, again)
                        self._submit(workers, found, Path(folder))
                        if time.monotonic() - shown > SHOW_SECONDS:
                            shown = time.monotonic()
                            show(f"video {self.agreement.videos:,} of {num_videos:,}")
                while self._running:
                    yield from self._collect(workers, again)

    def _temporary_out(self, root: Path) -> Storage:
        """A new OUT, whose worker is held to the canary of the one that is looked at."""
        again = Storage(str(root))
        with contextlib.suppress(FileNotFoundError):
            again.put(REFERENCE, self._storage.read(REFERENCE))
        return again

    def _submit(self, workers: InlineWorkers, video: DrawnVideo, folder: Path) -> None:
        path = folder / f"{self.agreement.videos:06d}.tar"
        path.write_bytes(tar_of([video.sample]))
        self.agreement.videos += 1
        task = ShardTask(shard=tar_shards([str(path)])[0], source=None)
        self._running[task.attempt] = replace(video, sample=replace(video.sample, video=b""))
        workers.submit(OWNER, task)

    def _collect(self, workers: InlineWorkers, again: Storage) -> Iterator[str]:
        for event in workers.events(0.5):
            if not isinstance(event, Finished):
                continue
            if event.error is not None:
                raise event.error
            Path(event.task.shard.url).unlink()
            yield from self._compare(self._running.pop(event.task.attempt), event.receipts, again)

    def _compare(
        self, video: DrawnVideo, receipts: Sequence[Receipt], again: Storage
    ) -> Iterator[str]:
        place = f"{video.receipt.shard}/{video.sample.key}"
        made: Clips = {}
        for receipt in receipts:
            for bad in receipt.quarantined:
                yield (
                    f"{place}: cannot be tokenised with the limits in run.json (--limits raises "
                    f"them): {bad['reason']}: {bad['message']}"
                )
                return
            for clips in stored_clips(again, receipt).values():
                made |= clips
        changes = differences(video.receipt.numerics, receipts[0].numerics)
        self.agreement.other_environment |= changes
        if made.keys() != video.stored.keys():
            yield f"{place}: {len(made)} clips in its source, {len(video.stored)} stored"
        bound, where = 0.0, "the same numeric environment"
        if changes:
            bound, where = (
                self._bound,
                f"another numeric environment, at most {self._bound:.1%} may",
            )
        for fps, index in sorted(made.keys() & video.stored.keys()):
            share = self.agreement.count(video.stored[fps, index], made[fps, index])
            if share > bound:
                yield (
                    f"{place}@{fps:g}fps#{index}: tokens differ by {share:.3%} from those of its "
                    f"source, in {where}"
                )


def recorded_run(
    record: Mapping[str, Any], source_options: Mapping[str, Any], limits: Mapping[str, Any]
) -> RunConfig:
    """The run's configuration, with the device that it had where there is one."""
    config = resolve.without_blots(record["config"])
    run = compose.recorded_run({**config, "limits": {**config.get("limits", {}), **limits}})
    device = Device.cpu if record["device"] == "cpu" else Device.auto
    options = {**run.dataset.storage_options, **source_options}
    return replace(
        run,
        dataset=replace(run.dataset, storage_options=options),
        encoder=replace(run.encoder, device=device),
    )


def recorded_spec(run: RunConfig, record: Mapping[str, Any]) -> WorkerSpec:
    """The worker's, which must make the rows of this OUT.

    Raises:
        RunError: this code or the checkpoint would make others.
    """
    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)  # run.json says it
    weights = read_weights(run)
    material = resolve.identity(run, weights.digest).material
    if changes := differences(record["fingerprint_of"], material):
        raise RunError(f"this code or checkpoint would make other rows: {_changes(changes)}")
    has_gpus, cores = this_machine()
    spec = resolve.worker_spec(
        run, weights, has_gpus=has_gpus, cores=cores, recorded_batch=record["batch_clips"]
    )
    is_off = spec.canary is CanaryMode.off
    return replace(
        spec,
        canary=CanaryMode.off if is_off else CanaryMode.start,
        encoder=replace(spec.encoder, has_decoder=False),
        quality=QualityRules(),  # tokens are compared, not looked at
    )


def _changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changes.items())
