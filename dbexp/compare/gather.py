"""A comparison from the folders of sweeps: reads runs, drops repeats, ranks, names what differs."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dbexp.compare import effects
from dbexp.compare.benchmark import BenchmarkRow, benchmark
from dbexp.compare.comparison import FRONT, MEASURES, Comparison
from dbexp.compare.factors import Factor, factors, words
from dbexp.compare.inference.effect import level
from dbexp.compare.inference.estimate import EffectEstimate, Rule
from dbexp.compare.published import PublishedRow, published
from dbexp.compare.ranking import RankedRun, front, over_seeds
from dbexp.compare.recommendation import recommendation
from dbexp.compare.references import references
from dbexp.compare.scores import picture_scores
from dbexp.compare.standing import Standing, standings
from dbexp.config.values import objectives
from dbexp.core.errors import ConfigError
from dbexp.evaluate.columns import RECOMMEND
from dbexp.evaluate.objective import problem
from dbexp.evaluate.report import BACKBONES
from dbexp.runs.names import matters, setting
from dbexp.runs.record import Run, columns_of, job_name, objectives_of, ranked, ranking, scan


def compare(sweeps: Sequence[Path], objective: str | None = None) -> Comparison:
    """Read sweeps and work out what they say.

    Args:
        sweeps: folders of sweeps, or of single runs.
        objective: what ranks, as on the command line; None: the runs' own.

    Raises:
        ConfigError: a folder holds no run, or there is no such column; all problems at once.
    """
    runs = {sweep: scan(sweep) for sweep in dict.fromkeys(sweeps)}
    all_runs = [run for members in runs.values() for run in members]
    problems = [_nothing(sweep) for sweep, members in runs.items() if not members]
    names = tuple(objectives(objective)) or objectives_of(all_runs)
    problems += [complaint for name in names if (complaint := problem(name, columns_of(all_runs)))]
    if problems:
        raise ConfigError(problems)
    folders = {_letter(number) if len(runs) > 1 else "": sweep for number, sweep in enumerate(runs)}
    ids = {run.folder: f"{name}{job_name(run.folder, sweep)}" for name, sweep in folders.items() for run in runs[sweep]}
    distinct, notes = _without_repeats(all_runs, ids)
    return _compare(folders, names, distinct, ids, notes)


def _nothing(sweep: Path) -> str:
    why = "holds no run (no result.json, no .hydra in its folders)" if sweep.is_dir() else "is no folder"
    return f"{sweep}: {why}; give the folder of a sweep, such as multirun/DATE/TIME"


def _letter(number: int) -> str:
    rounds, index = divmod(number, len(string.ascii_uppercase))
    return f"{string.ascii_uppercase[index]}{f'{rounds}.' if rounds else ''}"


def _without_repeats(runs: Sequence[Run], ids: Mapping[Path, str]) -> tuple[list[Run], list[str]]:
    """The same run in two sweeps counts once, or it would pass for a second seed."""
    first: dict[tuple[tuple[str, str], ...], Run] = {}
    distinct, notes = [], []
    for run in runs:
        config = {name: setting(value) for name, value in run.config.items()}
        key = tuple(sorted((k, v) for k, v in config.items() if matters(k)))
        if run.report and key in first:
            notes.append(f"{ids[run.folder]} repeats {ids[first[key].folder]} and is left out.")
            continue
        if run.report:
            first[key] = run
        distinct.append(run)
    return distinct, notes


def _compare(
    sweeps: Mapping[str, Path],
    objectives: Sequence[str],
    runs: Sequence[Run],
    ids: Mapping[Path, str],
    notes: list[str],
) -> Comparison:
    swept, objective = factors(runs), ranking(runs, objectives[0])
    axes = (objectives[1], objectives[0], *objectives[2:]) if len(objectives) > 1 else FRONT
    order = [*ranked(runs, objective), *(run for run in runs if run.report is None)]
    unbeaten = {run.folder for run in front(order, axes)}
    entries = [_entry(run, swept, ids[run.folder], run.folder in unbeaten) for run in order]
    finished = [entry for entry in entries if entry.run.report]
    pictures = picture_scores(finished, swept, tuple(dict.fromkeys((RECOMMEND, *objectives))))
    evidence = effects.evidence_of(pictures, objective)
    confidence = effects.confidence_of(finished)
    steps = effects.effects(finished, evidence, swept, confidence)

    parameters = pictures.parameters

    def levels(of: Standing) -> dict[str, EffectEstimate]:
        setting, rule = [of.settings[name] for name in parameters], Rule(confidence)
        means = {column: level(evidence[column], setting, rule) for column in MEASURES if column in evidence}
        return {column: mean for column, mean in means.items() if mean is not None}

    def stand(by: str) -> list[Standing]:
        return standings(finished, pictures, evidence.get(by), by, swept, confidence)

    ranked_settings = stand(objective)
    labels = tuple(dict.fromkeys(label for e in finished if (label := _label(e.run))))
    beside = published((str(entry.run.config.get("experiment")) for entry in finished), bool(labels))
    by_score = ranked_settings if objective == RECOMMEND else stand(RECOMMEND)
    return Comparison(
        sweeps=dict(sweeps),
        objective=objective,
        recommendation=recommendation(by_score, ranked_settings, pictures.subjects, axes),
        factors=tuple(swept),
        entries=tuple(entries),
        standings=tuple(ranked_settings),
        effects=tuple(steps),
        confidence=confidence,
        pictures=pictures,
        noise=effects.noise(over_seeds(entry.run for entry in finished)),
        references=tuple(references([(entry.title, entry.run.report) for entry in finished if entry.run.report])),
        scales=effects.scales(finished),
        columns=columns_of(entry.run for entry in finished),
        labels=labels,
        benchmark=_benchmark(ranked_settings, levels, pictures.subjects, beside),
        notes=(*notes, *_pruned(runs), *_notes(finished, swept)),
    )


def _benchmark(
    settings: Sequence[Standing],
    levels: Callable[[Standing], Mapping[str, EffectEstimate]],
    subjects: Mapping[str, str],
    beside: Sequence[PublishedRow],
) -> tuple[BenchmarkRow, ...]:
    if len(set(subjects.values())) < 2 and not beside:
        return ()
    return benchmark(settings, [levels(standing) for standing in settings], subjects, beside)


def _entry(run: Run, swept: Sequence[Factor], name: str, on_front: bool) -> RankedRun:
    settings = {factor.name: setting(run.config.get(factor.name)) for factor in swept} if run.config else {}
    return RankedRun(run, name, f"{name}: {words(settings, swept)}".removesuffix(": "), settings, on_front)


def _label(run: Run) -> str | None:
    """The caveats of a run's model and of its backbones."""
    labels = (run.config.get("model.label"), run.report.label if run.report else None)
    return "; ".join(dict.fromkeys(str(label) for label in labels if label)) or None


