"""What `dbexp-compare` can be asked for, the rules that no type can express, and its switches of former days."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbexp.config import fields
from dbexp.config.fields import PATH, Text, bounded, text
from dbexp.core.errors import Problems
from dbexp.core.folders import obstacle

USAGE = """\
dbexp-compare: one or more sweeps side by side, from their folders; and what the store holds

  dbexp-compare multirun/DATE/TIME                         rebuild its table, its CSV files and its page
  dbexp-compare A B output=both                            several sweeps in one comparison
  dbexp-compare multirun/DATE/TIME objective=dino open=true
  dbexp-compare multirun/DATE/TIME sync=true               upload to Weights & Biases what it lacks
  dbexp-compare store=default                              what was computed, how large, when it was used last
  dbexp-compare store=default prune_to_size=20 dry_run=true

Written are results.csv, pictures.csv, effects.csv, recommendation.csv, costs.csv, results.md (to paste) and report.html
(one page, works offline).
"""
DEFAULT = "default"
"""In place of a store's folder: the one in the user's cache directory."""


@dataclass
class CompareConfig:
    """One call of `dbexp-compare`."""

    sweep: list[str] = text([], PATH, commas=True)
    """Folder of a sweep, or of one run; several are compared with each other. The name may be left out, as above."""
    objective: str | None = text(None, Text(most=2000))
    """What ranks: recommend, dino, dino+clip_t, '0.5*dino+0.5*clip_t'; null: the runs' own."""
    output: str | None = text(None, PATH)
    """Where the files go; null: into the sweep's folder, and of several sweeps to `comparison`."""
    open: bool = False
    """Show the page in a browser."""
    sync: bool = False
    """Upload to Weights & Biases what it lacks of these sweeps."""
    store: str | None = text(None, PATH)
    """List what this store of computed results holds: its folder, or `default` for the one in the user's cache directory."""
    prune_older_than: float | None = bounded(None, at_least=0, most=1e9)
    """Days: delete from the store what was not used for so long."""
    prune_to_size: float | None = bounded(None, at_least=0, most=1e9)
    """GB: delete from the store what was used longest ago until it fits."""
    verify: bool = False
    """Read all of the store, and say what is damaged."""
    dry_run: bool = False
    """Only show what would be deleted."""

    @property
    def prunes(self) -> bool:
        """Whether something is to be deleted."""
        return self.prune_older_than is not None or self.prune_to_size is not None

    @property
    def sweeps(self) -> list[Path]:
        """The folders to compare."""
        return [Path(folder) for folder in self.sweep]


def check(settings: CompareConfig) -> None:
    """Find what is wrong with the settings and can be known without reading a file.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems()
    problems.require(
        bool(settings.sweep) or settings.store is not None,
        f"which sweep? give its folder, such as multirun/DATE/TIME; or store={DEFAULT} to list what was computed",
    )
    of_store = {"prune_older_than": settings.prune_older_than, "prune_to_size": settings.prune_to_size}
    for name, value in {**of_store, "verify": settings.verify or None}.items():
        problems.require(
            settings.store is not None or value is None,
            f"{name}={str(value).lower()}: say of which store too, store=FOLDER or store={DEFAULT}",
        )
    problems.require(
        settings.prunes or not settings.dry_run, "dry_run=true: give prune_older_than=DAYS or prune_to_size=GB too"
    )
    wrong = fields.problems(settings)
    problems.messages += wrong or _unfit_places(settings)
    problems.raise_if_any()


def _unfit_places(settings: CompareConfig) -> Iterator[str]:
    """Folders that nothing can be read from or written to."""
    if settings.output and (fault := obstacle(Path(settings.output))):
        yield f"output={settings.output}: {fault}; choose another place with output=FOLDER"
    store = settings.store
    if store not in (None, DEFAULT) and os.path.lexists(store) and not Path(store).is_dir():
        yield f"store={store}: is a file; give the folder of a store"


def without_switches(words: Sequence[str]) -> list[str]:
    """A command line in which `--name value` of former releases is `name=value`.

    Args:
        words: without the program's name. A switch that there never was stays as it is.
    """
    kinds = {field.name: str(field.type) for field in dataclasses.fields(CompareConfig)}
    switches = {f"--{name.replace('_', '-')}": name for name in kinds if name != "sweep"}
    rest = list(words)
    translated = []
    while rest:
        word = rest.pop(0)
        switch, sign, value = word.partition("=")
        if (name := switches.get(switch)) is None:
            translated.append(word)
        elif kinds[name] == "bool" and not sign:
            translated.append(f"{name}=true")
        elif sign:
            translated.append(f"{name}={value}")
        elif rest and not rest[0].startswith("--"):
            translated.append(f"{name}={rest.pop(0)}")
        else:
            translated.append(f"{name}={DEFAULT}" if name == "store" else word)
    return translated
