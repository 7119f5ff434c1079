"""What Hydra says of a mistake, in one line and in words that help."""

from __future__ import annotations

import re

_CHOSEN_TWICE = re.compile(
    r"(\w+) appears more than once in the final defaults list|Multiple values for (\w+)\."
)
_NO_LIST = re.compile(
    r"Error merging override \+*(?P<key>[^=]+)=(?P<value>.*): "
    r"Invalid value assigned: \w+ is not a ListConfig"
)


def one_line(error: BaseException) -> str:
    """The message of a Hydra or OmegaConf error, causes included, on one line."""
    texts: list[str] = []
    link: BaseException | None = error
    while link is not None:
        text = re.split(r"See https://|\nSet the environment|\nConfig search path", str(link))[0]
        lines = [line.strip() for line in text.splitlines()]
        text = " ".join(
            line
            for line in lines
            if line
            and not re.match(
                r"(full_key|object_type|reference_type|To append to your config)", line
            )
        )
        if "is not in struct" in text:  # only of free-form options: those have no other keys
            text += " (a new key needs a plus: +output.storage_options.KEY=VALUE)"
        if twice := _CHOSEN_TWICE.search(text):
            name = twice[1] or twice[2]
            text = f"{name} is chosen twice; to change the first choice, no plus: {name}=NAME"
        if text and not any(text in other for other in texts):
            texts.append(text)
        link = link.__cause__
    line = ": ".join(texts)
    if found := _NO_LIST.match(line):
        key, value = found["key"], found["value"]
        return f"{key}={value}: a list is needed: {key}=[{value}]"
    return line
