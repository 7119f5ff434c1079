"""What all commands with options of their own share: a mistake is one line, with what was meant."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pipeline.suggest import nearest

MISTAKE = 2
"""Exit status of a command line that cannot be carried out."""

_CHOICE = re.compile(r"invalid choice: '(?P<word>[^']*)' \(choose from (?P<of>.*)\)")


class CommandLine(argparse.ArgumentParser):
    """A parser that says in one line, not in a page, what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Ends with status 2 and ``error: ...``: the nearest option or choice, else ``--help``."""
        meant = self._meant(message)
        self.exit(
            MISTAKE, f"error: {message}; {f'did you mean {meant}?' if meant else 'see --help'}\n"
        )

    def _meant(self, message: str) -> str | None:
        if found := _CHOICE.search(message):
            return nearest(found["word"], re.findall(r"[^',\s]+", found["of"]))
        if not message.startswith("unrecognized arguments: "):
            return None
        known = {
            name
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for name in action.option_strings
        }
        typed = (word.split("=", 1)[0] for word in message.split() if word.startswith("--"))
        return next((name for word in typed if (name := nearest(word, known))), None)


def carry_out(main: Callable[[], int | None], *, interrupted: str = "interrupted") -> NoReturn:
    """End the process with the status of a command; Ctrl-C is one line and status 1.

    Args:
        main: reads ``sys.argv``; None is status 0.
        interrupted: the line, where there is more to say.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(interrupted)


def finite(text: str) -> float:
    """A number.

    Raises:
        argparse.ArgumentTypeError: none, or an infinite one.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a number is needed, got {text!r}")
    return value


def not_negative(text: str) -> float:
    """A number from 0 on.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if (value := finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def positive(text: str) -> float:
    """A number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if (value := finite(text)) <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def whole(text: str) -> int:
    """A whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if (value := not_negative(text)) != int(value):
        raise argparse.ArgumentTypeError(f"a whole number is needed, got {text}")
    return int(value)


def count(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    positive(text)
    return whole(text)


def size(text: str) -> tuple[int, int]:
    """``HxW`` as height and width in pixels; one number is a square.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    height, _, width = text.partition("x")
    try:
        return count(height), count(width or height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"HxW in pixels is needed, got {text!r}") from None


def json_object(text: str) -> dict[str, Any]:
    """Options as JSON, such as ``{"anon": true}`` for fsspec.

    Raises:
        argparse.ArgumentTypeError: no JSON, or no object; what was given may hold a secret, and
            is not repeated.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'a JSON object is needed, like {{"KEY": VALUE}}: {error}'
        ) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f'a JSON object is needed, like {{"KEY": VALUE}}; got a {type(value).__name__}'
        )
    return value


def file_there(text: str) -> Path:
    """A file to be read.

    Raises:
        argparse.ArgumentTypeError: it is not there.
    """
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return path


def new_file(text: str) -> Path:
    """A file to be written, known to have a folder before hours of work for it begin.

    Raises:
        argparse.ArgumentTypeError: there is no such folder, or it is one itself.
    """
    path = Path(text)
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:  # a name that is too long
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    if is_folder:
        raise argparse.ArgumentTypeError(f"{text} is a folder; give a file in it")
    if not has_folder:
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    return path
