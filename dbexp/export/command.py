"""The command `dbexp-export`, told in order: run, files, comparison, card, upload."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dbexp.config.explain import user_errors
from dbexp.config.template import fill
from dbexp.config.words import parse
from dbexp.core import disk, folders, interrupts, limits
from dbexp.core.errors import ConfigError, Interrupted, Problems, listed
from dbexp.export.formats import FORMATS
from dbexp.export.settings import USAGE, ExportConfig, check

if TYPE_CHECKING:
    from dbexp.export.card import Facts
    from dbexp.export.compare import Comparison
    from dbexp.models import LoraFile, Model
    from dbexp.runs.record import TrainedRun

PROGRAM = "dbexp-export"


@dataclass(frozen=True)
class Exported:
    """What an export left."""

    folder: Path
    files: tuple[str, ...]
    """Relative to the folder."""
    address: str | None
    """On the hub."""


@dataclass(frozen=True)
class _Opened:
    """A run with its base model, and its LoRA as it may be given to others."""

    run: TrainedRun
    model: Model
    lora: LoraFile
    base: str | None
    """On the hub."""
    licence: str | None
    """Of the base model."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 a mistake or a file that draws other images, 130 by Ctrl-C, 143 by
    SIGTERM.

    Args:
        words: the command line; None: that of the process.
    """
    with user_errors(PROGRAM, "nothing was written; the same command starts over"):
        exported = export(parse(ExportConfig, sys.argv[1:] if words is None else words, USAGE))
        for name in exported.files:
            if "/" not in name:
                print(exported.folder / name)
        if exported.address:
            print(exported.address)


def export(settings: ExportConfig) -> Exported:
    """Write what is asked for, compare its images with the run's, upload it.

    Everything is written beside the folder first, so that the folder never holds half of an export.

    Raises:
        ConfigError: with every problem of the settings; the run is not there; a file draws other images. Nothing is
            left then, unless it is the hub that refuses.
        Interrupted: a signal came when everything had been written.
    """
    check(settings)
    limits.rehearse(lambda: _rehearse(settings))
    opened = _open(settings)
    run, model = opened.run, opened.model
    from dbexp.export import hub
    from dbexp.export.card import Facts
    from dbexp.models import lora_file
    from dbexp.sample.shots import slug

    if run.chosen:
        print(f"{run.folder}: {run.chosen}", flush=True)
    name = settings.name or f"{run.config.dataset.name} {run.name}"
    folder = Path(settings.folder or Path("exported") / slug(name)).expanduser()
    files = {kind: FORMATS[kind].file.format(name=slug(name)) for kind in settings.format if kind in model.formats}
    written: list[str] = []
    try:
        with folders.unfinished(folder, "folder") as unfinished:
            for kind, file in files.items():
                lora_file.write(opened.lora, unfinished / file, model, kind)
            comparison = _compare(settings, run, model, [unfinished / file for file in files.values()])
            paths = list(files.values())
            if settings.card:
                facts = Facts(run, name, opened.base, opened.licence, files, comparison)
                paths += _write_card(facts, unfinished, settings.pictures)
            _move(paths, unfinished, folder, written)
        address = hub.push(folder, paths, settings.push, private=settings.private) if settings.push else None
    except OSError as error:
        raise ConfigError(disk.message(error, {"folder=FOLDER": folder})) from error
    except KeyboardInterrupt as stop:
        if not written:
            raise
        then = "; the same command uploads it" if settings.push else ""
        raise Interrupted(interrupts.signum_of(stop), f"stopped; everything is in {folder}{then}") from None
    return Exported(folder, tuple(paths), address)


def _open(settings: ExportConfig) -> _Opened:
    """Find what an export needs.

    Raises:
        ConfigError: the run or its model is not there; then with everything that keeps the LoRA from being exported.
    """
    from dbexp import models  # torch and diffusers: seconds
    from dbexp.core.provenance import public
    from dbexp.core.store import Store
    from dbexp.export import hub
    from dbexp.models import lora_file
    from dbexp.runs.record import open_runs, require_known_model

    problems = Problems()
    (run,) = open_runs([settings.run], settings.objective)
    problems.require(
        not settings.card or run.config.lora.path is None,
        f"run={settings.run}: draws with lora.path={run.config.lora.path}, which it did not train, so no card can "
        "say how it was made; give card=false",
    )
    base = run.config.model
    device, path = settings.device or base.device, settings.model or base.path
    base = replace(base, precision="fp32", quantize=None, device=device, path=path)
    with problems.noting():
        base_id, licence = hub.origin(run.config.model, settings)
    with problems.noting():
        require_known_model(run, base, settings.model)
    problems.raise_if_any()
    model = models.load(base, Store(Path(settings.store) if settings.store else None))
    most, known = model.family.steps_of(None), model.formats
    problems.require(
        settings.check_steps <= most,
        f"check_steps={settings.check_steps}: must be at most {most} for model={model.name}",
    )
    problems.require(
        not set(known).isdisjoint(settings.format),
        f"format={','.join(settings.format)}: model={model.name} has {', '.join(known)}",
    )
    with problems.noting():
        lora = lora_file.read(run.lora, model)
        lora_file.require_fit(lora, model, run.lora)
        if convolutions := lora_file.convolutions(lora, model):
            raise ConfigError(f"{run.lora}: adapts convolutions ({listed(convolutions, 2)}), which no format here has")
    problems.raise_if_any()
    return _Opened(run, model, replace(lora, provenance=public(lora.provenance)), base_id, licence)


def _rehearse(settings: ExportConfig) -> None:
    """Load what the comparison begins with, libraries and text encoders."""
    model = _open(settings).model
    model.encode(model.tokenize(["a"]))


def _move(paths: Sequence[str], unfinished: Path, folder: Path, written: list[str]) -> None:
    """Bring files to where they belong; all of them, whatever signal comes.

    Args:
        paths: relative to either folder.
        written: gets each path when its file is there.
    """
    with interrupts.postponed():
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished / path, folder / path)
            written.append(path)


def _compare(settings: ExportConfig, run: TrainedRun, model: Model, files: Sequence[Path]) -> Comparison | None:
    """Report whether the written files give the run's images.

    Raises:
        ConfigError: one does not.
    """
    if not settings.check:
        return None
    from dbexp.export.compare import LEAST_PSNR, compare, decibel

    comparison = compare(
        model,
        run.lora,
        files,
        prompt=fill(run.config.dataset.prompt, run.config.dataset),
        steps=settings.check_steps,
        guidance_scale=run.config.sample.guidance_scale,
        resolution=run.config.sample.resolution,
    )
    for path in files:
        print(f"{path.name}: {decibel(comparison.psnr[path.name])} PSNR to the run's pictures", flush=True)
    print(f"without the LoRA: {decibel(comparison.without)}", flush=True)
    if comparison.different:
        raise ConfigError(
            f"{', '.join(comparison.different)}: stock diffusers draws other pictures with it ({LEAST_PSNR:.0f} dB are "
            "required), so nothing was written; this is a fault of dbexp, or of this version of diffusers"
        )
    if not comparison.meaningful:
        print("the LoRA changes these pictures so little that this check says nothing", flush=True)
    return comparison


def _write_card(facts: Facts, folder: Path, count: int) -> list[str]:
    """README.md with `count` samples; the paths of all in the folder, the README last."""
    from dbexp.core.files import write_atomic
    from dbexp.export.card import card
    from dbexp.export.images import GRID, copy_samples, lay_out_grid

    report, paths = facts.run.report, ["README.md"]
    images = copy_samples(facts.run, report, folder, count) if report else []
    if report and images:
        lay_out_grid(facts.run, report, folder, [prompt for prompt, _ in images])
        facts = replace(facts, images=images, grid=GRID)
        paths = [*(path for _, path in images), GRID, *paths]
    write_atomic(folder / "README.md", card(facts))
    return paths


if __name__ == "__main__":
    main()
