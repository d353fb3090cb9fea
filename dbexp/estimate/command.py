"""The command `dbexp-estimate`: settings, configs, counts, page."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dbexp import api
from dbexp.config import overrides
from dbexp.config.explain import user_errors
from dbexp.config.schema import Config
from dbexp.config.values import plain
from dbexp.config.words import parse
from dbexp.core import limits
from dbexp.core.errors import ConfigError, Problems
from dbexp.core.store import Store
from dbexp.estimate.cards import CARDS, GIB, Card
from dbexp.estimate.kept import base_files, recall
from dbexp.estimate.settings import CARD_NAMES, USAGE, EstimateConfig, check
from dbexp.sample.prompts import choose
from dbexp.train.measured import Fact, facts

PROGRAM = "dbexp-estimate"
_SWEEP = ("-m", "--multirun")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 a mistake, 130 by Ctrl-C, 143 by SIGTERM.

    Args:
        words: the command line; None: that of the process.
    """
    words = sys.argv[1:] if words is None else words
    with user_errors(PROGRAM, "what was counted is kept; the same command goes on from there"):
        names = {field.name for field in dataclasses.fields(EstimateConfig)}
        own = [word for word in words if word.partition("=")[0] in names or word in ("-h", "--help")]
        others = [word for word in words if word not in own and word not in _SWEEP]
        settings = parse(EstimateConfig, own, USAGE)
        check(settings)
        card = pick_card(settings)
        configs = compose(others)
        store, price = Store.of(configs[0].store), settings.price_per_hour
        asked = question(configs, card, price, facts(store.root))
        limits.rehearse(lambda: recall(store, asked, lambda: work_out(configs, card, price, store)))
        answer = recall(store, asked, lambda: work_out(configs, card, price, store))
        print(json.dumps(answer["plain"], indent=1) if settings.format == "json" else answer["page"], flush=True)


def question(configs: Sequence[Config], card: Card, price: float | None, noted: Sequence[Fact]) -> dict[str, Any]:
    """All that an answer depends on.

    Args:
        configs: of the runs.
        price: of the card, per hour.
        noted: what was measured before.
    """
    return {
        "asked": [plain(config) for config in configs],
        "prompts": [[prompt.text for prompt in choose(config.sample.prompts, config.dataset)] for config in configs],
        "files": base_files(config.model for config in configs),
        "card": dataclasses.asdict(card),
        "price": price,
        "facts": [dataclasses.asdict(fact) for fact in noted],
    }


def work_out(configs: Sequence[Config], card: Card, price: float | None, store: Store) -> dict[str, Any]:
    """An answer: `plain`, as JSON has it, and `page`."""
    from dbexp.estimate import estimate, show  # torch: seconds
    from dbexp.estimate.measure import Measure

    with tempfile.TemporaryDirectory(prefix="dbexp-estimate-") as folder, quiet():
        told = estimate.estimate(configs, card, Measure(Path(folder), card, store), price, facts(store.root))
    return {"plain": estimate.plain(told), "page": show.page(told)}


def compose(words: Sequence[str]) -> list[Config]:
    """The configs of the jobs that a command line of `dbexp` has.

    Raises:
        ConfigError: with the problems of all of them.
    """
    configs, problems = [], Problems()
    for job in overrides.jobs(words):
        try:
            configs.append(api.compose(job))
        except ConfigError as error:
            problems.messages += error.problems
    problems.raise_if_any()
    return configs


def pick_card(settings: EstimateConfig) -> Card:
    """The card that is meant.

    Raises:
        ConfigError: that of this machine is, and it has none.
    """
    if settings.card is None and settings.memory and settings.rate and settings.bandwidth:
        card = Card("a card", int(settings.memory * GIB), settings.rate, settings.rate / 10, settings.bandwidth)
    elif settings.card in (None, "this"):
        card = _this()
    else:
        card = CARDS[str(settings.card)]
    changes = {"rate": settings.rate, "bandwidth": settings.bandwidth}
    changes = {name: value for name, value in changes.items() if value is not None}
    if settings.memory is not None:
        changes["memory"] = int(settings.memory * GIB)
    return dataclasses.replace(card, **changes)  # type: ignore[arg-type]  # of these fields


def _this() -> Card:
    import torch

    known = ", ".join(name for name in CARD_NAMES if name != "this")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"card=this: this machine has no GPU; give card=NAME ({known}), or memory, rate and bandwidth"
        )
    properties = torch.cuda.get_device_properties(0)
    for card in CARDS.values():
        if card.title in properties.name:
            return dataclasses.replace(card, memory=properties.total_memory)
    raise ConfigError(f"card=this: nothing is known of {properties.name}; give memory, rate and bandwidth")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Bars and notes of what runs on the pretended card are not about a run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    main()
