"""What is searched, in Hydra's grammar, as Optuna's distributions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from dbexp.core.errors import ConfigError

Params = dict[str, Any]
"""Parameter -> its value in a trial."""


@dataclass(frozen=True)
class Space:
    """Parameters that are searched, and those that are not.

    Attributes:
        searched: name as on the command line -> where its value comes from.
        fixed: the other overrides, as they were written.
    """

    searched: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...]

    def words(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The overrides of a trial."""
        return (*(f"{name}={_word(params[name])}" for name in self.searched), *self.fixed)

    def has(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial has a value for everything that is searched."""
        return set(self.searched) <= set(params)

    def points(self) -> list[Params]:
        """Every combination.

        Raises:
            ConfigError: a parameter has no finite number of values.
        """
        endless = [
            f"{name}: an interval has no finite number of values; a grid needs choice(...) or range(...)"
            for name, distribution in self.searched.items()
            if _values(distribution) is None
        ]
        if endless:
            raise ConfigError(endless)
        values = [_values(distribution) or [] for distribution in self.searched.values()]
        return [dict(zip(self.searched, point, strict=True)) for point in itertools.product(*values)]


def read(params: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader) -> Space:
    """The space that settings and the command line describe; of a parameter that both name the latter holds.

    Args:
        params: parameter -> value or sweep, as in a config.
        arguments: of the command line.
        loader: knows the options that a glob(...) matches.

    Raises:
        ConfigError: nothing is searched.
    """
    words = [f"{name}={_word(value)}" for name, value in params.items()]
    parsed: dict[str, Override] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides([*words, *arguments]):
        parsed.pop(override.key_or_group, None)  # the later one also stands later
        parsed[override.key_or_group] = override
    searched = {o.get_key_element(): _distribution(o) for o in parsed.values() if o.is_sweep_override()}
    if not searched:
        raise ConfigError(
            "hydra.sweeper.params: nothing is searched; name a parameter and what it may be, here or on the command "
            "line, as in 'lora.rank=choice(4,8,16)' or 'train.lr=tag(log,interval(1e-5,1e-3))'"
        )
    return Space(searched, tuple(str(o.input_line) for o in parsed.values() if not o.is_sweep_override()))


def _distribution(override: Override) -> BaseDistribution:
    """Where the values of a searched parameter come from.

    A range is Hydra's, without its end, so that a grid and a search over one range have the same values; order, and so
    `shuffle`, means nothing here.
    """
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        assert low is not None and high is not None
        if isinstance(low, int) and isinstance(high, int):
            return _made(override, IntDistribution, low, high, log=log)
        return _made(override, FloatDistribution, float(low), float(high), log=log)
    if isinstance(value, RangeSweep):
        numbers = sorted(value.range())
        step = abs(value.step)
        if all(isinstance(number, int) for number in numbers):
            return _made(override, IntDistribution, numbers[0], numbers[-1], step=int(step))
        return _made(override, FloatDistribution, numbers[0], numbers[-1], step=float(step))
    options = value.list if isinstance(value, ChoiceSweep) else override.sweep_iterator()
    return _made(override, CategoricalDistribution, [_choice(option) for option in options])


def _choice(value: Any) -> Any:
    """A choice as Optuna keeps it: numbers are numbers, anything else is what one would type."""
    return value if isinstance(value, (bool, int, float)) else Transformer.str(value)


def _word(value: Any) -> str:
    """The value of an override; a text is in Hydra's grammar already."""
    return value if isinstance(value, str) else str(Transformer.str(value))


def _made(override: Override, kind: type[BaseDistribution], *args: Any, **settings: Any) -> BaseDistribution:
    try:
        return kind(*args, **settings)
    except ValueError as error:  # an interval whose end comes before its start, a logarithm of nothing
        raise ConfigError(f"{override.input_line}: {error}") from None


def _values(distribution: BaseDistribution) -> list[Any] | None:
    """All values; None where there are endlessly many."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [distribution.low + number * distribution.step for number in range(count)]
    return None