def _pruned(runs: Sequence[Run]) -> list[str]:
    """What runs that halving stopped mean for everything else that is told."""
    stopped = sum(run.status == "pruned" for run in runs)
    if not stopped:
        return []
    return [
        f"{stopped} of {len(runs)} runs were stopped early by halving, and were judged by less than the others: what"
        " is best, and what a parameter changes, is said of those that went on."
    ]


def _notes(finished: Sequence[RankedRun], swept: Sequence[Factor]) -> list[str]:
    notes = []
    reports = [entry.run.report for entry in finished if entry.run.report]
    backbones = {tuple(report.backbones.get(name) for name in BACKBONES) for report in reports}
    more = {(name, of) for report in reports for name, of in report.backbones.items() if name not in BACKBONES}
    notes += [f"Columns of {name} are measured by {of}." for name, of in sorted(more)]
    if len(backbones) > 1:
        notes.append("These runs were measured with different backbones: their numbers cannot be compared.")
    for factor in swept:
        if factor.is_measure:
            notes.append(
                f"{factor.name} differs between runs: it changes how scores are made, so they cannot be compared."
            )
        elif factor.together and not factor.is_subject:
            followers = ", ".join(factor.together[:6]) + (", …" if len(factor.together) > 6 else "")
            notes.append(f"{factor.name} never varies without {followers}: their effects cannot be told apart.")
    return notes
