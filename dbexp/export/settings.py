"""What `dbexp-export` can be asked for, and the rules that no type can express."""

from __future__ import annotations

import re
from dataclasses import dataclass

from omegaconf import MISSING

from dbexp.config import fields
from dbexp.config.fields import NAME, PATH, bounded, choice, text
from dbexp.config.schema import DEVICE, MOST_SAMPLING_STEPS
from dbexp.core.errors import Problems
from dbexp.core.folders import unusable
from dbexp.evaluate.columns import COLUMNS, RECOMMEND
from dbexp.export.formats import FORMATS

USAGE = """\
dbexp-export: a run's LoRA for diffusers, ComfyUI and others, with a model card

  dbexp-export run=multirun/DATE/TIME                      the best run of a sweep, to exported/NAME
  dbexp-export run=multirun/DATE/TIME/3 folder=rex format=kohya
  dbexp-export run=outputs/DATE/TIME push=user/rex         also to the hub, as a private repository
"""

# characters of names on the hub (and of a folder)
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class ExportConfig:
    """One call of `dbexp-export`."""

    run: str = text(MISSING, PATH)
    """Folder of a run. The folder of a sweep means its best run."""
    objective: str | None = choice(None, (*COLUMNS, RECOMMEND))
    """What picks the best run of a sweep, a column of the metric table or recommend; null: the objective of the sweep."""
    format: list[str] = choice(list(FORMATS), {name: format.meaning for name, format in FORMATS.items()}, commas=True)
    """Files to write, comma separated."""
    card: bool = True
    """Also write README.md, the hub's model card: table, pictures, settings, how to load."""
    pictures: int = bounded(6, at_least=0, most=1000)
    """Prompts of the run whose samples the card shows, from the top of the list; 0: no pictures."""
    name: str | None = text(None, NAME)
    """Of the model, in the card and in the name of kohya's file; null: subject and run."""
    base: str | None = text(None, NAME)
    """Hub id of the base model, for the card; null: what the run's model stands for, if that is on the hub."""
    licence: str | None = text(None, NAME)
    """Of the base model, as the hub writes it (openrail++), for the card; null: looked up among the models that dbexp knows."""
    check: bool = True
    """Load each written file into a stock pipeline and compare its pictures with the run's: they must agree to 40 dB."""
    check_steps: int = bounded(8, at_least=1, most=MOST_SAMPLING_STEPS)
    """Sampling steps of these pictures."""
    device: str | None = text(None, DEVICE)
    """cpu, cuda, mps or auto, for the check; null: as the run."""
    model: str | None = text(None, PATH)
    """Where the base model is, if not where the run had it: hub id, folder or file."""
    store: str | None = text(None, PATH)
    """Folder of the content-addressed cache; null: `dbexp` in the cache folder of the user."""
    folder: str | None = text(None, PATH)
    """Where the files go; null: exported/NAME."""
    push: str | None = text(None, NAME)
    """Upload to this repository of the hub, user/name; null: nothing leaves the machine."""
    private: bool = True
    """With `push`: a repository that is made for it is private."""


def check(settings: ExportConfig) -> None:
    """Find what is wrong with the settings and can be known without reading a file.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems()
    problems.messages += fields.problems(settings)
    problems.require(bool(settings.format), f"format=[]: choose among {', '.join(FORMATS)}")
    for name in ("push", "base"):
        value = getattr(settings, name)
        problems.require(value is None or _HUB_NAME.fullmatch(value) is not None, f"{name}={value}: must be user/name")
    problems.require(
        settings.push is None or settings.card,
        f"push={settings.push}: needs the model card; leave out card=false",
    )
    problems.messages += unusable("folder", settings.folder)
    problems.messages += unusable("store", settings.store, readable=True)
    problems.raise_if_any()
