"""What makes two runs write the same rows: the fingerprint, and the numeric environment.

The *fingerprint* covers the configuration: everything that changes a row or its encoding, and not
the list of shards. Another fingerprint in the same OUT is refused. The *numeric environment* covers
the machine: with it equal, the tokens of a clip are bit-equal; with another one they may differ in
the last bits, so it is recorded in every receipt.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ABSENT = "absent"
"""Stands for the value of a missing key, which is not that of a key that is null."""


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """SHA-256 of ``canonical_json``, as hex."""
    # paths that are not UTF-8 hold lone surrogates
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay values.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    if isinstance(value, Mapping) and value:
        flat: dict[str, Any] = {}
        for key in sorted(value):
            flat.update(flatten(value[key], f"{prefix}{key}."))
        return flat
    return {prefix.rstrip("."): value}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values (``ABSENT`` where a key is missing)."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    }


def cpu_model() -> tuple[str, str]:
    """Model name of the CPU and the widest vector instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), "unknown"
    info: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        info.setdefault(name.strip(), value.strip())
    flags = set(info.get("flags", "").split())
    widest = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return info.get("model name", platform.machine()), widest[0] if widest else "baseline"
