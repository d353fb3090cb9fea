"""Reports by content: equal pictures under equal backbones, formulas and libraries have an equal report.

So a run that is repeated, under whatever name and in whatever folder, decodes no picture and loads no network. Every
file is still read and hashed: one that changed makes another key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbexp.config.fields import keyed
from dbexp.config.schema import EvaluateConfig
from dbexp.core import provenance
from dbexp.core.files import write_atomic
from dbexp.core.hashing import file_hash
from dbexp.evaluate.backbones.base import Backbone
from dbexp.evaluate.features import FAILED
from dbexp.evaluate.functional import METRIC_VERSION
from dbexp.evaluate.metrics.base import Metric
from dbexp.evaluate.pictures import Pictures
from dbexp.evaluate.report import Report

_FILE = "report.json"
# when this module is imported the others have been, or will be in the next moment: what runs is what is hashed
_CODE = provenance.code_hash("evaluate", "core/images.py", "core/colour.py")
_NO_MATTER = ("dino", "clip", "lpips", "more", "batch_size")  # the backbones speak for themselves, by id


def inputs_of(
    pictures: Pictures, backbones: tuple[Backbone, ...], cfg: EvaluateConfig, more: Sequence[Metric] = ()
) -> dict[str, Any]:
    """What a report depends on: the key of its store entry."""

    def hashes(paths: Any) -> list[str | None]:
        return [file_hash(path) if path.is_file() else None for path in paths]

    def by_prompt(samples: Any) -> list[list[Any]] | None:
        return None if samples is None else [[prompt, hashes(paths)] for prompt, paths in samples.items()]

    added = [[each.name, each.network.id, each.network.transform, each.depends_on(pictures.real)] for each in more]
    return {
        **({"more": added} if added else {}),
        "metric_version": METRIC_VERSION,
        "code": _CODE,
        "packages": provenance.package_versions(),
        "backbones": [[backbone.id, backbone.transform] for backbone in backbones],
        "settings": {name: value for name, value in keyed(cfg).items() if name not in _NO_MATTER},
        "real": hashes(pictures.real),
        "samples": by_prompt(pictures.samples),
        "base_samples": by_prompt(pictures.base_samples),
        "oracle_samples": by_prompt(pictures.oracle_samples),
        "class_images": hashes(pictures.class_images),
        "class_images_base": hashes(pictures.class_images_base),
        "token": pictures.token,
        "class_noun": pictures.class_noun,
        "groups": [[prompt, group] for prompt, group in pictures.groups.items()],
    }


def is_sound(report: Report) -> bool:
    """Whether no backbone failed: what memory did not suffice for now it may suffice for another time."""
    estimates = [estimate for columns in report.rows.values() for estimate in columns.values()]
    return not any(FAILED in (estimate.reason or "") for estimate in estimates)


def write(folder: Path, report: Report, pictures: Pictures) -> None:
    """Leave a report in its entry. The number of a picture stands for its path, which may be another next time."""
    numbers = {str(path): str(number) for number, path in enumerate(pictures.paths())}
    write_atomic(folder / _FILE, _renamed(report, numbers.__getitem__).to_json())


def read(folder: Path, pictures: Pictures) -> Report:
    """The report of an entry, about these pictures."""
    paths = [str(path) for path in pictures.paths()]
    return _renamed(Report.from_json((folder / _FILE).read_text()), lambda number: paths[int(number)])


def _renamed(report: Report, name: Callable[[str], str]) -> Report:
    """The report with other names of its pictures."""

    def renamed(scores: Any) -> Any:
        nearest = None if scores.nearest is None else name(scores.nearest)
        return replace(scores, path=name(scores.path), nearest=nearest)

    return replace(
        report,
        images=tuple(map(renamed, report.images)),
        class_images=tuple(map(renamed, report.class_images)),
        copies=tuple(map(renamed, report.copies)),
    )
