"""``python -m jobs.config_docs``: every key of a training and of an evaluation, likewise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.evaluation.config import EvaluationConfig
from jobs.training.config import TrainConfig
from pipeline import config_docs
from pipeline.command_line import carry_out

FILE = Path(__file__).parent / "CONFIG.md"
SCHEMAS: dict[str, type] = {
    "python -m jobs.train_tokenizer": TrainConfig,
    "python -m jobs.evaluate_tokenizer": EvaluationConfig,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return config_docs.command("jobs.config_docs", SCHEMAS, FILE, arguments)


if __name__ == "__main__":
    carry_out(main)
