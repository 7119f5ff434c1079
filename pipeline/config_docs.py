"""``python -m pipeline.config_docs``: every key of a run with type, default, unit and meaning.

Read from the dataclasses themselves and the lines below their fields, so that it cannot be out of
date; ``--write`` renews ``pipeline/CONFIG.md``, and a test compares the two.
"""

from __future__ import annotations

import ast
import enum
import inspect
import itertools
import re
import sys
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from pipeline.command_line import CommandLine, carry_out
from pipeline.suggest import nearest_key

HERE = Path(__file__).parent

UNITS = {
    "frames/s": "fps",
    "s": "seconds",
    "min": "minutes",
    "bytes": "bytes",
    "pixels": "pixels resolution buckets",
    "frames": "frames",
    "dB": "psnr drop",
    "clips": "clips batch window clips_per_video max_clips_per_video",
    "rows": "rows",
    "steps": "steps start warmup_steps",
    "videos": "videos",
    "streams": "streams",
    "channels": "ch z_channels",
    "layers": "num_res_blocks",
    "threads": "threads",
    "cores": "cpus_per_worker",
    "GPUs": "gpus_per_worker",
    "processes": "decoders",
    "workers": "workers",
    "ranks": "rank ranks",
    "shards": "shards num_buckets",
    "attempts": "attempts",
    "failures": "failures",
    "pictures": "pictures samples",
    "checkpoints": "keep",
    "parts": "accumulate",
    "levels": "levels ds us",
    "grey levels": "threshold",
    "1": "seed rate beta2 norm decay weight zoom variance factor gamma dims fraction ch_mult",
}
"""Units, and names that have them: the last words of a key, the longest match first."""

