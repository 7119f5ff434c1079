"""Makes one worker's arithmetic lie: Python runs this at the start of every process of a node.

The product has no hook for it. When ``pipeline.encode`` is imported, the encoder's ``encode`` is
wrapped: the first process in the middle of its work that finds the file ``DRILL_LIAR_FILE`` takes
it away, and from then on every index that it gives has its lowest bit turned over.
"""

import contextlib
import importlib.machinery
import os
import sys
from pathlib import Path
from typing import Any

MODULE = "pipeline.encode"
HONEST_BATCHES = 5
"""A worker is honest for so many: at its start a lie would be found out before it does harm."""


def corrupt(encoder: Any, liar_file: Path) -> None:
    """Wrap ``encode`` of a class of encoders."""
    honest = encoder.encode
    is_liar, batches = False, 0

    def encode(self: Any, frames: Any, num_clips: int) -> Any:
        nonlocal is_liar, batches
        batches += 1
        if not is_liar and batches > HONEST_BATCHES:
            with contextlib.suppress(FileNotFoundError):
                liar_file.rename(liar_file.with_name(f"{liar_file.name}.{os.getpid()}"))
                is_liar = True
        tokens = honest(self, frames, num_clips)
        return [clip ^ 1 for clip in tokens] if is_liar else tokens

    encoder.encode = encode


class _Finder:
    """Finds one module, as Python would, and corrupts it once it has been loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            corrupt(module.ClipEncoder, Path(os.environ["DRILL_LIAR_FILE"]))

        loader: Any = spec.loader
        loader.exec_module = exec_module
        return spec


if "DRILL_LIAR_FILE" in os.environ:
    sys.meta_path.insert(0, _Finder())
