"""Everything a reader is told about one or more sweeps, computed once: results.md and the page only lay it out."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbexp import table
from dbexp.compare.differences import QUIET, setting
from dbexp.compare.factors import Factor, factors
from dbexp.compare.runs import Group, Run, first_of, over_seeds, ranked, scan
from dbexp.compare.statistics import Difference, Moments, Trial, difference, matched, pareto, pooled_deviation
from dbexp.errors import ConfigError
from dbexp.metrics import COLUMNS, Estimate, Report, Resampling

MEASURES = table.PAPER
"""The columns that are compared."""
FRONT = ("clip_t", "dino")
"""x and y of the Pareto front: does it follow the prompt, is it the subject."""


@dataclass(frozen=True)
class Entry:
    """A job among others.

    Attributes:
        run: as read from disk.
        id: its number, with a letter for its sweep where there are several.
        title: id and what tells it from the others.
        settings: factor -> value as written.
        on_front: whether no other run beats it in both columns of `FRONT`.
    """

    run: Run
    id: str
    title: str
    settings: Mapping[str, str]
    on_front: bool


@dataclass(frozen=True)
class Standing:
    """Runs that differ in their seed alone, among others.

    Attributes:
        entries: one or more.
        title: what tells them from the others.
        settings: factor -> value as written, seeds left out.
        moments: column -> mean and deviation over the seeds.
        behind: how much higher the objective is than in the best; None for the best, and where there are no pairs.
    """

    entries: tuple[Entry, ...]
    title: str
    settings: Mapping[str, str]
    moments: Mapping[str, Moments]
    behind: Difference | None


@dataclass(frozen=True)
class Effect:
    """What a step of a parameter changes.

    Attributes:
        factor: the parameter.
        low, high: from and to.
        differences: column -> value at `high` minus value at `low`.
        size: how many times as many parameters the LoRA has at `high`; None where that is the same or unknown.
    """

    factor: Factor
    low: str
    high: str
    differences: Mapping[str, Difference]
    size: float | None = None


@dataclass(frozen=True)
class Reference:
    """What runs are measured against: a row that no training run owns.

    Attributes:
        key: base or real.
        title: as a reader knows it.
        columns: its estimates.
    """

    key: str
    title: str
    columns: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """One or more sweeps.

    Attributes:
        sweeps: name -> folder.
        objective: the column that ranks.
        factors: what differs.
        entries: finished runs, best first; then the others.
        standings: settings, best first.
        effects: per factor and step.
        noise: column -> spread between runs that differ in their seed alone; empty without such.
        references: base models and real images.
        columns: of the table, the paper's first.
        labels: caveats to print beside every number.
        notes: what a reader must know, as sentences.
    """

    sweeps: Mapping[str, Path]
    objective: str
    factors: tuple[Factor, ...]
    entries: tuple[Entry, ...]
    standings: tuple[Standing, ...]
    effects: tuple[Effect, ...]
    noise: Mapping[str, Moments]
    references: tuple[Reference, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def finished(self) -> list[Entry]:
        """Entries that have a report."""
        return [entry for entry in self.entries if entry.run.report]

    @property
    def names(self) -> dict[Path, str]:
        """Folder -> id."""
        return {entry.run.folder: entry.id for entry in self.entries}


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
        key = tuple(sorted((k, v) for k, v in config.items() if k.split(".")[0] not in QUIET))
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
    trials = {entry.run.folder: _trial(entry) for entry in finished}
    how = _resampling(finished)
    groups = over_seeds([entry.run for entry in finished])
    standings = _standings(groups, entries, trials, objective, swept, how)
    usable = [factor for factor in swept if not (factor.is_seed or factor.is_subject or factor.is_measure)]
    effects = [
        effect
        for factor in usable
        for low, high in factor.steps()
        if (effect := _effect(factor, low, high, finished, trials, how)) is not None
    ]
    columns = [name for name in COLUMNS if any(e.run.report and name in e.run.report.rows["run"] for e in finished)]
    return Comparison(
        sweeps=dict(sweeps),
        objective=objective,
        factors=tuple(swept),
        entries=tuple(entries),
        standings=tuple(standings),
        effects=tuple(effects),
        noise=_noise(groups),
        references=tuple(_references(finished)),
        columns=tuple(columns),
        labels=tuple(dict.fromkeys(label for e in finished if (label := _label(e.run)))),
        notes=(*notes, *_notes(finished, swept)),
    )


def _entry(run: Run, swept: Sequence[Factor], name: str, on_front: bool) -> Entry:
    settings = {factor.name: setting(run.config.get(factor.name)) for factor in swept} if run.config else {}
    return Entry(run, name, f"{name}: {_words(settings, swept)}".removesuffix(": "), settings, on_front)


def _words(settings: Mapping[str, str], swept: Sequence[Factor]) -> str:
    return " ".join(f"{factor.title}={settings[factor.name]}" for factor in swept if factor.name in settings)


def _front(runs: Sequence[Run]) -> dict[Path, bool]:
    points = [(_value(run, FRONT[0]), _value(run, FRONT[1])) for run in runs]
    return dict(zip((run.folder for run in runs), pareto(points), strict=True))


def _value(run: Run, column: str) -> float:
    if run.report is None or column not in run.report.rows["run"]:
        return math.nan
    return run.report.rows["run"][column].value


def _trial(entry: Entry) -> Trial:
    report = entry.run.report
    assert report is not None
    subject = str(entry.run.config.get("dataset.name"))
    pairs = {column: _pairs(report, subject, column) for column in MEASURES}
    values = {column: estimate.value for column, estimate in report.rows["run"].items()}
    return Trial(entry.settings, values, pairs)


def _pairs(report: Report, subject: str, column: str) -> Mapping[tuple[str, str, int], float]:
    try:
        return report.pairs(subject, column)
    except KeyError:
        return {}


def _resampling(finished: Sequence[Entry]) -> Resampling:
    """As the runs' own intervals were made."""
    settings = next((e.run.report.settings for e in finished if e.run.report and e.run.report.settings), {})
    how = Resampling()
    return Resampling(
        int(settings.get("resamples", how.resamples)),
        float(settings.get("confidence", how.confidence)),
        int(settings.get("seed", how.seed)),
    )


