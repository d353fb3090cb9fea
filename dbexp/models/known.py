"""What a checkpoint says of itself, held against what its family knows: nothing else is trained in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

Settings: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Folder of the pipeline -> what its JSON file says."""
Known: TypeAlias = Mapping[str, Mapping[str, tuple[Any, ...]]]
"""The same -> field -> values that a family knows, `POSITIVE` and `WHOLE` among them. What a file leaves out has the
default of its class, but for `NAMED`."""

POSITIVE = "a number above 0"
WHOLE = "a whole number above 0"
NAMED = ("_class_name", "model_type", "addition_embed_type", "guidance_embeds")
"""Fields that have no default that a family would know."""

FILES = {"scheduler": "scheduler_config.json"}
"""Folder -> its JSON file, where that is not config.json."""


def file_of(part: str) -> str:
    """The JSON file in the folder of a part."""
    return FILES.get(part, "config.json")


def unknown(settings: Settings, known: Known) -> list[tuple[str, str]]:
    """(part, what it says that is not known) of a checkpoint.

    Args:
        settings: of the parts whose file could be read.
        known: of the family.
    """
    problems = []
    for part, fields in known.items():
        for field, values in fields.items():
            if part not in settings or (field not in settings[part] and field not in NAMED):
                continue
            value = settings[part].get(field)
            if not any(_is(value, each) for each in values):
                wanted = ", ".join(each if isinstance(each, str) else json.dumps(each) for each in values)
                problems.append((part, f"says {field}={_short(value)}, where dbexp knows {wanted}"))
        if part in settings and settings[part].get("quantization_config"):
            problems.append(
                (
                    part,
                    "says that its weights are quantised (quantization_config); give plain ones, and model.quantize",
                )
            )
    return problems


def _is(value: Any, known: Any) -> bool:
    if known in (POSITIVE, WHOLE):
        kinds = (int,) if known == WHOLE else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < math.inf
    return bool(value == known and isinstance(value, bool) == isinstance(known, bool))


def _short(value: Any, most: int = 80) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}..."
