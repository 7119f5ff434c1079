"""Which clips ``verify --deep`` draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.draw import draw
from pipeline.verify import main
from tests.pipeline.fakes import make_out


def test_the_draw_is_of_the_smallest_hashes_and_another_seed_draws_others(tmp_path: Path) -> None:
    storage = make_out(tmp_path, shards=4, videos=8)

    def drawn(num_clips: int, seed: int = 0) -> set[tuple[str, str]]:
        found = draw(storage, num_clips=num_clips, seed=seed)
        return {(receipt.name, key) for receipt, keys in found for key in keys}

    assert drawn(5) == drawn(5)
    assert [len(drawn(number)) for number in (1, 5, 32, 99)] == [1, 5, 32, 32]
    assert drawn(5) < drawn(6)
    assert drawn(5) != drawn(5, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("0", "must be above 0"), ("-1", "must be above 0"), ("many", "a number is needed")],
)
def test_a_sample_is_a_whole_number(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["out", "--deep", "--sample", text])
    said = capsys.readouterr().err
    assert f"--sample: {message}, got" in said
    assert len(said.splitlines()) == 1
