"""Texts of prompts in which {token} and {class} stand for the subject's."""

from __future__ import annotations

import string

from dbexp.config.schema import DatasetConfig

_FIELDS = ("token", "class")


def fill(template: str, dataset: DatasetConfig) -> str:
    """Fill {token} and {class} of a prompt in which `problem` sees nothing wrong; doubled braces become single ones."""
    return template.format(**{"token": dataset.token, "class": dataset.class_noun})


def problem(template: str) -> str | None:
    """What is wrong with the braces of a prompt, to be put after it in a message; None: nothing."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"has a brace too many or too few ({error}); a brace of the text itself is doubled, {{{{ or }}}}"
    for _, name, spec, conversion in parts:
        if name is not None and (name not in _FIELDS or spec or conversion):
            written = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            return f"has {{{written}}}: only {{token}} and {{class}} may stand in braces"
    return None


def names(template: str) -> set[str]:
    """Which of token and class a prompt holds, if nothing is wrong with its braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}
