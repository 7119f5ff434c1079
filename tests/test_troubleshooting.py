"""Each message that TROUBLESHOOTING.md quotes is one that the code prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from pipeline.config_docs import schemas_here
from pipeline.suggest import known_keys
from tests.documented import ROOT

PAGE = (ROOT / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
ROWS = [
    line.split(" | ")
    for line in PAGE.splitlines()
    if line.startswith("| ") and line != "| you see | because | do |"
]
MESSAGES = sorted(
    {
        message
        for seen, *_ in ROWS
        for message in re.findall(r"`([^`]+)`", seen)
        if " " in message.strip("`")
    }
)
HOLE = "\0"


def templates() -> Iterator[str]:
    """Every string of the packages, with a hole for each value that is put in."""
    for folder in ("pipeline", "tokenizer", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else HOLE
                        for part in node.values
                    )


ALL = "\1".join(templates())
"""One after the other: none holds the character between them."""


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_stands_in_the_code(message: str) -> None:
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
    assert re.search("[^\1]*?".join(pieces), ALL)


def test_there_are_messages_to_compare() -> None:
    assert len(MESSAGES) > 40
    assert "a sentence that nothing here says" not in ALL


def test_every_row_says_what_to_do() -> None:
    for row in ROWS:
        assert len(row) == 3, row
        assert all(len(cell.strip(" |")) > 2 for cell in row), row


def test_keys_that_are_named_exist() -> None:
    known = known_keys(next(iter(schemas_here().values())))
    sections = {name.split(".")[0] for name in known if "." in name}
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)[=`]", PAGE))
    assert {key for key in named if key.split(".")[0] in sections} - set(known) == set()
