"""What holds for every test: seeded generators, two torch threads, GPU tests only with a GPU."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _two_torch_threads() -> None:
    """Results depend on the number of threads; tests must not depend on the machine."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """Where the tests run in the background, SIGINT is ignored, and by all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded_and_put_back() -> Iterator[None]:
    """What a test draws is the same in every run; what it sets up, the next one does not see."""
    python, numpy_, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    random.setstate(python)
    np.random.set_state(numpy_)
    torch.set_rng_state(torch_)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1, but torch sees no CUDA device")
        pytest.skip("needs a CUDA device")
