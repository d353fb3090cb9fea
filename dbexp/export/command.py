"""The command `dbexp-export`, told in order: run, files, check, pictures, card, upload."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from dbexp.config.check import conf_dir, fill
from dbexp.config.words import parse, told
from dbexp.core.errors import ConfigError
from dbexp.export import settings as schema
from dbexp.export.settings import ExportConfig

if TYPE_CHECKING:
    from dbexp.evaluate.report import Report
    from dbexp.export.check import Check
    from dbexp.models import Model
    from dbexp.runs.record import TrainedRun

PROGRAM = "dbexp-export"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""The name that `load_lora_weights` looks for in a folder or repository."""
_SHEET = "images/grid.png"
_BASE_SHOWN, _RUN_SHOWN = 1, 3  # pictures per prompt on the card's sheet


@dataclass(frozen=True)
class Exported:
    """What an export left."""

    folder: Path
    files: tuple[str, ...]
    """Relative to the folder."""
    check: Check | None
    address: str | None
    """On the hub."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 a mistake or a file that failed its check, 130 by Ctrl-C.

    Args:
        words: the command line; None: that of the process.
    """
    with told(PROGRAM):
        settings = parse(ExportConfig, sys.argv[1:] if words is None else words, schema.USAGE)
        done = export(settings)
        for name in done.files:
            if "/" not in name:
                print(done.folder / name)
        if done.address:
            print(done.address)


def export(settings: ExportConfig) -> Exported:
    """Write what is asked for, check it, upload it.

    Raises:
        ConfigError: with every problem of the settings; the run is not there; a file failed its check, and is removed.
    """
    problems = schema.problems(settings)
    if problems:
        raise ConfigError(problems)
    from dbexp import models  # torch and diffusers: seconds, so after the check
    from dbexp.core.provenance import public
    from dbexp.core.store import Store
    from dbexp.models import lora_file
    from dbexp.runs.record import open_runs
    from dbexp.sample.shots import slug

    (run,) = open_runs([settings.run], settings.objective)
    if run.chosen:
        print(f"{run.folder}: {run.chosen}", flush=True)
    name = settings.name or f"{run.config.dataset.name} {run.name}"
    base, licence = _origin(settings, run)
    chosen = replace(
        run.config.model,
        precision="fp32",
        device=settings.device or run.config.model.device,
        path=settings.model or run.config.model.path,
    )
    place = settings.store or run.config.store
    model = models.load(chosen, Store(Path(place) if place else None))
    folder = Path(settings.folder or Path("exported") / slug(name)).expanduser()
    file = lora_file.read(run.lora, model)
    file = replace(file, provenance=public(file.provenance))
    names = {"diffusers": DIFFUSERS_FILE, "kohya": f"{slug(name)}.safetensors"}
    written = {kind: names[kind] for kind in dict.fromkeys(settings.format)}
    try:
        for kind, target in written.items():
            {"diffusers": lora_file.export_diffusers, "kohya": lora_file.export_kohya}[kind](
                file, folder / target, model
            )
        check = _check(settings, run, model, [folder / target for target in written.values()])
        others = _write_card(settings, run, folder, name, base, licence, written, check) if settings.card else []
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}; choose another place with folder=FOLDER"
        ) from error
    files = (*written.values(), *others)
    address = None
    if settings.push:
        from dbexp.export import hub

        address = hub.push(folder, files, settings.push, private=settings.private)
    return Exported(folder, files, check, address)


def _origin(settings: ExportConfig, run: TrainedRun) -> tuple[str | None, str | None]:
    """Hub id of the base model and its licence, None for what is not known.

    Raises:
        ConfigError: a licence must be told on the hub, and is not known.
    """
    from dbexp.export import hub
    from dbexp.export.card import LICENCES, OWN_LICENCE

    path = run.config.model.path
    own = path == "random" or path.startswith("package:")
    base = settings.base
    if base is None and not own:
        option = conf_dir() / "model" / f"{run.config.model.name}.yaml"  # a local copy of a model that has an option
        usual = OmegaConf.select(OmegaConf.load(option), "path") if option.is_file() else None
        base = next((found for found in (path, usual) if _is_hub_id(found)), None)
    licence = settings.licence or (OWN_LICENCE if own and base is None else LICENCES.get(base or ""))
    if licence is None and settings.push and base is not None:
        licence = hub.licence(base)
    if licence is None and settings.push:
        raise ConfigError(
            f"licence=null: the licence of the base model ({base or run.config.model.name}) is not known, and the hub "
            "must be told; give licence=NAME, such as licence=openrail++"
        )
    return base, licence


