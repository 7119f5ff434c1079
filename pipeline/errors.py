"""Every error that this project raises on purpose, and what becomes of the work that met it.

    PipelineError
    ├── VideoError            the video is quarantined and counted; its shard goes on
    ├── ShardError            the shard is tried again, later and maybe elsewhere
    │   ├── StorageError          a read or a write that may succeed next time
    │   ├── WorkerLost            the worker died or was taken away
    │   ├── WorkerExpelled        the worker computes wrongly; nothing of it is committed any more
    │   ├── HandedBack            the worker ended early, as it was asked to
    │   └── Abandoned             somebody else has finished the shard
    ├── Interrupted           the run was asked to stop, and did so in order
    └── RunError              the run stops, with one line and a non-zero exit
        ├── ConfigError           the command or a file says something impossible
        ├── FingerprintMismatch   OUT holds the output of another configuration
        ├── StorageRefused        credentials, bucket or backend make a safe commit impossible
        ├── CorruptPart           a committed part is not, or no longer, what was committed
        ├── TooManyBadVideos      a broken decoder must not "finish" a data set
        └── QualityCollapsed      tokens that do not decode to what was encoded

Classes that may cross a process boundary hand positional arguments to ``super().__init__`` and
format in ``__str__``, so that they unpickle as themselves. No message holds credentials.
"""

from __future__ import annotations

from collections.abc import Mapping


class PipelineError(Exception):
    """Root of the tree drawn above."""


class VideoError(PipelineError):
    """One video cannot be tokenised: it is quarantined under ``reason`` and counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class ShardError(PipelineError):
    """This attempt at a shard failed; another attempt may succeed."""

    def __init__(self, shard: str, message: str) -> None:
        super().__init__(shard, message)
        self.shard, self.message = shard, message

    def __str__(self) -> str:
        return f"{self.shard}: {self.message}"


class StorageError(ShardError):
    """Storage did not answer, or answered with less than it holds."""


class WorkerLost(ShardError):
    """The worker that held the shard died, or its machine was taken away."""


class WorkerExpelled(ShardError):
    """The worker's arithmetic disagrees with the run's: it gets no shard any more."""


class HandedBack(ShardError):
    """The worker committed what was done and ended, as it was asked to; somebody else goes on."""


class Abandoned(ShardError):
    """The attempt was called off: the shard is final, by another attempt."""


class Interrupted(PipelineError):
    """The run was asked to stop; the same command continues it."""


class RunError(PipelineError):
    """The run cannot go on; the message is one line for the person who started it."""


class ConfigError(RunError):
    """The command line or a configuration file asks for something impossible."""


class StorageRefused(RunError):
    """The output or input place cannot be used at all (credentials, bucket, no safe commit)."""


class CorruptPart(RunError):
    """Bytes of a committed part are missing or not those that were committed."""


class TooManyBadVideos(RunError):
    """More videos were quarantined than ``limits.max_bad_fraction`` allows."""


class QualityCollapsed(RunError):
    """Reconstructions are not what was encoded: wrong weights, channels or colours."""


class FingerprintMismatch(RunError):
    """OUT was made by another configuration; the differing keys are listed."""

    def __init__(self, root: str, differences: Mapping[str, tuple[object, object]]) -> None:
        super().__init__(root, differences)
        self.root, self.differences = root, dict(differences)

    def __str__(self) -> str:
        lines = [
            f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in self.differences.items()
        ]
        return (
            f"{self.root} holds the output of another configuration; choose another output.root "
            "or restore:\n" + "\n".join(lines)
        )
