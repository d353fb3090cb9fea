"""Pictures of a sweep as arrays, and the paired differences between its runs. NumPy alone; a dict of columns will do.

A run is a value of each swept parameter, a training seed and a subject. Two runs make a pair if they agree in all but
what is compared; pictures make a pair if they agree in prompt and image as well. What both share then cancels: an easy
prompt, the same initial noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dbexp.core.errors import ConfigError

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Labels: TypeAlias = NDArray[np.str_]


class Columns(Protocol):
    """A table by the names of its columns, each as long as the others: a DataFrame, or a dict of lists."""

    def __iter__(self) -> Iterator[Any]: ...

    def __contains__(self, name: Any, /) -> bool: ...

    def __getitem__(self, name: Any, /) -> Any: ...


REQUIRED = ("value", "prompt", "image", "seed")
RESERVED = (*REQUIRED, "subject")
"""Columns that are no swept parameter."""
_ROUNDS, _CLOSE = 500, 1e-10  # of filling gaps, in units of the table's spread


@dataclass(frozen=True)
class Cube:
    """Everything known of one subject.

    Attributes:
        subject: its name; empty where pictures do not name one.
        parameters: names of the swept parameters, P.
        settings: [runs, P] values as written.
        seeds: [runs] training seeds as written.
        prompts: distinct, sorted.
        values: [runs, prompts, images], NaN where a picture is missing.
    """

    subject: str
    parameters: tuple[str, ...]
    settings: Labels
    seeds: Labels
    prompts: tuple[str, ...]
    values: FloatArray


@dataclass(frozen=True)
class Pairs:
    """Differences between runs of one subject that agree in all but what is compared.

    Attributes:
        differences: [pairs, prompts], second minus first, mean over the images that both have; NaN for none.
        contexts: [pairs, P] values of the swept parameters that both share; empty text for what is compared.
        seeds: [pairs] training seeds.
        pictures: [pairs] number of pairs of pictures.
    """

    differences: FloatArray
    contexts: Labels
    seeds: Labels
    pictures: IntArray

    def only(self, mask: NDArray[np.bool_]) -> Pairs:
        """Some of the pairs, [pairs] of truth values."""
        return Pairs(self.differences[mask], self.contexts[mask], self.seeds[mask], self.pictures[mask])


def arrange(pictures: Columns) -> tuple[Cube, ...]:
    """A cube a subject, in the order of their names.

    Args:
        pictures: a row per picture with columns `value`, `prompt`, `image`, `seed`, optionally `subject`; every other
            column is a swept parameter. Values that are NaN or infinite count as missing.

    Raises:
        ConfigError: a column is missing, empty or of another length, or two rows speak of the same picture.
    """
    absent = [name for name in REQUIRED if name not in pictures]
    if absent:
        present = ", ".join(str(name) for name in pictures) or "none"
        raise ConfigError([f"pictures: column {name} is missing; there are {present}" for name in absent])
    columns = {str(name): np.asarray(pictures[name]) for name in pictures}
    _check_lengths(columns)
    values = _numbers(columns["value"])
    if not np.isfinite(values).any():
        raise ConfigError("pictures: no picture has a value; column value is empty")
    labels = {name: _labels(name, column) for name, column in columns.items() if name != "value"}
    labels.setdefault("subject", np.full(len(values), ""))
    parameters = tuple(sorted(name for name in labels if name not in RESERVED))
    return tuple(
        _cube(str(subject), parameters, {name: column[labels["subject"] == subject] for name, column in labels.items()},
              values[labels["subject"] == subject])
        for subject in np.unique(labels["subject"])
    )  # fmt: skip


def _check_lengths(columns: Mapping[str, NDArray[Any]]) -> None:
    rows = len(columns["value"])
    if not rows:
        raise ConfigError("pictures: there is no row; give one per picture")
    wrong = {name: column.shape for name, column in columns.items() if column.shape != (rows,)}
    if wrong:
        raise ConfigError([f"pictures: column {n} has shape {s}, value has ({rows},)" for n, s in wrong.items()])


def _numbers(column: NDArray[Any]) -> FloatArray:
    try:
        values = column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pictures: column value is not of numbers ({error})") from None
    return np.where(np.isfinite(values), values, np.nan)


def _labels(name: str, column: NDArray[Any]) -> Labels:
    labels = column.astype(str)
    if name in RESERVED:
        empty = np.flatnonzero(np.isin(labels, ("nan", "None", "<NA>", "NaT")))
        if len(empty):
            raise ConfigError(f"pictures: column {name} is empty in row {empty[0]} and {len(empty) - 1} others")
    return labels


def _cube(subject: str, parameters: tuple[str, ...], labels: Mapping[str, Labels], values: FloatArray) -> Cube:
    names = [*parameters, "seed"]
    codes = np.stack([np.unique(labels[name], return_inverse=True)[1] for name in names], axis=1)
    _, first, run = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    run = run.reshape(-1)
    prompts, prompt = np.unique(labels["prompt"], return_inverse=True)
    images, image = np.unique(labels["image"], return_inverse=True)
    shape = (len(first), len(prompts), len(images))
    cell = np.ravel_multi_index((run, prompt, image), shape)
    counts = np.bincount(cell, minlength=math.prod(shape))
    if counts.max() > 1:
        row = int(np.flatnonzero(cell == counts.argmax())[0])
        where = ", ".join(f"{name}={labels[name][row]}" for name in (*names, "prompt", "image"))
        raise ConfigError(f"pictures: {counts.max()} rows speak of one picture ({where}); keep one of them")
    flat = np.full(math.prod(shape), np.nan)
    flat[cell] = values
    cube = flat.reshape(shape)
    has_value = np.isfinite(cube).any(axis=(1, 2))  # a run without a value is no run
    first = first[has_value]
    settings = np.stack([labels[name][first] for name in parameters], axis=1) if parameters else _no_columns(first)
    return Cube(subject, parameters, settings, labels["seed"][first], tuple(str(p) for p in prompts), cube[has_value])


def _no_columns(rows: NDArray[Any]) -> Labels:
    return np.empty((len(rows), 0), dtype=np.str_)


def level_of(cubes: Sequence[Cube], parameter: str, value: object) -> str:
    """A value of a parameter as the pictures write it: 4 is "4", "4.0" or 4.0.

    Raises:
        ConfigError: there is no such parameter, or no picture has the value.
    """
    names = cubes[0].parameters
    if parameter not in names:
        raise ConfigError(f"parameter={parameter}: is no swept parameter of pictures; choose one of {', '.join(names)}")
    levels = levels_of(cubes, parameter)
    matching = [level for level in levels if _is_same(level, str(value))]
    if not matching:
        raise ConfigError(f"{parameter}={value}: no picture has it; there are {', '.join(levels)}")
    return matching[0]


def levels_of(cubes: Sequence[Cube], parameter: str) -> tuple[str, ...]:
    """Distinct values of a parameter; numbers ascending, words in alphabetical order."""
    column = cubes[0].parameters.index(parameter)
    levels = sorted({str(level) for cube in cubes for level in cube.settings[:, column]})
    return tuple(sorted(levels, key=_number) if all(math.isfinite(_number(level)) for level in levels) else levels)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_same(level: str, value: str) -> bool:
    return level.casefold() == value.casefold() or _number(level) == _number(value)


def step_pairs(cube: Cube, parameter: str, low: str, high: str) -> Pairs:
    """Pairs of runs at two values of a parameter that agree in every other parameter and in the seed."""
    column = cube.parameters.index(parameter)
    contexts = cube.settings.copy()
    contexts[:, column] = ""
    return _pairs(cube, contexts, cube.settings[:, column] == low, cube.settings[:, column] == high)


def setting_pairs(cube: Cube, low: Sequence[str], high: Sequence[str]) -> Pairs:
    """Pairs of runs at two settings, each a value per parameter, that agree in the seed."""
    contexts = np.full_like(cube.settings, "")
    is_low, is_high = ((cube.settings == np.asarray(setting)).all(axis=1) for setting in (low, high))
    return _pairs(cube, contexts, is_low, is_high)


def setting_runs(cube: Cube, setting: Sequence[str]) -> Pairs:
    """The runs of a setting as they are, each as if it were paired with nothing."""
    runs = np.flatnonzero((cube.settings == np.asarray(setting)).all(axis=1))
    values = cube.values[runs]
    means = mean_over(values)
    pictures = np.isfinite(values).sum(axis=(1, 2))
    return Pairs(means, np.full_like(cube.settings[runs], ""), cube.seeds[runs], pictures).only(pictures > 0)


def _pairs(cube: Cube, contexts: Labels, is_low: NDArray[np.bool_], is_high: NDArray[np.bool_]) -> Pairs:
    def key(run: int) -> tuple[str, ...]:
        return (*contexts[run], cube.seeds[run])

    partners = {key(run): run for run in np.flatnonzero(is_high).tolist()}
    runs = [(run, partners[key(run)]) for run in np.flatnonzero(is_low).tolist() if key(run) in partners]
    first, second = (np.array([pair[side] for pair in runs], dtype=np.int64) for side in (0, 1))
    differences = cube.values[second] - cube.values[first]
    means = mean_over(differences)
    usable = np.asarray(np.isfinite(means).any(axis=1))  # a pair of runs without a common picture is none
    pictures = np.isfinite(differences).sum(axis=(1, 2))
    return Pairs(means, contexts[first], cube.seeds[first], pictures).only(usable)


def mean_over(values: FloatArray) -> FloatArray:
    """Mean over the last axis of what is there; NaN for nothing."""
    finite = np.isfinite(values)
    counts = finite.sum(axis=-1)
    sums = np.where(finite, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0))


def without_gaps(table: FloatArray) -> FloatArray:
    """Missing cells filled with what their row and their column have in common with the rest.

    The least-squares fit of row + column to the cells that are there, repeated until it stays (Yates, "The analysis of
    replicated experiments when the field results are incomplete", Empire J. Exp. Agric. 1, 1933). A prompt that one
    run lacks then does not pass for an effect of that run.

    Args:
        table: [rows, columns]; no row and no column may be empty.
    """
    gaps = ~np.isfinite(table)
    if not gaps.any():
        return table
    complete = np.where(gaps, mean_over(table)[:, None], table)
    enough = _CLOSE * (np.nanstd(table) or 1.0)
    for _ in range(_ROUNDS):
        fit = complete.mean(axis=1, keepdims=True) + complete.mean(axis=0, keepdims=True) - complete.mean()
        change = np.abs(fit - complete)[gaps].max()
        complete = np.where(gaps, fit, complete)
        if change < enough:
            break
    return np.asarray(complete)
