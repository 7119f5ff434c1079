"""``RUN/run.json``: what a RUN trains; a command that wants something else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.training.checkpoints import latest_checkpoint, write_atomically
from pipeline.errors import RunError
from pipeline.fingerprint import ABSENT, differences


def check_record(run: Path, material: Mapping[str, Any]) -> None:
    """Nothing, where the RUN is new or trains the same.

    Args:
        run: the folder.
        material: all that decides what a step computes, by dotted section; steps may grow.

    Raises:
        RunError: the record is of another training, or no record.
    """
    path = run / "run.json"
    if not path.exists():
        if (run / "checkpoints").exists():
            raise RunError(f"{run} has checkpoints, but no run.json: choose another train.run")
        return
    try:
        before = dict(json.loads(path.read_text())["material"])
        steps = int(before["train"]["steps"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    wanted = json.loads(json.dumps(material))
    if wanted["train"]["steps"] >= steps:
        before["train"]["steps"] = wanted["train"]["steps"]
    differing = differences(before, wanted)
    if differing:
        listed = "; ".join(
            f"{key} was {_text(old)}, now {_text(new)}" for key, (old, new) in differing.items()
        )
        unused = f"; it has no checkpoint yet: remove {run} to begin anew"
        raise RunError(
            f"{run} trains another configuration: {listed} "
            "(use the same, where only train.steps may grow, or another train.run"
            f"{'' if latest_checkpoint(run) else unused})"
        )


def write_record(run: Path, material: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Say what this RUN trains; ``extra`` is for people and decides nothing.

    A RUN that goes on needs no start any more: the one that is there stays.
    """
    path = run / "run.json"
    record = {"material": material, **extra}
    if path.exists() and record.get("start") is None:
        record["start"] = json.loads(path.read_text()).get("start")
    text = json.dumps(record, indent=1)
    write_atomically(path, lambda unfinished: unfinished.write_text(text))


def _text(value: Any) -> str:
    return value if value == ABSENT else json.dumps(value)
