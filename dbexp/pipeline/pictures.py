"""The pictures of a run: sampled or found, linked into its folder, and laid out on a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dbexp.compare.contact_sheet import SheetColumn, contact_sheet
from dbexp.core import provenance
from dbexp.core.files import link
from dbexp.core.hashing import file_hash
from dbexp.core.store import Store
from dbexp.dataset import Subject
from dbexp.evaluate.pictures import Pictures
from dbexp.models import Model
from dbexp.pipeline.requests import sample_request
from dbexp.runs.folder import RunFolder
from dbexp.runs.outcome import Outcome
from dbexp.sample import sample
from dbexp.sample.oracle import oracle_samples

_SHEET = "contact_sheet.png"
_CODE = provenance.code_hash("compare/contact_sheet.py", "core/images.py", "core/colour.py")


def link_inputs(folder: RunFolder, subject: Subject, prior_images: Sequence[Path]) -> None:
    """Link what a run trains on into its folder."""
    for number, path in enumerate(subject.paths):
        link(path, folder.subject_image(number, path))
    _linked_files(prior_images, folder.prior)


def sample_all(outcome: Outcome, subject: Subject, lora: Path, model: Model, store: Store) -> Pictures:
    """All pictures of a run, linked into its folder, where its contact sheet is laid out.

    Args:
        outcome: of the run, which has its config, its name and its folder.
        subject: of the run.
        lora: that was trained.
        model: the base model.
        store: where pictures are kept.
    """
    config, folder, request = outcome.config, outcome.folder, sample_request(outcome.config)
    samples = _linked(sample.sample_prompts(request, model, lora, store), folder.sample)
    base = None
    if config.sample.base:
        base = _linked(sample.sample_prompts(request, model, None, store), folder.base_samples)
    with_lora = _linked_files(sample.sample_class(request, model, lora, store), folder.class_samples)
    without = _linked_files(sample.sample_class(request, model, None, store), folder.base_class_samples)
    columns = [SheetColumn("base model", base, limit=1)] if base else []
    columns.append(SheetColumn("with the LoRA", samples))
    label = joined(config.model.label, config.evaluate.label)
    sheet = _sheet(columns, store, title=f"{subject.name}: {outcome.name}", label=label, real=subject.paths)
    link(sheet, folder.contact_sheet)
    return Pictures(
        real=subject.paths,
        samples=samples,
        base_samples=base,
        class_images=with_lora,
        class_images_base=without,
        token=subject.token,
        class_noun=subject.class_noun,
        groups=request.groups,
        oracle_samples=oracle_samples(config.dataset, request.sampling.prompts, config.sample.images_per_prompt, store),
    )


def _linked(images: Mapping[str, Sequence[Path]], folder: Path) -> dict[str, tuple[Path, ...]]:
    """The same images as files of the run's folder."""
    return {prompt: _linked_files(paths, folder / paths[0].parent.name) for prompt, paths in images.items() if paths}


def _linked_files(paths: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    for path in paths:
        link(path, folder / path.name)
    return tuple(folder / path.name for path in paths)


def _sheet(
    columns: Sequence[SheetColumn], store: Store, *, title: str, label: str | None, real: Sequence[Path]
) -> Path:
    """The contact sheet of these pictures under these words, from the store where it was laid out before."""

    def hashes(images: Mapping[str, Sequence[Path]]) -> list[Any]:
        return [[prompt, [file_hash(path) for path in paths]] for prompt, paths in images.items()]

    inputs = {
        "code": _CODE,
        "pillow": provenance.package_versions()["pillow"],
        "title": title,
        "label": label,
        "columns": [[column.heading, column.limit, hashes(column.images)] for column in columns],
        "real": [file_hash(path) for path in real],
    }

    def make(folder: Path) -> None:
        contact_sheet(columns, folder / _SHEET, title=title, label=label, real=real)

    return store.get("sheet", inputs, make) / _SHEET


def joined(*labels: str | None) -> str | None:
    """Labels that say different things, each once."""
    return "; ".join(dict.fromkeys(label for label in labels if label)) or None
