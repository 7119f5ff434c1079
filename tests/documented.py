"""What the docs tell people to type, and the Python that they show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")]
    if path.relative_to(ROOT).parts[0] in ("pipeline", "tokenizer", "conf", "jobs", "tests")
    or path.parent == ROOT
)
"""Every Markdown file of the tree."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(
    r"^(?:\$ )?((?:[A-Z_]+=\S+ )*(?:python -m|make|torchrun|pip|ray|sbatch|kubectl|docker|sky) .*)"
)


@dataclass(frozen=True, slots=True)
class Documented:
    """One command of one page."""

    page: str
    """Path from the root."""
    text: str
    """On one line, without prompt and comment."""

    @property
    def words(self) -> list[str]:
        """Without the environment."""
        return re.sub(r"^(?:[A-Z_]+=\S+ )*", "", self.text).split()

    @property
    def module(self) -> str | None:
        """Of ``python -m MODULE``."""
        return self.words[2] if self.words[:2] == ["python", "-m"] else None


def commands() -> list[Documented]:
    """All commands, each page's in order; inline ones too."""
    found = []
    for page in PAGES:
        text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
        for language, block in _FENCE.findall(text):
            if language not in ("", "bash", "sh", "console"):
                continue
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if match := _COMMAND.match(line.strip()):
                    found.append(Documented(name, re.sub(r"\s+#.*", "", match[1]).strip()))
        for inline in _INLINE.findall(_FENCE.sub("", text)):
            if match := _COMMAND.match(inline):
                found.append(Documented(name, match[1].strip()))
    return found


def python_blocks(page: Path) -> list[str]:
    """Python that a page shows."""
    return [
        block
        for language, block in _FENCE.findall(page.read_text(encoding="utf-8"))
        if language == "python"
    ]
