"""What a page was made for: what was asked, by which command, what was the same in all runs, by what and when."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from dbexp.compare.comparison import Comparison
from dbexp.compare.ranking import RankedRun
from dbexp.core.errors import count, listed
from dbexp.runs import foreign
from dbexp.runs.folder import RunFolder
from dbexp.runs.names import matters, setting

_FIXED = (
    "model.name", "dataset.name", "dataset.prompt", "train.steps", "train.lr", "train.batch_size", "train.grad_accum",
    "train.optimizer", "lora.rank", "lora.sites", "lora.text_encoder", "lr_schedule.name", "prior.weight",
    "sample.steps", "sample.guidance_scale", "sample.sampler", "sample.images_per_prompt", "sample.lora_scale",
)  # fmt: skip
"""What a reader asks for first, where it is the same in all runs."""
_PACKAGES = ("torch", "diffusers", "transformers", "peft")
_LONGEST = 100_000  # characters of Hydra's record that a page reads; its own defaults take 10,000


@dataclass(frozen=True)
class Question:
    """The head of a page.

    Attributes:
        title: what differs between the runs, with its values; of a single run its subject.
        parts: of the title, what differs: the groups that a parameter is in, its short name, its values.
        extent: how many runs of what.
        commands: as they would be typed, without what only says where files go.
        fixed: parameter -> value, the same in all runs.
        made: versions, hardware and the days of the runs, each as a text.
    """

    title: str
    parts: tuple[tuple[str, str, str], ...]
    extent: str
    commands: tuple[str, ...]
    fixed: Mapping[str, str]
    made: tuple[str, ...]


def question(comparison: Comparison) -> Question:
    """What the runs of a comparison were for."""
    finished = comparison.finished
    varied = {name for factor in comparison.factors for name in (factor.name, *factor.together)}
    return Question(
        _title(comparison),
        _parts(comparison),
        _extent(comparison),
        tuple(filter(None, map(command, comparison.sweeps.values()))),
        _shared(finished, [name for name in _FIXED if name not in varied]),
        tuple(filter(None, (_versions(finished), _hardware(finished), _days(finished)))),
    )


def _title(comparison: Comparison) -> str:
    """Swept parameters and their values; seeds are repetitions, and no question."""
    if parts := _parts(comparison):
        return " × ".join(f"{name} {values}" for _, name, values in parts)
    subjects = _values(comparison.finished or comparison.entries, "dataset.name")
    return listed(subjects) if subjects else listed(list(comparison.sweeps))


def _parts(comparison: Comparison) -> tuple[tuple[str, str, str], ...]:
    parts = []
    for factor in comparison.factors:
        if not factor.is_seed:
            values = factor.levels if len(factor.levels) < 7 else (*factor.levels[:2], "…", factor.levels[-1])
            group = factor.name.removesuffix(factor.title) if factor.name.endswith(factor.title) else ""
            parts.append((group, factor.title, ", ".join(values)))
    return tuple(parts)


def _extent(comparison: Comparison) -> str:
    finished, all_runs = len(comparison.finished), len(comparison.entries)
    settings = len(comparison.standings)
    text = count(finished, "run")
    if settings > 1 and settings < finished:
        each = {len(standing.entries) for standing in comparison.standings}
        text += f": {count(settings, 'setting')}"
        text += f" × {each.pop()} seeds" if len(each) == 1 and not _subjects(comparison) else ", some of them repeated"
    if all_runs > finished:
        text += f", {all_runs - finished} without a result"
    subjects, models = (_values(comparison.finished, name) for name in ("dataset.name", "model.name"))
    return text + (f" of {_few(subjects, 'subject')} on {_few(models, 'model')}" if subjects else "")


def _subjects(comparison: Comparison) -> bool:
    return any(factor.is_subject for factor in comparison.factors)


def _few(names: Sequence[str], noun: str) -> str:
    return listed(names) if len(names) < 4 else count(len(names), noun)


def _values(entries: Iterable[RankedRun], name: str) -> list[str]:
    """Each value of a parameter once."""
    return list(dict.fromkeys(setting(entry.run.config.get(name)) for entry in entries))


def _shared(entries: Sequence[RankedRun], names: Sequence[str]) -> dict[str, str]:
    values = {name: _values(entries, name) for name in names}
    return {name: levels[0] for name, levels in values.items() if len(levels) == 1 and levels[0] != setting(None)}


def command(folder: Path) -> str:
    """What was typed, from Hydra's record of a sweep or of a run; empty where there is none, or none that is one."""
    files = RunFolder(folder)
    for file, is_sweep in ((files.sweep, True), (files.overrides, False)):
        try:
            text = foreign.read_text(folder, file)
            record: Any = yaml.safe_load(text) if len(text) <= _LONGEST else None
            words = record["hydra"]["overrides"]["task"] if is_sweep else record
            if foreign.fits(words, list[str]):
                return shlex.join(["dbexp", *(["-m"] if is_sweep else []), *filter(_is_asked, words)])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
            continue
    return ""


def _is_asked(word: str) -> bool:
    """Whether a word of a command line says what was to be found out, and not where files go."""
    return matters(word.lstrip("+~").partition("=")[0]) or word.startswith("experiment=")


def _versions(entries: Sequence[RankedRun]) -> str:
    versions = {"dbexp": _distinct(entry.run.provenance.get("dbexp") for entry in entries)}
    packages = [entry.run.provenance.get("packages") for entry in entries]
    for name in _PACKAGES:
        versions[name] = _distinct(by_name.get(name) for by_name in packages if isinstance(by_name, Mapping))
    return ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in versions.items() if numbers)


def _hardware(entries: Sequence[RankedRun]) -> str:
    devices = [entry.run.provenance.get("device") for entry in entries]
    return listed(_distinct(device.get("name") for device in devices if isinstance(device, Mapping)))


def _days(entries: Sequence[RankedRun]) -> str:
    days = []
    for text in _distinct(entry.run.provenance.get("time") for entry in entries):
        try:
            days.append(datetime.fromisoformat(text).astimezone(timezone.utc))
        except (ValueError, OverflowError):
            continue
    if not days:
        return ""
    first, last = min(days), max(days)
    return f"{first:%Y-%m-%d}" if first.date() == last.date() else f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"


def _distinct(values: Iterable[object]) -> list[str]:
    return sorted({value for value in values if isinstance(value, str) and len(value) < 100})
