"""OUTs named by keys and values, one for each job of a ``--multirun``. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence


def own_places(
    places: Sequence[str], jobs: Sequence[Sequence[str]], swept: Sequence[str]
) -> list[str]:
    """The places, each with a further folder where one is named twice.

    Args:
        places: where the jobs would write.
        jobs: their overrides.
        swept: keys that differ between jobs, those of groups with their plus.

    >>> own_places(["out", "out"], [["a.fps=[3]"], ["a.fps=[3,8]"]], ["a.fps"])
    ['out/fps=3', 'out/fps=3+8']
    """
    fewest = [key for key in swept if "." in key]  # groups have a name, which most places hold
    found = list(places)
    for keys in (fewest, swept):
        if len(set(found)) == len(found):
            break
        found = [f"{place}/{_named(job, keys)}" for place, job in zip(places, jobs, strict=True)]
    return found


def _named(job: Sequence[str], keys: Sequence[str]) -> str:
    """``fps=3+8,tail=pad``: what a job has of the keys, in letters that suit any storage."""
    values = dict(override.split("=", 1) for override in job if "=" in override)
    return ",".join(place_part(key.lstrip("+"), values[key]) for key in keys)


def place_part(key: str, value: object) -> str:
    """A key and its value in letters that suit any storage.

    >>> place_part("sampling.fps", [3, 8])
    'fps=3+8'
    """
    text = re.sub(r"[^A-Za-z0-9._-]+", "+", str(value)).strip("+")
    return f"{key.rsplit('.', 1)[-1]}={text}"
