"""Use of a codebook over a window of batches, counted by hand."""

from __future__ import annotations

import pytest
import torch

from tokenizer.training.codebook import CodebookUse


def test_use_and_perplexity_are_those_of_the_latest_batches() -> None:
    use = CodebookUse(8, window_batches=2)
    use.update(torch.full((4, 1, 2), 7))
    use.update(torch.tensor([0, 1]))
    use.update(torch.tensor([2, 3]))
    assert use.used_fraction == 4 / 8
    assert use.perplexity == pytest.approx(4)


def test_a_code_that_comes_more_often_counts_more() -> None:
    use = CodebookUse(4)
    use.update(torch.tensor([0, 0, 0, 1]))
    assert use.perplexity == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_a_window_goes_on_after_loading() -> None:
    first, second = (CodebookUse(8, window_batches=2) for _ in range(2))
    first.update(torch.tensor([7]))
    first.update(torch.tensor([1]))
    second.update(torch.tensor([5, 6]))
    second.load_state_dict(first.state_dict())
    for use in (first, second):
        use.update(torch.tensor([2]))
    assert second.used_fraction == first.used_fraction == 2 / 8