_BY_NAME = {name: unit for unit, names in UNITS.items() for name in names.split()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a configuration."""

    name: str
    """With the sections that it lies in: ``sampling.fps``."""
    kind: str
    """``int or null``, ``list of float``, ``drop | pad``."""
    default: str
    """As it is typed; ``must be given`` without one."""
    unit: str
    """Of numbers; ``1`` for those without dimension, empty for what is no number."""
    meaning: str
    """The line below the field, as one paragraph."""

    @property
    def section(self) -> str:
        """Name without its last word."""
        return self.name.rpartition(".")[0]


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Keys of a dataclass and of its sections, in their order.

    Args:
        schema: plain dataclass, as Hydra fills it.
        prefix: put before names.

    Raises:
        ValueError: a number without a unit in ``UNITS``.
    """
    hints, said = get_type_hints(schema), meanings(schema)
    for item in fields(schema):
        hint, name = hints[item.name], f"{prefix}{item.name}"
        if isinstance(hint, type) and is_dataclass(hint):
            yield from keys_of(hint, f"{name}.")
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        yield Key(
            name=name,
            kind=kind_of(hint),
            default=shown(default),
            unit=unit_of(name) if int in numbers(hint) or float in numbers(hint) else "",
            meaning=said.get(item.name, ""),
        )


def meanings(schema: type) -> dict[str, str]:
    """The text below each field of a class and of those that it extends, by name."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if not is_dataclass(kind):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


def numbers(hint: Any) -> set[Any]:
    """Plain types that a hint is made of: ``list[float] | None`` is of floats and None."""
    inner = get_args(hint)
    return set().union(*(numbers(part) for part in inner)) if inner else {hint}


def kind_of(hint: Any) -> str:
    """A type in words.

    >>> kind_of(list[float]), kind_of(int | None)
    ('list of float', 'int or null')
    """
    if get_origin(hint) in (Union, types.UnionType):
        parts = [kind_of(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join([*parts, "null"] if type(None) in get_args(hint) else parts)
    if get_origin(hint) is list:
        return f"list of {kind_of(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(member.name for member in hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return f"mapping of {', '.join(item.name for item in fields(hint))}"
    return {str: "text", bool: "true | false", Any: "any"}.get(hint) or str(hint.__name__)


def shown(default: Any) -> str:
    """A default as it is typed on the command line.

    >>> shown(None), shown(True), shown([3.0, 8.0]), shown("???")
    ('null', 'true', '[3.0,8.0]', 'must be given')
    """
    if default is MISSING or default == "???":
        return "must be given"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, enum.Enum):
        return default.name
    if isinstance(default, list):
        return f"[{','.join(shown(part) for part in default)}]"
    return str(default)


def unit_of(name: str) -> str:
    """The unit of a number, by the last words of its key.

    >>> unit_of("commit.max_seconds"), unit_of("limits.video_bytes")
    ('s', 'bytes')

    Raises:
        ValueError: no name in ``UNITS`` fits.
    """
    words = name.rpartition(".")[2].split("_")
    for start in range(len(words)):
        if (unit := _BY_NAME.get("_".join(words[start:]))) is not None:
            return unit
    raise ValueError(f"{name} is a number of which UNITS in pipeline/config_docs.py knows no unit")


def text_of(keys: Sequence[Key]) -> str:
    """Keys for a terminal."""
    lines = []
    for key in keys:
        unit = f", {key.unit}" if key.unit not in ("", "1") else ""
        lines.append(f"{key.name}={key.default}   ({key.kind}{unit})")
        lines += textwrap.wrap(key.meaning, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def markdown_of(heading: str, keys: Sequence[Key]) -> str:
    """A heading and a table for each section."""
    parts = [f"## `{heading}`\n"]
    sections: dict[str, list[Key]] = {}
    for key in keys:
        sections.setdefault(key.section, []).append(key)
    for section, of_it in sections.items():
        parts.append(f"### {section or 'whole run'}\n\n| key | type | default | unit | meaning |")
        parts.append("|---|---|---|---|---|")
        for key in of_it:
            cells = (f"`{key.name}`", key.kind, f"`{key.default}`", key.unit, key.meaning)
            parts.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return re.sub(r"``(.*?)``", r"`\1`", text).replace("|", "\\|")


def page(module: str, schemas: dict[str, type]) -> str:
    """The whole page.

    Args:
        module: that prints it.
        schemas: dataclass of the configuration of each command.
    """
    head = (
        f"<!-- Written by python -m {module} --write; the text is that of the dataclasses. -->\n\n"
        "# Every key\n\n"
        "Typed as `key=value`; a key of a free mapping as `+key.NAME=VALUE`. Unit `1`: a plain "
        "number. `null`: nothing is\nset, and the meaning says what then happens.\n"
    )
    tables = [markdown_of(name, list(keys_of(kind))) for name, kind in schemas.items()]
    return "\n".join([head, *tables]).rstrip("\n") + "\n"


def command(
    module: str, schemas: dict[str, type], file: Path, arguments: Sequence[str] | None
) -> int:
    """The command, for this package's keys and for those of others.

    Args:
        module: that was started.
        schemas: dataclass of the configuration of each command.
        file: that ``--write`` writes.
        arguments: None: those of the process.
    """
    parser = CommandLine(
        prog=f"python -m {module}",
        description=f"Print every key of {' and '.join(schemas)}: default, type, unit, meaning.",
    )
    parser.add_argument("start", nargs="*", help="only keys that start so: sampling output.root")
    parser.add_argument("--write", action="store_true", help=f"write {file.name} instead")
    options = parser.parse_args(arguments)
    if options.write:
        file.write_text(page(module, schemas), encoding="utf-8")
        print(f"wrote {file}")
        return 0
    starts = tuple(options.start) or ("",)
    found = {
        name: [key for key in keys_of(kind) if key.name.startswith(starts)]
        for name, kind in schemas.items()
    }
    if not any(found.values()):
        known = [key.name for kind in schemas.values() for key in keys_of(kind)]
        meant = nearest_key(starts[0], known)
        hint = f"; did you mean {meant}?" if meant else ""
        print(f"error: no key starts with {' or '.join(starts)}{hint}", file=sys.stderr)
        return 1
    for name, keys in found.items():
        if keys:
            print(f"# {name}\n{text_of(keys)}\n" if len(schemas) > 1 else text_of(keys))
    return 0


def schemas_here() -> dict[str, type]:
    """Commands of this package that read such keys."""
    from pipeline.config import RunConfig  # torch comes along: not for --help

    return {"python -m pipeline.run": RunConfig}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command("pipeline.config_docs", schemas_here(), HERE / "CONFIG.md", arguments)


if __name__ == "__main__":
    carry_out(main)
