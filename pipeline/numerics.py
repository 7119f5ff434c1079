"""``OUT/numerics.json``: the numeric environment of the first worker that wrote to an OUT."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from pipeline.errors import RunError
from pipeline.fingerprint import differences
from pipeline.storage import Storage

logger = logging.getLogger(__name__)


def check_numerics(storage: Storage, numerics: Mapping[str, Any], *, strict: bool) -> None:
    """Compare with the environment of the first worker that ever wrote to this OUT.

    Raises:
        RunError: they differ, and ``numerics=strict``; or what is there is no environment.
    """
    name = "numerics.json"
    if storage.put_if_absent(name, json.dumps(dict(numerics), indent=1).encode()):
        return
    differing = differences(_recorded(storage, name), numerics)
    if not differing:
        return
    changes = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in differing.items())
    text = f"{storage} holds tokens of another numeric environment: {changes}"
    if strict:
        raise RunError(f"{text}; refused by numerics=strict")
    logger.warning("%s; tokens may differ in the last bits", text)


def _recorded(storage: Storage, name: str) -> dict[str, Any]:
    try:
        recorded = json.loads(storage.read(name))
        if not isinstance(recorded, dict):
            raise ValueError(f"it must be an object, got {type(recorded).__name__}")
    except (ValueError, RecursionError) as error:
        raise RunError(f"{storage.path(name)} cannot be trusted: {error}") from error
    return recorded
