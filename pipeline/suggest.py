"""What was meant where a key, an option or a value is not known: the nearest that is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints

_UNKNOWN_KEY = (
    re.compile(r"Key '(?P<key>\w+)' not in '(?P<owner>\w+)'"),
    re.compile(r"'(?P<owner>\w+)' object has no attribute '(?P<key>\w+)'"),
)
_UNKNOWN_OPTION = re.compile(
    r"'(?P<group>\w+)/(?P<word>[^']+)' Available options in '\w+': (?P<of>.*)"
)
_UNKNOWN_VALUE = re.compile(r"Invalid value '(?P<word>[^']*)', expected one of \[(?P<of>[^]]*)\]")


def known_keys(schema: type) -> dict[str, str]:
    """Dotted keys of a dataclass and its sections, and the names of the classes that hold them."""
    found = {}
    hints = get_type_hints(schema)
    for item in fields(schema):
        found[item.name] = schema.__name__
        kind = hints[item.name]
        if isinstance(kind, type) and is_dataclass(kind):
            found |= {f"{item.name}.{key}": owner for key, owner in known_keys(kind).items()}
    return found


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of the known words, if any is similar.

    Args:
        word: as typed.
        known: what is allowed.
        cutoff: least similarity (``difflib``), 0 to 1.

    >>> nearest("dorp", ["drop", "pad"])
    'drop'
    """
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that is meant: of the same last name elsewhere, else the most similar one.

    >>> nearest_key("resolution", ["sampling.fps", "sampling.resolution"])
    'sampling.resolution'
    """
    last = key.rsplit(".", 1)[-1]
    elsewhere = [name for name in known if name.rsplit(".", 1)[-1] == last]
    if elsewhere:
        return nearest(key, elsewhere) or elsewhere[0]
    if (similar := nearest(key, known)) is not None:
        return similar
    similar_last = nearest(last, {name.rsplit(".", 1)[-1] for name in known})
    return next((name for name in known if name.rsplit(".", 1)[-1] == similar_last), None)


def did_you_mean(
    message: str, overrides: Sequence[str], schema: type, groups: Mapping[str, str]
) -> str:
    """Words to put behind a message of Hydra or OmegaConf; none where nothing is near.

    Args:
        message: on one line.
        overrides: the command line.
        schema: dataclass of the whole configuration.
        groups: of options, by name, as they are typed: with a plus or without.
    """
    meant = _meant(message, overrides, known_keys(schema), groups)
    return f"; did you mean {meant}?" if meant else ""


def _meant(
    message: str, overrides: Sequence[str], owners: dict[str, str], groups: Mapping[str, str]
) -> str | None:
    if option := _UNKNOWN_OPTION.search(message):
        word = nearest(option["word"], option["of"].split())
        return word and f"{groups.get(option['group'], option['group'])}={word}"
    if value := _UNKNOWN_VALUE.search(message):
        return nearest(value["word"], value["of"].split(", "), cutoff=0.7)  # gpu is not cpu
    for pattern in _UNKNOWN_KEY:
        if key := pattern.search(message):
            written = _as_written(key["key"], key["owner"], overrides, owners)
            return written and _meant_key(written, list(owners), groups)
    return None


def _as_written(
    key: str, owner: str, overrides: Sequence[str], owners: dict[str, str]
) -> str | None:
    """The whole key that the message is about; None for one that is not of ours (hydra.KEY)."""
    section = next((name.rpartition(".")[0] for name, of in owners.items() if of == owner), None)
    if section is None:
        return None
    start = f"{section}.{key}".lstrip(".")
    typed = [word.lstrip("+~").split("=", 1)[0] for word in overrides]
    return next((word for word in typed if f"{word}.".startswith(f"{start}.")), start)


def _meant_key(written: str, known: Sequence[str], groups: Mapping[str, str]) -> str | None:
    if "." not in written and (group := nearest(written, groups)) is not None:
        return f"{groups[group]}=NAME"
    sections = {name.rpartition(".")[0] for name in known}
    return nearest_key(written, [name for name in known if name not in sections])
