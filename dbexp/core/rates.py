"""How much a piece of work took on this machine: noted in the store, so that a sweep can say what it will take."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbexp.core import provenance
from dbexp.core.files import sweep_up, write_atomic
from dbexp.core.hashing import key_of

if TYPE_CHECKING:
    import torch

FILE = "rates.json"
_LATEST = 5
"""Amounts that are kept of work of one kind, of which the median counts: the first one includes loading, say."""
_MOST = 1000
"""Kinds of work that are kept, the latest."""


def device_name(device: torch.device) -> str:
    """What rates depend on of a device: the GPU, or the processor and how many threads compute."""
    import torch  # seconds, which reading rates need not take

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{provenance.device_record(device)['name']}, {torch.get_num_threads()} threads"


class Rates:
    """Those of a store.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / FILE
        self._noted: dict[str, list[float]] | None = None

    def note(self, work: Mapping[str, Any], units: float, amount: float) -> None:
        """Note what some work took; trouble with the file costs nothing but the note.

        Args:
            work: its kind, JSON-like.
            units: how much of it was done, above 0.
            amount: seconds, or bytes, of all of it.
        """
        noted, key = self._read(), key_of(dict(work))
        latest = [*noted.pop(key, []), amount / units][-_LATEST:]
        kinds = dict([*noted.items(), (key, latest)][-_MOST:])
        sweep_up(self._path.parent, self._path.name)
        with suppress(OSError):
            write_atomic(self._path, json.dumps(kinds, indent=1), durable=False)

    def of(self, work: Mapping[str, Any]) -> float | None:
        """The usual amount of a unit of work, as it was noted when this was first asked; None: it was never done
        here."""
        if self._noted is None:
            self._noted = self._read()
        latest = self._noted.get(key_of(dict(work)))
        return statistics.median(latest) if latest else None

    def _read(self) -> dict[str, list[float]]:
        with suppress(OSError, ValueError):
            noted = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(noted, dict):
                return noted
        return {}
