"""What a training on a CPU asks of the allocator."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt(3)."""
_KEPT_BYTES = (1 << 31) - 1
_PAD_BYTES = 256 << 20


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next step instead of given back to the kernel.

    Activations are large blocks that come and go with every step. glibc maps each anew, and the
    kernel clears its pages: of a step of the demo tokenizer that is an eighth of the CPU time (3.0
    instead of 2.5 s), and on a machine short of memory up to half of it. Call it before large
    tensors are made; the process then stays as large as it ever was.

    Returns:
        Whether the allocator takes it: elsewhere than with glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEPT_BYTES, _M_TOP_PAD: _PAD_BYTES}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
