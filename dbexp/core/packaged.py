"""Where files that a config names are on this machine: what ships with dbexp, or a path of the user's."""

from __future__ import annotations

from pathlib import Path

PREFIX = "package:"
"""`package:storybook/weights` is the folder dbexp/storybook/weights, wherever dbexp is installed: the same words in a
config, and in its hash, on every machine."""


def locate(path: str) -> Path:
    """The place that `path` names; whether something is there is for the caller to say."""
    if path.startswith(PREFIX):
        return Path(__file__).parents[1] / path.removeprefix(PREFIX)
    return Path(path).expanduser()
