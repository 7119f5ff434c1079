"""Rules of the tree that no linter knows; imports have their contracts in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "tokenizer", "conf", "jobs", "tests")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".sh", ".sbatch", ""}
MAX_LINES = 400
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(?:work|home|Users|root)/")


def files(*suffixes: str) -> list[Path]:
    return sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and path.is_file() and "__pycache__" not in path.parts
    )


def test_no_python_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in files(".py")}
    assert {str(path): n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_files_are_named_after_what_they_hold() -> None:
    vague = re.compile(r"(^|_)(utils?|common|helpers?|base|misc)(_|$)")
    assert [str(path) for path in files(".py") if vague.search(path.stem)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_package_has_a_readme(folder: str) -> None:
    assert (ROOT / folder / "README.md").is_file()


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    top_level = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in [*top_level, *files(*TEXT_SUFFIXES)]
        if path.suffix in TEXT_SUFFIXES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


MAPPED = {
    "pipeline/README.md": ("pipeline", "pipeline/loading", "pipeline/training"),
    "pipeline/reporting/README.md": ("pipeline/reporting",),
}


@pytest.mark.parametrize("page", MAPPED)
def test_the_map_of_a_folder_names_its_files_and_no_others(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    map_of_files = text.split("| file | room for |")[1].split("\n\n")[0]
    cells = re.findall(r"^\|(.*?)\|", map_of_files, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    there = {path.stem for folder in MAPPED[page] for path in (ROOT / folder).glob("*.py")}
    assert named == there - {"__init__"}
