"""Bounds and choices beside their fields; and what they list is implemented."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import pytest

from dbexp.config import fields, schema
from dbexp.config.families import FAMILIES
from dbexp.config.fields import Bounds, Choice, bounded, choice, comma_list, keyed, newer
from dbexp.core.store import Store


@dataclass
class Inner:
    """Settings in settings."""

    share: float = bounded(0.5, above=0, at_most=1)
    """How much."""


@dataclass
class Outer:
    """Some settings."""

    count: int | None = bounded(None, at_least=1)
    """How many."""
    kinds: list[str] = choice(["a"], {"a": "first", "b": ""}, commas=True)
    """Which."""
    mode: str | None = choice(None, ("x", "y"))
    """How."""
    scales: list[float] = comma_list([1.0])
    """How strongly."""
    free: float = 0.0
    """Anything."""
    inner: Inner = field(default_factory=Inner)
    """More."""


def test_what_is_allowed() -> None:
    assert fields.problems(Outer()) == []
    assert fields.problems(Outer(1, ["a", "b"], "y", [], -1e300, Inner(1))) == []


def test_every_value_outside_its_rule_is_named() -> None:
    nan = float("nan")
    assert fields.problems(Outer(0, ["a", "c"], "z", [1.0, float("inf")], nan, Inner(0.0))) == [
        "count=0: must be at least 1",
        "kinds=c: choose one of a, b",
        "mode=z: choose one of x, y, or null",
        "scales=inf: must be a finite number",
        "free=nan: must be a finite number",
        "inner.share=0.0: must be greater than 0 and at most 1",
    ]


def test_a_list_is_not_shared_between_instances() -> None:
    Outer().kinds.append("b")
    assert Outer().kinds == ["a"]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Bounds(), ""),
        (Bounds(at_least=8), "At least 8."),
        (Bounds(above=0, at_most=1), "Greater than 0 and at most 1."),
        (Bounds(at_least=0, below=1), "At least 0 and less than 1."),
        (Choice({"a": "", "b": ""}, or_null=True), "One of a, b."),
        (Choice({"a": "first", "b": ""}, or_null=False), "a: first; b."),
    ],
)
def test_the_sentence_of_the_help(rule: fields.Rule, sentence: str) -> None:
    assert rule.sentence() == sentence


def test_what_is_declared_is_implemented() -> None:
    from dbexp.core import device, images
    from dbexp.evaluate.backbones import lpips

    assert {"auto", *device.DTYPES} == set(schema.PRECISIONS)
    assert set(images._RESAMPLING) == set(schema.INTERPOLATIONS)
    assert set(lpips._ZOO) == set(schema.LPIPS_NETS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_implements_what_it_lists(name: str) -> None:
    from dbexp import models
    from tests import builders

    family, store = FAMILIES[name], Store(builders.scratch() / "random")
    base = models.load(schema.ModelConfig(name=name, family=name, path="random", device="cpu"), store)
    assert all(base.pipeline(sampler).scheduler for sampler in family.samplers)
    assert len({base.sites(family.denoiser, sites) for sites in family.sites}) == len(family.sites)
    assert all(base.sites(part, "attention") for part in family.text_parts)


@dataclass
class Grown(Outer):
    """The same settings in a later release."""

    shift: float | None = newer(bounded(None, above=0), neutral=None)
    """A number."""
    scheme: str = newer("fast", neutral="slow")
    """Whose default is not what was before."""


def test_what_is_newer_and_neutral_is_no_part_of_a_key() -> None:
    before = asdict(Outer(inner=Inner(share=0.25)))
    assert keyed(Outer(inner=Inner(share=0.25))) == before
    assert keyed(Grown(inner=Inner(share=0.25), scheme="slow")) == before
    assert keyed(Grown(inner=Inner(share=0.25))) == {**before, "scheme": "fast"}
    assert keyed(Grown(inner=Inner(share=0.25), shift=3.0, scheme="slow")) == {**before, "shift": 3.0}
    assert fields.problems(Grown(shift=0.0)) == ["shift=0.0: must be greater than 0"]