def _is_hub_id(path: str | None) -> bool:
    """Whether a model's path is one of the hub and not of this machine."""
    if path is None or path.startswith((".", "~", "/")) or path.count("/") != 1 or Path(path).suffix == ".safetensors":
        return False
    return not Path(path).exists()


def _check(settings: ExportConfig, run: TrainedRun, model: Model, files: Sequence[Path]) -> Check | None:
    """Report whether the written files give the run's pictures.

    Raises:
        ConfigError: one does not; it is removed.
    """
    if not settings.check:
        return None
    from dbexp.export import check as checks
    from dbexp.export.card import decibel

    config = run.config
    found = checks.check(
        model,
        run.lora,
        files,
        prompt=fill(config.dataset.prompt, config.dataset),
        steps=settings.check_steps,
        guidance_scale=config.sample.guidance_scale,
        resolution=config.sample.resolution,
    )
    for path in files:
        print(f"{path.name}: {decibel(found.psnr[path.name])} PSNR to the run's pictures", flush=True)
    print(f"without the LoRA: {decibel(found.without)}", flush=True)
    if found.failed:
        for path in files:
            if path.name in found.failed:
                path.unlink()
        raise ConfigError(
            f"{', '.join(found.failed)}: stock diffusers draws other pictures with it ({checks.LEAST_PSNR:.0f} dB are "
            "required), so it was removed; this is a fault of dbexp, or of this version of diffusers"
        )
    if not found.telling:
        print("the LoRA changes these pictures so little that this check says nothing", flush=True)
    return found


def _write_card(
    settings: ExportConfig,
    run: TrainedRun,
    folder: Path,
    name: str,
    base: str | None,
    licence: str | None,
    written: dict[str, str],
    check: Check | None,
) -> list[str]:
    """README.md and its pictures; their names in the folder."""
    from dbexp.core.files import write_atomic
    from dbexp.export.card import Facts, card

    report = run.report
    pictures = _copy_pictures(run, report, folder, settings.pictures) if report else []
    grid = _grid(run, report, folder, [prompt for prompt, _ in pictures]) if report and pictures else None
    facts = Facts(name, run.config, report, base, licence, written, pictures, grid, check)
    write_atomic(folder / "README.md", card(facts))
    return ["README.md", *(path for _, path in pictures), *([grid] if grid else [])]


def _copy_pictures(run: TrainedRun, report: Report, folder: Path, count: int) -> list[tuple[str, str]]:
    """The first sample of each of the first prompts: (prompt, path in the folder)."""
    first = {image.prompt: run.folder / image.path for image in reversed(report.images) if image.row == "run"}
    prompts = [scores.prompt for scores in report.prompts if scores.row == "run"]
    found = [(prompt, first[prompt]) for prompt in prompts if prompt in first and first[prompt].is_file()][:count]
    copied = []
    for number, (prompt, path) in enumerate(found):
        target = folder / "images" / f"{number}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        copied.append((prompt, target.relative_to(folder).as_posix()))
    return copied


def _grid(run: TrainedRun, report: Report, folder: Path, prompts: Sequence[str]) -> str:
    """The base model beside the LoRA on some prompts. The subject's own photographs are not on it: they are private."""
    from dbexp.compare.contact_sheet import SheetColumn, contact_sheet

    def column(row: str, heading: str, limit: int) -> SheetColumn:
        images: dict[str, list[Path]] = {prompt: [] for prompt in prompts}
        for image in report.images:
            if image.row == row and image.prompt in images:
                images[image.prompt].append(run.folder / image.path)
        return SheetColumn(heading, images, limit)

    columns = [column("base", "base model", _BASE_SHOWN), column("run", "this LoRA", _RUN_SHOWN)]
    contact_sheet(columns, folder / _SHEET, title=run.config.dataset.name, label=report.label)
    return _SHEET


if __name__ == "__main__":
    main()
