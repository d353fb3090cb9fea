"""A comparison from the folders of sweeps: reads runs, drops repeats, ranks, names what differs."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from dbexp.compare import effects, table
from dbexp.compare.comparison import FRONT, MEASURES, Comparison, RankedRun, Reference
from dbexp.compare.factors import Factor, factors, words
from dbexp.compare.statistics import pareto
from dbexp.core.errors import ConfigError, listed
from dbexp.evaluate.columns import COLUMNS, REFERENCES
from dbexp.evaluate.functional import Estimate
from dbexp.runs.names import matters, setting
from dbexp.runs.record import Run, first_of, over_seeds, ranked, scan


def compare(sweeps: Sequence[Path], objective: str | None = None) -> Comparison:
    """Read sweeps and work out what they say.

    Args:
        sweeps: folders of sweeps, or of single runs.
        objective: the column that ranks; None: the runs' own.

    Raises:
        ConfigError: a folder holds no run, or there is no such column; all problems at once.
    """
    found = {sweep: scan(sweep) for sweep in dict.fromkeys(sweeps)}
    problems = [_nothing(sweep) for sweep, runs in found.items() if not runs]
    wanted = first_of(objective or _own_objective([run for runs in found.values() for run in runs]))
    if wanted not in COLUMNS or COLUMNS[wanted].better == "neither":
        ranking = ", ".join(name for name, column in COLUMNS.items() if column.better != "neither")
        problems.append(f"objective={wanted}: is no column that ranks runs; choose one of {ranking}")
    if problems:
        raise ConfigError(problems)
    names = {_letter(place) if len(found) > 1 else "": sweep for place, sweep in enumerate(found)}
    ids = {
        run.folder: f"{name}{run.folder.name}" if name else run.folder.name
        for name, sweep in names.items()
        for run in found[sweep]
    }
    kept, notes = _without_repeats([run for runs in found.values() for run in runs], ids)
    return _compare(names, wanted, kept, ids, notes)


def _nothing(sweep: Path) -> str:
    why = "holds no run (no result.json, no .hydra in its folders)" if sweep.is_dir() else "is no folder"
    return f"{sweep}: {why}; give the folder of a sweep, such as multirun/DATE/TIME"


def _own_objective(runs: Sequence[Run]) -> str:
    return next((str(run.config["objective"]) for run in runs if run.config.get("objective")), MEASURES[0])


def _letter(place: int) -> str:
    letters = string.ascii_uppercase
    return letters[place] if place < len(letters) else f"{letters[place % len(letters)]}{place // len(letters)}."


def _without_repeats(runs: Sequence[Run], ids: Mapping[Path, str]) -> tuple[list[Run], list[str]]:
    """The same run in two sweeps counts once, or it would pass for a second seed."""
    seen: dict[tuple[tuple[str, str], ...], Run] = {}
    kept, notes = [], []
    for run in runs:
        config = {name: setting(value) for name, value in run.config.items()}
        key = tuple(sorted((k, v) for k, v in config.items() if matters(k)))
        if run.report and key in seen:
            notes.append(f"{ids[run.folder]} repeats {ids[seen[key].folder]} and is left out.")
            continue
        if run.report:
            seen[key] = run
        kept.append(run)
    return kept, notes


def _compare(
    sweeps: Mapping[str, Path], objective: str, runs: Sequence[Run], ids: Mapping[Path, str], notes: list[str]
) -> Comparison:
    swept = factors(runs)
    order = [*ranked(runs, objective), *(run for run in runs if run.report is None)]
    front = _front(order)
    entries = [_entry(run, swept, ids[run.folder], front.get(run.folder, False)) for run in order]
    finished = [entry for entry in entries if entry.run.report]
    trials = {entry.run.folder: effects.trial(entry) for entry in finished}
    how = effects.resampling(finished)
    groups = over_seeds([entry.run for entry in finished])
    columns = [name for name in COLUMNS if any(e.run.report and name in e.run.report.rows["run"] for e in finished)]
    return Comparison(
        sweeps=dict(sweeps),
        objective=objective,
        factors=tuple(swept),
        entries=tuple(entries),
        standings=tuple(effects.standings(groups, entries, trials, objective, swept, how)),
        effects=tuple(effects.effects(swept, finished, trials, how)),
        noise=effects.noise(groups),
        references=tuple(_references(finished)),
        scales=effects.scales(finished),
        columns=tuple(columns),
        labels=tuple(dict.fromkeys(label for e in finished if (label := _label(e.run)))),
        notes=(*notes, *_notes(finished, swept)),
    )


def _entry(run: Run, swept: Sequence[Factor], name: str, on_front: bool) -> RankedRun:
    settings = {factor.name: setting(run.config.get(factor.name)) for factor in swept} if run.config else {}
    return RankedRun(run, name, f"{name}: {words(settings, swept)}".removesuffix(": "), settings, on_front)


def _front(runs: Sequence[Run]) -> dict[Path, bool]:
    points = [(run.value(FRONT[0]), run.value(FRONT[1])) for run in runs]
    return dict(zip((run.folder for run in runs), pareto(points), strict=True))


def _references(finished: Sequence[RankedRun]) -> list[Reference]:
    """Rows that runs share, once; with the ids of their runs where there are several of a kind."""
    found = []
    for key, title in REFERENCES.items():
        owners: dict[str, list[str]] = {}
        columns: dict[str, Mapping[str, Estimate]] = {}
        for entry in finished:
            rows = entry.run.report.rows if entry.run.report else {}
            if key in rows:
                written = repr(dict(rows[key]))  # NaN differs from itself, its spelling does not
                owners.setdefault(written, []).append(entry.id)
                columns[written] = rows[key]
        for written, content in columns.items():
            name = title if len(columns) == 1 else f"{title} of {_whose(owners[written], finished)}"
            found.append(Reference(key, name, content))
    return found


def _whose(own: Sequence[str], finished: Sequence[RankedRun]) -> str:
    """What some runs alone have in common, else their ids."""
    names = {entry.id: entry.title.removeprefix(f"{entry.id}: ") for entry in finished}
    common = table.common_words([names[one] for one in own], [name for one, name in names.items() if one not in own])
    return common or listed(own, 4)


def _label(run: Run) -> str | None:
    """The caveats of a run's model and of its backbones."""
    labels = (run.config.get("model.label"), run.report.label if run.report else None)
    return "; ".join(dict.fromkeys(str(label) for label in labels if label)) or None


def _notes(finished: Sequence[RankedRun], swept: Sequence[Factor]) -> list[str]:
    notes = []
    backbones = {tuple(sorted(e.run.report.backbones.items())) for e in finished if e.run.report}
    if len(backbones) > 1:
        notes.append("These runs were measured with different backbones: their numbers cannot be compared.")
    for factor in swept:
        if factor.is_measure:
            notes.append(
                f"{factor.name} differs between runs: it changes how scores are made, so they cannot be compared."
            )
        elif factor.together and not factor.is_subject:
            others = ", ".join(factor.together[:6]) + (", …" if len(factor.together) > 6 else "")
            notes.append(f"{factor.name} never varies without {others}: their effects cannot be told apart.")
    return notes
