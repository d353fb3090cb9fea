"""What `dbexp-estimate` can be asked for beside a config."""

from __future__ import annotations

from dataclasses import dataclass

from dbexp.config import fields
from dbexp.config.fields import bounded, choice
from dbexp.core.errors import Problems

USAGE = """\
dbexp-estimate: what a run or a sweep would take on a card, without weights and without the card

  dbexp-estimate model=flux2_klein_4b card=4090
  dbexp-estimate -m model=sd15 lora.rank=4,8,16 prior.weight=0,1 card=a100 price_per_hour=1.5
  dbexp-estimate model=sdxl memory=16 rate=90 bandwidth=500 format=json

Every other NAME=VALUE is one of dbexp, as `dbexp --help` has them; values with commas between them make a sweep.
"""
CARD_NAMES = {
    "h100": "80 GB",
    "h200": "141 GB",
    "a100": "80 GB",
    "4090": "24 GB",
    "3090": "24 GB",
    "t4": "16 GB",
    "l4": "24 GB",
    "this": "that of this machine",
}


@dataclass
class EstimateConfig:
    """One call of `dbexp-estimate`."""

    card: str | None = choice(None, CARD_NAMES)
    """The GPU; null: `memory`, `rate` and `bandwidth` say what it is, or else it is that of this machine."""
    memory: float | None = bounded(None, above=0, most=1e6)
    """Its memory in GiB; null: as the card has."""
    rate: float | None = bounded(None, above=0, most=1e6)
    """TFLOP/s of its matrix products in 16 bits, dense; null: as the card has."""
    bandwidth: float | None = bounded(None, above=0, most=1e9)
    """GB/s of its memory; null: as the card has."""
    price_per_hour: float | None = bounded(None, at_least=0, most=1e6)
    """Money for an hour of it, in whatever currency; null: no sum is given."""
    format: str = choice("text", {"text": "a page", "json": "one object"})
    """What is printed."""


def check(settings: EstimateConfig) -> None:
    """Raises:
    ConfigError: with every problem of the settings.
    """
    problems = Problems()
    problems.messages += fields.problems(settings)
    given = [name for name in ("memory", "rate", "bandwidth") if getattr(settings, name) is not None]
    problems.require(
        settings.card is not None or len(given) in (0, 3),
        f"{', '.join(given)}: say all of memory, rate and bandwidth, or card=NAME for the rest",
    )
    problems.raise_if_any()
