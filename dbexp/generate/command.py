"""The command `dbexp-generate`, told in order: settings, runs, grid, pictures, contact sheet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dbexp.config.words import parse, told
from dbexp.core.errors import ConfigError
from dbexp.generate import settings as schema
from dbexp.generate.settings import GenerateConfig

if TYPE_CHECKING:
    from dbexp.generate.grid import Drawing, GridColumn

PROGRAM = "dbexp-generate"
SHEET = "contact_sheet.png"


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 a mistake, 130 by Ctrl-C.

    Args:
        words: the command line; None: that of the process.
    """
    with told(PROGRAM):
        settings = parse(GenerateConfig, sys.argv[1:] if words is None else words, schema.USAGE)
        sheet = generate(settings)
        print(f"pictures       {sheet.parent}\ncontact sheet  {sheet}", flush=True)


def generate(settings: GenerateConfig) -> Path:
    """Draw a grid of pictures and put it side by side.

    Args:
        settings: what is asked for.

    Returns:
        The contact sheet, in the folder of the pictures.

    Raises:
        ConfigError: with every problem of the settings, then of the runs, prompts and pictures they name.
        KeyboardInterrupt: after saying what is there.
    """
    problems = schema.problems(settings)
    if problems:
        raise ConfigError(problems)
    from dbexp.generate import grid  # torch and diffusers: seconds, so after the check
    from dbexp.runs.record import open_runs

    opened = open_runs(settings.run, settings.objective)
    problems = []
    columns: tuple[GridColumn, ...] = ()
    try:
        columns = grid.columns(settings, opened)
    except ConfigError as error:
        problems += error.problems
    try:
        drawn = grid.drawing(settings, opened[0])
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    for run in (run for run in opened if run.chosen):
        print(f"{run.folder}: {run.chosen}", flush=True)
    now = datetime.now()
    folder = Path(settings.folder or Path("generated") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}").expanduser()
    try:
        _draw(columns, drawn, settings, folder)
    except KeyboardInterrupt:
        there = sum((folder / shot.path).is_file() for column in columns for shot in column.shots)
        whole = sum(len(column.shots) for column in columns)
        print(
            f"{PROGRAM}: stopped; {there} of {whole} pictures are there, and the same command with folder={folder} "
            "goes on",
            file=sys.stderr,
        )
        raise
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}; choose another place with folder=FOLDER"
        ) from error
    return _sheet(columns, drawn, folder)


def _draw(columns: Sequence[GridColumn], drawn: Drawing, settings: GenerateConfig, folder: Path) -> None:
    """Every picture that is not there, column by column."""
    from dbexp import models
    from dbexp.core.progress import progress
    from dbexp.core.store import Store
    from dbexp.generate.draw import draw_column

    with progress("generate", sum(len(column.shots) for column in columns)) as bar:
        for column in columns:
            place = settings.store or column.run.config.store
            model = models.load(column.model, Store(Path(place) if place else None))
            draw_column(column, drawn, model, folder, bar)


def _sheet(columns: Sequence[GridColumn], drawn: Drawing, folder: Path) -> Path:
    """The contact sheet: the picture to start from, if there is one, then every column."""
    from dbexp.compare.contact_sheet import SheetColumn, contact_sheet

    shown = []
    rows = list(dict.fromkeys(shot.row for column in columns for shot in column.shots))
    for name, image in (("init_image", drawn.init), ("mask", drawn.mask)):
        if image is not None:
            path = folder / f"{name}.png"
            image.save(path)
            shown.append(SheetColumn(name, {row: [path] for row in rows}))
    for column in columns:
        images: dict[str, list[Path]] = {}
        for shot in column.shots:
            images.setdefault(shot.row, []).append(folder / shot.path)
        shown.append(SheetColumn(column.heading, images))
    labels = dict.fromkeys(column.model.label for column in columns if column.model.label)
    titles = dict.fromkeys(f"{column.run.config.dataset.name}: {column.run.name}" for column in columns)
    title = next(iter(titles)) if len(titles) == 1 else f"{len(titles)} runs"
    contact_sheet(shown, folder / SHEET, title=title, label="; ".join(labels) or None)
    return folder / SHEET


if __name__ == "__main__":
    main()
