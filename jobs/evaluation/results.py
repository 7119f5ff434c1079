"""The folder of an evaluation: what is finished there, and what it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.records import ShardJudged
from pipeline.errors import FingerprintMismatch, RunError
from pipeline.fingerprint import differences
from pipeline.reader import source_of
from pipeline.shards import Shard
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class Results:
    """``settings.json``, ``shards/NAME.npz``, and at the end ``evaluation.json``, ``pictures/``."""

    storage: Storage

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Take the folder for these settings, or see that it has them.

        Raises:
            FingerprintMismatch: it holds an evaluation with other settings.
            RunError: its ``settings.json`` is damaged.
        """
        text = json.dumps(settings, indent=1)
        if self.storage.put_if_absent("settings.json", text.encode()):
            return
        try:
            there = json.loads(self.storage.read("settings.json"))
        except ValueError as error:
            raise RunError(f"{self.storage}/settings.json is damaged: {error}") from error
        if changed := differences(there, json.loads(text)):
            raise FingerprintMismatch(str(self.storage), changed)

    def finished(
        self, shards: Sequence[Shard], options: Mapping[str, Any]
    ) -> dict[str, ShardJudged]:
        """Results by the shard's name, of shards that have not changed since.

        Raises:
            RunError: a result is damaged.
            StorageError: storage does not answer, or a shard is not there.
        """
        there = self.storage.entries("shards")
        found = {}
        for shard in shards:
            name = _file(shard.name)
            if name in there:
                content = self.storage.read(f"shards/{name}")
                result = ShardJudged.from_bytes(content, f"{self.storage}/shards/{name}")
                if result.version == source_of(shard, options).version:
                    found[shard.name] = result
        return found

    def add(self, result: ShardJudged) -> None:
        """Keep the result of a shard; there as a whole or not at all."""
        self.storage.put(f"shards/{_file(result.name)}", result.to_bytes())

    def write_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Replace the pictures by these."""
        for name in self.storage.entries("pictures"):
            if name not in pictures:
                self.storage.delete(f"pictures/{name}")
        for name, png in pictures.items():
            self.storage.put(f"pictures/{name}", png)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write ``evaluation.json``."""
        text = json.dumps(record, indent=1, ensure_ascii=False)
        self.storage.put("evaluation.json", text.encode("utf-8", "surrogateescape"))


def _file(shard: str) -> str:
    return f"{shard}.npz"