def _standings(
    groups: Sequence[Group],
    entries: Sequence[Entry],
    trials: Mapping[Path, Trial],
    objective: str,
    swept: Sequence[Factor],
    how: Resampling,
) -> list[Standing]:
    sign = -1 if COLUMNS[objective].better == "lower" else 1
    owner = {entry.run.folder: entry for entry in entries}

    def rank(group: Group) -> float:
        mean = group.mean.get(objective, math.nan)
        return math.inf if math.isnan(mean) else -sign * mean

    order = sorted(groups, key=rank)
    standings = []
    for group in order:
        members = tuple(owner[run.folder] for run in group.runs)
        settings = {f.name: members[0].settings[f.name] for f in swept if not f.is_seed}
        moments = {column: Moments(group.mean[column], group.deviation[column], len(members)) for column in group.mean}
        behind = None if group is order[0] else _between(order[0], group, trials, objective, swept, how)
        title = _words(settings, swept) or (members[0].title if len(members) == 1 else "all runs")
        standings.append(Standing(members, title, settings, moments, behind))
    return standings


def _between(
    best: Group, other: Group, trials: Mapping[Path, Trial], column: str, swept: Sequence[Factor], how: Resampling
) -> Difference | None:
    """Paired by seed; None where the two share no picture."""
    seeds = [factor.name for factor in swept if factor.is_seed]

    def seed(trial: Trial) -> tuple[str, ...]:
        return tuple(trial.settings[name] for name in seeds)

    mine = {seed(trials[run.folder]): trials[run.folder] for run in best.runs}
    pairs = [(mine[seed(one)], one) for run in other.runs if seed(one := trials[run.folder]) in mine]
    if not pairs or column not in MEASURES:
        return None
    found = difference(pairs, column, how)
    return None if math.isnan(found.estimate.low) else found


def _effect(
    factor: Factor, low: str, high: str, finished: Sequence[Entry], trials: Mapping[Path, Trial], how: Resampling
) -> Effect | None:
    pairs = matched([trials[entry.run.folder] for entry in finished], factor.name, low, high)
    if not pairs:
        return None
    sizes = [
        sum(entry.run.parameters or 0 for entry in finished if entry.settings[factor.name] == level)
        / max(1, sum(entry.settings[factor.name] == level for entry in finished))
        for level in (low, high)
    ]
    ratio = sizes[1] / sizes[0] if all(sizes) else 1.0
    found = {column: difference(pairs, column, how) for column in MEASURES}
    return Effect(factor, low, high, found, None if abs(ratio - 1) < 0.01 else ratio)


def _noise(groups: Sequence[Group]) -> dict[str, Moments]:
    found = {
        column: pooled_deviation([[_value(run, column) for run in group.runs] for group in groups])
        for column in MEASURES
    }
    return {column: moments for column, moments in found.items() if moments.n}


def _references(finished: Sequence[Entry]) -> list[Reference]:
    """Rows that runs share, once; with the ids of their runs where there are several of a kind."""
    found = []
    for key, title in table.REFERENCES.items():
        owners: dict[str, list[str]] = {}
        columns: dict[str, Mapping[str, Estimate]] = {}
        for entry in finished:
            rows = entry.run.report.rows if entry.run.report else {}
            if key in rows:
                written = repr(dict(rows[key]))  # NaN differs from itself, its spelling does not
                owners.setdefault(written, []).append(entry.id)
                columns[written] = rows[key]
        for written, content in columns.items():
            own = owners[written]
            more = f" and {len(own) - 4} more" if len(own) > 4 else ""
            found.append(
                Reference(key, title if len(columns) == 1 else f"{title} of {', '.join(own[:4])}{more}", content)
            )
    return found


def _label(run: Run) -> str | None:
    """The caveats of a run's model and of its backbones."""
    labels = (run.config.get("model.label"), run.report.label if run.report else None)
    return "; ".join(dict.fromkeys(str(label) for label in labels if label)) or None


def _notes(finished: Sequence[Entry], swept: Sequence[Factor]) -> list[str]:
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
