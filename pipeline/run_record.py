"""``OUT/run.json``: what an OUT is made with; written once, compared by every later command."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping
from typing import Any

from pipeline.errors import FingerprintMismatch, RunError
from pipeline.fingerprint import differences, digest_of
from pipeline.schema import FORMAT_VERSION
from pipeline.storage import Storage

_PACKAGES = (
    "torch",
    "av",
    "ray",
    "webdataset",
    "pyarrow",
    "fsspec",
    "s3fs",
    "numpy",
)


def read_run_record(storage: Storage) -> dict[str, Any] | None:
    """The record, or None in a new OUT.

    Raises:
        RunError: it is broken, or of another format version.
    """
    try:
        record = json.loads(storage.read("run.json"))
        version = record["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version!r}, this code reads {FORMAT_VERSION}")
        if digest_of(record["fingerprint_of"]) != record["fingerprint"]:
            raise ValueError("its fingerprint does not match its content")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{storage}/run.json cannot be trusted: {error}") from error
    return dict(record)


def has_images(record: Mapping[str, Any]) -> bool:
    """Whether images are among what an OUT is made of."""
    return bool(record["fingerprint_of"].get("dataset", {}).get("image_extensions"))


def check_fingerprint(storage: Storage, material: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of an OUT that is of this configuration; None in a new one.

    Raises:
        FingerprintMismatch: it is of another configuration.
    """
    record = read_run_record(storage)
    if record is not None and record["fingerprint"] != digest_of(material):
        raise FingerprintMismatch(str(storage), differences(record["fingerprint_of"], material))
    return record


def write_run_record(
    storage: Storage,
    *,
    material: Mapping[str, Any],
    config: Mapping[str, Any],
    random_weights: bool,
    batch_clips: int,
    device: str,
    probe: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:
    """Create the record; whoever was faster must be of the same configuration.

    Args:
        storage: OUT.
        material: what the fingerprint is made of.
        config: resolved, credentials blotted out.
        random_weights: tokens mean nothing.
        batch_clips: B, kept by later runs.
        device: cpu or cuda.
        probe: what B was chosen by, where it was measured.

    Returns:
        The record that holds: this, or that of whoever was faster.

    Raises:
        FingerprintMismatch: another configuration was faster.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "fingerprint": digest_of(material),
        "fingerprint_of": dict(material),
        "config": dict(config),
        "random_weights": random_weights,
        "batch_clips": batch_clips,
        "probe": None if probe is None else dict(probe),
        "device": device,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "created_seconds": round(time.time(), 3),
    }
    if storage.put_if_absent("run.json", json.dumps(record, indent=1).encode()):
        return record
    return check_fingerprint(storage, material) or record
