"""What published base models take, counted once by `measure.py`: a sweep that starts has no time to count.

`counted.json` has memory of training by lanes, and seconds on each card of `cards.py` by its roofline, with the
settings of the model's own option; of a checkpoint that only draws for another, its drawing alone.
`python -m dbexp.estimate.counted NAME...` counts options of `conf/model` anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbexp.config.schema import Config
from dbexp.core.device import Gpu

if TYPE_CHECKING:
    from dbexp.estimate.measure import Measure

FILE = Path(__file__).with_suffix(".json")
_TRAINED_COPIES = 20
"""Bytes that a weight of an adapter takes while it trains: itself, its gradient and two moments in fp32, working copy
and gradient in 16 bits."""
_BATCH = 8
"""Images at once whose sampling was counted."""


@cache
def _entries() -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return entries


@dataclass(frozen=True)
class Counted:
    """What is known of runs on a card; None for whatever was not counted. See `pipeline.forecast.Estimates`.

    Args:
        gpu: the card.
    """

    gpu: Gpu

    def lanes(self, config: Config) -> int | None:
        """Most lanes of a pack that memory has room for, at least 1."""
        from dbexp.estimate.estimate import RESERVED
        from dbexp.train import packing

        entry, training = self._entry(config), self._training(config)
        if entry is None or training is None:
            return None
        more = (config.lora.rank - entry["rank"]) * entry["weights_per_rank"] * _TRAINED_COPIES
        room = packing.MEMORY_SHARE["cuda"] * (self.gpu.memory - RESERVED)
        return packing.lanes_that_fit(room, training["fixed"], training["lane"] + more, packing.MOST_LANES_ON_GPU)

    def train(self, config: Config, lanes: int) -> float | None:
        """Seconds of a lane's share of a pass."""
        training, card = self._training(config), self._card()
        if training is None or card is None:
            return None
        alone, slope = training["seconds"][card]
        return float((alone + (lanes - 1) * slope) / lanes)

    def draw(self, config: Config) -> float | None:
        """Seconds of one sampling step of an image, its share of all else included."""
        entry, card = self._entry(config), self._card()
        if entry is None or card is None or config.sample.resolution != entry["resolution"]:
            return None
        step, rest = entry["draw"][card]
        return float(step + rest / config.sample.steps)

    def evaluate(self, config: Config) -> float | None:
        """Seconds of the metrics of an image; of the paper's networks."""
        entry, card = self._entry(config), self._card()
        return None if entry is None or card is None or "metrics" not in entry else float(entry["metrics"][card])

    def _entry(self, config: Config) -> dict[str, Any] | None:
        model, entry = config.model, _entries().get(config.model.path)
        exact = model.quantize is None and model.precision in ("auto", "bf16", "fp16")
        if entry is None or not exact or model.resolution != entry["resolution"]:
            return None
        return dict(entry)

    def _training(self, config: Config) -> dict[str, Any] | None:
        entry = self._entry(config)
        if entry is None or config.lora.sites != entry["sites"] or config.lora.text_encoder:
            return None
        found: dict[str, Any] | None = entry.get("train", {}).get(_variant(config))
        return found

    def _card(self) -> str | None:
        from dbexp.estimate.cards import CARDS

        return next((name for name, card in CARDS.items() if card.title in self.gpu.name), None)


def _variant(config: Config) -> str:
    """What decides a lane's rows and whether activations are kept."""
    rows = config.train.batch_size * (2 if config.prior.weight else 1)
    return f"{rows}{' checkpointed' if config.train.gradient_checkpointing else ''}"


def count(option: str) -> tuple[str, dict[str, Any]]:
    """Count an option of `conf/model`: path of its checkpoint, and its entry; of an option with a checkpoint that only
    draws, of that."""
    from dbexp import api, models
    from dbexp.estimate.cards import CARDS
    from dbexp.estimate.measure import Measure
    from dbexp.estimate.roofline import seconds

    config = api.compose([f"model={option}", "evaluate=paper"])
    with tempfile.TemporaryDirectory(prefix="dbexp-counted-") as folder:
        measure = Measure(Path(folder), CARDS["h100"])
        if config.model.sample_path is not None:
            drawer = replace(config, model=models.drawing(config.model))
            return drawer.model.path, {"resolution": config.model.resolution, "draw": _draw(drawer, measure)}
        metrics, batch = measure.metrics(config), config.evaluate.batch_size
        return config.model.path, {
            "resolution": config.model.resolution,
            "sites": config.lora.sites,
            "rank": config.lora.rank,
            "weights_per_rank": measure.adapter_weights(config) // config.lora.rank,
            "train": _train(config, measure),
            "draw": _draw(config, measure),
            "metrics": {name: _rounded(seconds(metrics.operations, card) / batch)[0] for name, card in CARDS.items()},
        }


def _train(config: Config, measure: Measure) -> dict[str, Any]:
    """`_variant` -> memory, and card -> seconds of a lane and of each more."""
    from dbexp.estimate.cards import CARDS
    from dbexp.estimate.roofline import seconds

    trainings = {}
    for weight in (0.0, 1.0):
        for checkpointing in (False, True):
            varied = replace(
                config,
                prior=replace(config.prior, weight=weight),
                train=replace(config.train, gradient_checkpointing=checkpointing, batch_size=1),
            )
            one, two = (measure.training(varied, lanes) for lanes in (1, 2))
            lane = max(two.peak - one.peak, 1)
            alone = {name: seconds(one.operations, card) for name, card in CARDS.items()}
            both = {name: seconds(two.operations, card) for name, card in CARDS.items()}
            trainings[_variant(varied)] = {
                "fixed": max(one.peak - lane, 0),
                "lane": lane,
                "seconds": {name: _rounded(alone[name], both[name] - alone[name]) for name in CARDS},
            }
    return trainings


def _draw(config: Config, measure: Measure) -> dict[str, list[float]]:
    """Card -> seconds of a sampling step of an image, and of all else."""
    from dbexp.estimate.cards import CARDS
    from dbexp.estimate.roofline import seconds

    drawn = measure.drawing(config, _BATCH)
    return {
        name: _rounded(*(seconds(part.operations, card) / _BATCH for part in (drawn.step, drawn.rest)))
        for name, card in CARDS.items()
    }


def _rounded(*values: float) -> list[float]:
    return [float(f"{value:.3g}") for value in values]


def write(entries: Mapping[str, Any], file: Path = FILE) -> None:
    """Replace entries of the file."""
    noted = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lines = [f"{json.dumps(path)}: {json.dumps(entry)}" for path, entry in sorted({**noted, **entries}.items())]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main(options: Iterable[str]) -> None:
    """Count options and note them."""
    from dbexp.estimate.command import quiet

    for option in options:
        with quiet():
            path, entry = count(option)
        write({path: entry})
        print(option, path, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
