"""The command `dbexp-generate`, told in order: settings, runs, grid, images, contact sheet."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dbexp.config.explain import user_errors
from dbexp.config.words import parse
from dbexp.core import disk, limits
from dbexp.core.errors import ConfigError, Interrupted, Problems
from dbexp.core.files import sweep_up, write_atomic
from dbexp.core.interrupts import signum_of
from dbexp.generate.settings import USAGE, GenerateConfig, check

if TYPE_CHECKING:
    from dbexp.generate.grid import GridColumn
    from dbexp.runs.record import TrainedRun
    from dbexp.sample.draw import Drawing

PROGRAM = "dbexp-generate"
SHEET = "contact_sheet.png"


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 a mistake, 130 by Ctrl-C, 143 by SIGTERM.

    Args:
        words: the command line; None: that of the process.
    """
    with user_errors(PROGRAM, "no picture is there yet; the same command starts over"):
        settings = parse(GenerateConfig, sys.argv[1:] if words is None else words, USAGE)
        sheet = generate(settings)
        print(f"pictures       {sheet.parent}\ncontact sheet  {sheet}", flush=True)


def generate(settings: GenerateConfig) -> Path:
    """Draw a grid of images and put it side by side.

    Args:
        settings: what is asked for.

    Returns:
        The contact sheet, in the folder of the images.

    Raises:
        ConfigError: with every problem of the settings, then of the runs, prompts and images they name.
        Interrupted: a signal came; pictures that were drawn are there.
    """
    check(settings)
    limits.rehearse(lambda: _rehearse(settings))
    runs, columns, drawing = _open(settings)
    for run in (run for run in runs if run.chosen):
        print(f"{run.folder}: {run.chosen}", flush=True)
    now = datetime.now()
    folder = Path(settings.folder or Path("generated") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}").expanduser()
    try:
        sweep_up(folder, below=True)
        _draw(columns, drawing, settings, folder)
        return _sheet(columns, drawing, folder)
    except KeyboardInterrupt as stop:
        there = _there(columns, folder) or "no picture is there yet; the same command starts over"
        raise Interrupted(signum_of(stop), f"stopped; {there}") from None
    except ConfigError:
        if there := _there(columns, folder):
            print(f"{PROGRAM}: stopped; {there}", file=sys.stderr)
        raise
    except OSError as error:
        raise ConfigError(disk.message(error, {"folder=FOLDER": folder})) from error


def _open(settings: GenerateConfig) -> tuple[Sequence[TrainedRun], Sequence[GridColumn], Drawing]:
    """The runs, what is drawn of which, and how, with base models that are there.

    Raises:
        ConfigError: with every problem of the runs, then of prompts and images, then of the models.
    """
    from dbexp import models  # torch and diffusers: seconds
    from dbexp.core.store import Store
    from dbexp.generate import elsewhere, grid
    from dbexp.runs.record import open_runs, require_known_model

    problems = Problems()
    runs = open_runs(settings.run, settings.objective)
    runs += elsewhere.runs(settings, runs)
    columns: tuple[GridColumn, ...] = ()
    with problems.noting():
        columns = grid.columns(settings, runs)
    with problems.noting():
        drawing = grid.drawing(settings, runs[0])
    problems.raise_if_any()
    grid.check_models(columns, drawing)
    for column in columns:
        with problems.noting():
            require_known_model(column.run, column.model, settings.model)
    problems.raise_if_any()
    store = Store(Path(settings.store) if settings.store else None)
    for column in columns:
        with problems.noting():
            model = models.load(column.model, store)
            problems.require(
                not model.needs_mask or drawing.task == "inpaint",
                f"model={model.name}: is an inpainting checkpoint; give it init_image=FILE and mask=FILE",
            )
    problems.raise_if_any()
    return runs, columns, drawing


def _rehearse(settings: GenerateConfig) -> None:
    """Load what drawing begins with, libraries and text encoders."""
    from dbexp import models
    from dbexp.core.store import Store

    _, columns, _ = _open(settings)
    for column in columns:
        model = models.load(column.model, Store(Path(settings.store) if settings.store else None))
        model.encode(model.tokenize(["a"]))


def _there(columns: Sequence[GridColumn], folder: Path) -> str:
    """What a command that did not end has drawn, and how to go on; empty where that is nothing."""
    shots = [shot for column in columns for shot in column.shots]
    count = sum((folder / shot.path).is_file() for shot in shots)
    if not count:
        return ""
    return f"{count} of {len(shots)} pictures are there, and the same command with folder={folder} goes on"


def _draw(columns: Sequence[GridColumn], drawing: Drawing, settings: GenerateConfig, folder: Path) -> None:
    """Every image that is not there, column by column."""
    from dbexp import models
    from dbexp.core.progress import progress
    from dbexp.core.store import Store
    from dbexp.generate import elsewhere, grid
    from dbexp.sample.draw import Engine

    sources, store = grid.sources(settings), Store(Path(settings.store) if settings.store else None)
    opened = elsewhere.open_all(columns, store)
    for sentence in grid.check_texts(columns, drawing, store):
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    with progress("generate", sum(len(column.shots) for column in columns)) as bar:
        for column in columns:
            model = models.load(column.model, store)
            file = opened.get((column.run.lora, model.identity), column.run.lora)
            lora, scale = (None, 1.0) if column.scale is None else (file, column.scale)
            engine = Engine(model, replace(drawing, lora=lora, lora_scale=scale))
            metadata = grid.metadata(column, drawing, model, sources)
            batches = engine.missing(column.shots, folder, metadata)
            bar.advance(len(column.shots) - sum(map(len, batches)), step=None)
            engine.draw(batches, folder, metadata, bar, "batch_size")


def _sheet(columns: Sequence[GridColumn], drawing: Drawing, folder: Path) -> Path:
    """The contact sheet: the image to start from, if there is one, then every column."""
    from dbexp.compare.contact_sheet import SheetColumn, contact_sheet

    sheet = []
    rows = list(dict.fromkeys(row for column in columns for row in column.rows))
    for name, image in (("init_image", drawing.init), ("mask", drawing.mask)):
        if image is not None:
            path = folder / f"{name}.png"
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            write_atomic(path, buffer.getvalue())
            sheet.append(SheetColumn(name, {row: [path] for row in rows}))
    for column in columns:
        images = {row: [folder / shot.path for shot in shots] for row, shots in column.rows.items()}
        sheet.append(SheetColumn(column.heading, images))
    labels = dict.fromkeys(column.model.label for column in columns if column.model.label)
    titles = dict.fromkeys(f"{column.run.config.dataset.name}: {column.run.name}" for column in columns)
    title = next(iter(titles)) if len(titles) == 1 else f"{len(titles)} runs"
    contact_sheet(sheet, folder / SHEET, title=title, label="; ".join(labels) or None)
    return folder / SHEET


if __name__ == "__main__":
    main()
