"""Every command in the docs is run by a test, or documented.toml says why not."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import jobs.evaluation.compose
import jobs.training.compose
from pipeline import compose
from tests import documented
from tests.documented import ROOT, Documented
from tests.pipeline import runs

LISTED = tomllib.loads((ROOT / "tests/documented.toml").read_text())
RUN_BY: dict[str, str] = LISTED["run_by"]
NOT_RUN: dict[str, str] = LISTED["not_run"]
COMMANDS = documented.commands()
HYDRA = ("pipeline.run", "pipeline.plan", "jobs.train_tokenizer", "jobs.evaluate_tokenizer")
BASE = ["+dataset=demo", "+tokenizer=demo"]
"""Stands for what an ellipsis leaves out."""


def start_of(command: Documented) -> str | None:
    text = " ".join(command.words)
    known = [key for key in {**RUN_BY, **NOT_RUN} if f"{text} ".startswith((f"{key} ", f"{key}="))]
    return max(known, key=len, default=None)


def test_every_command_is_run_by_a_test_or_says_why_not() -> None:
    unknown = [f"{each.page}: {each.text}" for each in COMMANDS if start_of(each) is None]
    assert unknown == [], "name tests or reasons in tests/documented.toml"


def test_no_command_is_listed_that_no_page_has() -> None:
    used = {start_of(command) for command in COMMANDS}
    assert (RUN_BY.keys() | NOT_RUN.keys()) - used == set()
    assert RUN_BY.keys() & NOT_RUN.keys() == set()
    assert all(len(reason) > 10 for reason in NOT_RUN.values())


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_a_test_that_is_named_exists(test: str) -> None:
    file, name = test.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def help_of(module: str, *words: str) -> str:
    """What ``python -m MODULE [WORDS] --help`` prints, in this process."""
    said = io.StringIO()
    main = import_module(f"{module}.__main__" if is_package(module) else module).main
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [f"python -m {module}", *words, "--help"])
        with contextlib.suppress(SystemExit):
            main()
    GlobalHydra.instance().clear()
    return said.getvalue()


def is_package(module: str) -> bool:
    spec = find_spec(module)
    assert spec is not None, f"there is no module {module}"
    return spec.submodule_search_locations is not None


MODULES = sorted({each.module for each in COMMANDS if each.module})


@pytest.mark.parametrize("module", MODULES)
def test_every_module_exists_and_explains_itself(module: str) -> None:
    assert f"usage: python -m {module}" in help_of(module)


OPTIONS = sorted(
    {
        (each.module, each.words[3] if each.module == "jobs.benchmark" else "", option)
        for each in COMMANDS
        if each.module
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", each.text)
    }
)


@pytest.mark.parametrize(("module", "name", "option"), OPTIONS)
def test_every_option_is_one_that_the_command_explains(module: str, name: str, option: str) -> None:
    assert option in help_of(module, *([name] if name else [])) or option == "--help"


OVERRIDDEN = sorted({(each.module, each.text) for each in COMMANDS if each.module in HYDRA})


@pytest.mark.parametrize(("module", "text"), OVERRIDDEN)
def test_every_key_and_choice_composes(
    module: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_conf/dataset").mkdir(parents=True)
    (tmp_path / "my_conf/dataset/mine.yaml").write_text("name: mine\nshards: /d/*.tar\n")
    monkeypatch.chdir(tmp_path)
    words = [
        word for word in shlex.split(text) if "=" in word and not word.startswith("PYTHONPATH")
    ]
    if not any(word.startswith("+experiment=") for word in words):
        words = [*(base for base in BASE if base.split("=")[0] not in text), *words]
    primary = {"jobs.train_tokenizer": "train", "jobs.evaluate_tokenizer": "evaluate"}
    for composer in (compose, jobs.training.compose, jobs.evaluation.compose):
        composer.register_schema()
    name = primary.get(module, "run")
    flags = ["--multirun"] if "--multirun" in text else []
    for job in compose.jobs_of([*flags, *words], name, "output.root"):
        overrides = compose.quote_paths([word for word in job if "=" in word])
        folder = "my_conf" if "--config-dir my_conf" in text else None
        made = compose.compose_overrides(overrides, folder, name)
        assert made.dataset.name


def test_readme_looks_at_one_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = [
        block for block in documented.python_blocks(ROOT / "README.md") if "notebook" in block
    ]
    assert len(code.strip().splitlines()) <= 10
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert f"# {printed}:" in code
    for name in ("tokens.png", "strip.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_readme_from_the_command_to_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "python -m pipeline.run +dataset=demo +tokenizer=demo"
    assert command in {each.text for each in COMMANDS if each.page == "README.md"}
    ended = runs.run(*shlex.split(command)[3:], cwd=tmp_path, timeout_seconds=600)
    assert ended.returncode == 0, ended.stderr
    [code] = [
        block for block in documented.python_blocks(ROOT / "README.md") if "TokenDataset" in block
    ]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([4, 5, 16, 16]) torch.int32" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.*\n\t.*-m pipeline\.demo$", makefile, re.MULTILINE)
    ended = runs.run(cwd=tmp_path, module="pipeline.demo", timeout_seconds=600)
    assert ended.returncode == 0, ended.stderr
    assert "sound: " in ended.stdout


@pytest.mark.parametrize(
    "target", sorted({each.words[1] for each in COMMANDS if each.words[0] == "make"})
)
def test_every_target_of_make_is_there(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
LINKS = [
    (page, *match.groups())
    for page in documented.PAGES
    for match in LINK.finditer(page.read_text(encoding="utf-8"))
]


def anchors(page: Path) -> set[str]:
    """What its headings are called in links."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(("page", "place", "anchor"), LINKS)
def test_every_link_leads_somewhere(page: Path, place: str, anchor: str | None) -> None:
    target = page.parent / place if place else page
    assert target.is_file()
    assert anchor is None or anchor in anchors(target)


def test_every_picture_of_docs_is_shown_by_a_page() -> None:
    shown = {(page.parent / place).resolve() for page, place, _ in LINKS if place}
    assert {*(ROOT / "docs").iterdir()} <= shown
