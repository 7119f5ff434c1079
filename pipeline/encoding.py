"""The encoding half of a worker, one for each output: batches, the model, what comes of them.

Clips of the output are added by the flow's collecting thread; threads of its own encode batches
(on a GPU two: one sends its batch while the other computes) and hand tokens to their videos.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from pipeline.batcher import ClipBatcher, GathersClips, Rows
from pipeline.canary import Canary
from pipeline.counters import Counters
from pipeline.encode import Encoder
from pipeline.errors import PipelineError
from pipeline.reconstruction import Reconstructions
from pipeline.records import CanaryMode, Clip, SamplingMode
from pipeline.segments import OpenVideo
from pipeline.streams import StreamBatcher
from pipeline.worker_spec import WorkerSpec


class Encoding:
    """From the clips of one output to its tokens.

    ``changed`` is held by whoever calls `add`, `forget`, `decoded` and `next_batch`.

    Args:
        spec: of the output.
        encoder: its model.
        canary: checks the model's arithmetic.
        changed: notified whenever something happens to any video; guards what is shared.
        stopped: set when the worker ends.
        is_open: whether clips may still come, which makes waiting for them starving.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        encoder: Encoder,
        canary: Canary,
        *,
        changed: threading.Condition,
        stopped: threading.Event,
        is_open: Callable[[], bool],
    ) -> None:
        self._encoder, self._canary, self._canary_mode = encoder, canary, spec.canary
        self._changed, self._stopped, self._is_open = changed, stopped, is_open
        is_whole = spec.plan.mode is SamplingMode.whole
        looks = Reconstructions(spec.quality, encoder)
        self._batcher: GathersClips = (
            StreamBatcher(spec.encoder.batch_clips, spec.plan.time_factor, looks)
            if is_whole
            else ClipBatcher(
                spec.encoder.batch_clips,
                looks,
                # a commit waits for its slowest clip: a quarter leaves time to encode and write it
                max_seconds=spec.commit_rules.max_seconds / 4,
            )
        )
        self._next: queue.Queue[Any] = queue.Queue(maxsize=1)
        """What an encoder thread does next: batches, and wishes for a canary."""
        self.counters = Counters()
        """Of this output; those of decoding are kept by the first output."""
        self.num_threads: int = 1 if is_whole else getattr(encoder, "num_callers", 1)
        """That run `encode`."""

    def add(self, video: OpenVideo, clip: Clip, release: Callable[[], None]) -> None:
        """Take a clip of a video; ``release`` is called when its frames are not needed any more."""
        self._batcher.add(video, clip, release)

    def forget(self, video: OpenVideo) -> None:
        """The video's clips so far are not wanted."""
        video.clips.clear()
        self._batcher.forget(video)

    def decoded(self, video: OpenVideo, num_clips: Mapping[float, int]) -> dict[float, int]:
        """A video gives no more clips; returns how many rows it has per rate."""
        num_rows, rows = self._batcher.decoded(video, num_clips)
        _keep(rows)
        return num_rows

    def next_batch(self, *, is_idle: bool, is_blocked: bool) -> Any:
        """A full batch; one that is not full when nobody can supply another clip for it.

        Args:
            is_idle: nothing is being read or decoded.
            is_blocked: every decoder waits for a clip to be released.
        """
        blocked = is_blocked and self._next.empty()
        waits = self._batcher.waits_for(is_idle=is_idle, is_blocked=blocked)
        return self._batcher.take(partial=not waits)

    def hand_over(self, batch: Any) -> None:
        """Give a batch, or a wish for a canary, to the encoder's threads; waits for room."""
        while not self._stopped.is_set():
            try:
                self._next.put(batch, timeout=0.5)
            except queue.Full:
                continue
            return

    def wish_for_canary(self) -> Future[None] | None:
        """Have the arithmetic checked behind everything encoded so far; None: nobody wants that."""
        if self._canary_mode is not CanaryMode.commit:
            return None
        wish: Future[None] = Future()
        self.hand_over(wish)
        return wish

    def encode(self) -> None:
        """Encode batches as they come and hand each clip's tokens to its video; a thread's loop."""
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                batch = self._next.get(timeout=0.1)
            except queue.Empty:
                batch = None
            if isinstance(batch, Future):
                self._check_arithmetic(batch)
                continue
            waited = time.monotonic() - began
            with self._changed:
                if batch is not None or self._is_open():
                    self.counters.starved_seconds += waited
            if batch is not None:
                self._run(batch)

    def _run(self, batch: Any) -> None:
        began = time.monotonic()
        result = self._batcher.run(batch, self._encoder)
        with self._changed:
            self.counters.encode_seconds += time.monotonic() - began
            self.counters.encoded_clips += len(result)
            self._note_start()
            _keep(self._batcher.encoded(batch, result))
            self._changed.notify_all()

    def _check_arithmetic(self, wish: Future[None]) -> None:
        """Let the canary answer whoever waits for it; a wrong answer ends the worker."""
        try:
            self._canary.check()
        except PipelineError as error:
            wish.set_exception(error)
            raise
        self.counters.canaries += 1
        wish.set_result(None)

    def _note_start(self) -> None:
        if not self.counters.first_encoded_at_seconds:
            now = time.time()
            self.counters.first_encoded_at_seconds = self.counters.last_started_at_seconds = now


def _keep(rows: Rows) -> None:
    for video, clip in rows:
        video.clips[clip.fps, clip.clip_index] = clip
