"""Prompts to sample: the two lists of the DreamBooth evaluation as data, and lists of one's own.

The paper's 25 live and 25 object prompts (Ruiz et al., arXiv 2208.12242, section 4.1) come in three groups: the subject
in another context, with an accessory, and with another property.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbexp.config.schema import DatasetConfig
from dbexp.config.template import fill, problem
from dbexp.core.errors import ConfigError, Problems

_SHARED_CONTEXTS = (
    "a {token} {class} in the jungle",
    "a {token} {class} in the snow",
    "a {token} {class} on the beach",
    "a {token} {class} on a cobblestone street",
    "a {token} {class} on top of pink fabric",
    "a {token} {class} on top of a wooden floor",
    "a {token} {class} with a city in the background",
    "a {token} {class} with a mountain in the background",
    "a {token} {class} with a blue house in the background",
    "a {token} {class} on top of a purple rug in a forest",
)
_OBJECT_CONTEXTS = (
    "a {token} {class} with a wheat field in the background",
    "a {token} {class} with a tree and autumn leaves in the background",
    "a {token} {class} with the Eiffel Tower in the background",
    "a {token} {class} floating on top of water",
    "a {token} {class} floating in an ocean of milk",
    "a {token} {class} on top of green grass with sunflowers around it",
    "a {token} {class} on top of a mirror",
    "a {token} {class} on top of the sidewalk in a crowded street",
    "a {token} {class} on top of a dirt road",
    "a {token} {class} on top of a white rug",
)
_ACCESSORIES = (
    "a {token} {class} wearing a red hat",
    "a {token} {class} wearing a santa hat",
    "a {token} {class} wearing a rainbow scarf",
    "a {token} {class} wearing a black top hat and a monocle",
    "a {token} {class} in a chef outfit",
    "a {token} {class} in a firefighter outfit",
    "a {token} {class} in a police outfit",
    "a {token} {class} wearing pink glasses",
    "a {token} {class} wearing a yellow shirt",
    "a {token} {class} in a purple wizard outfit",
)
_PROPERTIES = (
    "a red {token} {class}",
    "a purple {token} {class}",
    "a shiny {token} {class}",
    "a wet {token} {class}",
    "a cube shaped {token} {class}",
)

LIVE = (*_SHARED_CONTEXTS, *_ACCESSORIES, *_PROPERTIES)
"""The paper's list for live subjects, in its order."""
OBJECT = (*_SHARED_CONTEXTS, *_OBJECT_CONTEXTS, *_PROPERTIES)
"""The paper's list for objects, in its order."""

GROUPS = {
    **dict.fromkeys((*_SHARED_CONTEXTS, *_OBJECT_CONTEXTS), "recontextualisation"),
    **dict.fromkeys(_ACCESSORIES, "accessory"),
    **dict.fromkeys(_PROPERTIES, "property"),
}
"""Template of the paper -> its group. Every other template is of the group `other`."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, filled in."""

    text: str
    """What the text encoder reads."""
    template: str
    """With {token} and {class}."""
    group: str
    """recontextualisation, accessory, property, or other for prompts that are not the paper's."""


def choose(source: Any, dataset: DatasetConfig) -> tuple[Prompt, ...]:
    """The prompts that `sample.prompts` means for a subject, in order.

    Args:
        source: auto, live or object; the path of a text file with one prompt a line (blank lines and lines that start
            with # are skipped); or a list of prompts.
        dataset: its token and class noun are filled in; `live` decides what auto means.

    Raises:
        ConfigError: with every problem: no such file, no prompt, a prompt twice, braces around anything else than
            token or class, an entry that is no text.
    """
    lists = {"auto": LIVE if dataset.live else OBJECT, "live": LIVE, "object": OBJECT}
    if isinstance(source, str):
        entries = _entries(lists[source]) if source in lists else _lines(source)
    elif isinstance(source, Sequence):
        entries = _entries(source)
    else:
        raise ConfigError(f"sample.prompts={source!r}: must be auto, live, object, a text file, or a list of prompts")
    return _fill_in(entries, dataset)


def _entries(source: Sequence[Any]) -> list[tuple[str, Any]]:
    """(where an entry stands, the entry): messages name the first."""
    return [(f"sample.prompts, entry {number}", entry) for number, entry in enumerate(source, 1)]


def _lines(source: str) -> list[tuple[str, Any]]:
    """The prompts of a text file, with where each stands."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"sample.prompts={source}: there is no such text file; give one, or auto, live, object, or a list"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"sample.prompts={source}: cannot be read as UTF-8 text ({error})") from None
    entries: list[tuple[str, Any]] = [
        (f"{source}, line {number}", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#")
    ]
    if not entries:
        raise ConfigError(f"sample.prompts={source}: the file holds no prompt; write one a line")
    return entries


def _fill_in(entries: list[tuple[str, Any]], dataset: DatasetConfig) -> tuple[Prompt, ...]:
    problems = Problems()
    problems.require(bool(entries), "sample.prompts=[]: must hold at least one prompt")
    prompts: list[Prompt] = []
    first: dict[str, str] = {}
    for where, entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            problems.require(False, f"{where}: {entry!r} must be a text that is not empty")
            continue
        template = entry.strip()
        wrong = problem(template)
        if wrong:
            problems.require(False, f"{where}: {template!r} {wrong}")
            continue
        text = fill(template, dataset)
        problems.require(text not in first, f"{where}: {text!r} stands there twice, first in {first.get(text)}")
        first.setdefault(text, where)
        prompts.append(Prompt(text, template, GROUPS.get(template, "other")))
    problems.raise_if_any()
    return tuple(prompts)
