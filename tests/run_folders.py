"""Folders of finished runs: made up in milliseconds (a LoRA of the tiny model, a record, a result), or really run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import dbexp
from dbexp.config.schema import Config, DatasetConfig, LoraConfig, ModelConfig, SampleConfig
from dbexp.config.values import plain
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import Report
from dbexp.runs.record import Run
from dbexp.train import adapter as lora
from tests import builders


def config(**others: Any) -> Config:
    """What a run on the tiny model was made with; `others` are fields of Config."""
    settings: dict[str, Any] = {
        "model": builders.model_config(label="random weights"),
        "dataset": DatasetConfig(name="noise", path="unused", class_noun="dog", live=True),
        "lora": LoraConfig(rank=4, alpha=2.0),
        "sample": SampleConfig(steps=3, guidance_scale=3.0, resolution=32, batch_size=4),
        "store": str(builders.scratch() / "store"),
    }
    return Config(**settings | others)


def report(label: str | None = None, **columns: float) -> Report:
    """A record with some columns of the row `run`."""
    rows = {
        "run": {name: Estimate(value, value - 0.1, value + 0.1, 25) for name, value in columns.items()},
        "base": {"dino": Estimate(0.2, 0.1, 0.3, 25), "clip_t": Estimate(0.3, 0.2, 0.4, 25)},
        "real": {"dino": Estimate(0.8, 0.7, 0.9, 25)},
    }
    return Report(label, "sks", "dog", {"dino": "vit"}, {}, rows, {}, (), (), (), math.nan)


def make(
    folder: Path,
    *overrides: str,
    made_with: Config | None = None,
    strength: float = 0.5,
    ranks: Mapping[str, int] | None = None,
    columns: Mapping[str, float] | None = None,
) -> Path:
    """Write the folder of a finished run.

    Args:
        folder: where.
        overrides: as on the command line; they also name the run.
        made_with: its config.
        strength: size of the LoRA's second matrices.
        ranks: part -> rank.
        columns: of the metric table.

    Returns:
        `folder`.
    """
    used, base = made_with or config(), builders.model()
    ranks = ranks or {"unet": 4}
    adapter = builders.adapter(base, ranks, {part: rank / 2 for part, rank in ranks.items()}, strength=strength)
    provenance = {"config": plain(replace(used, store=None)), "inputs": {}}
    lora.save(folder / "train" / "lora.safetensors", adapter, base, provenance)
    record = {
        "report": json.loads(report(None, **(columns or {"dino": 0.5, "clip_t": 0.25})).to_json()),
        "config": plain(used),
        "model": {"name": base.name, "identity": base.identity},
    }
    _write(folder / "evaluate" / "metrics.json", record)
    _write(
        folder / "result.json",
        {"name": " ".join(overrides) or "the run", "overrides": list(overrides), "status": "finished"},
    )
    return folder


def overrides(*others: str) -> list[str]:
    """A run without prior preservation."""
    small = ["lora.rank=2", "prior=none", "sample.class_images=2"]
    return [*builders.overrides(builders.scratch() / "store"), *small, *others]


@lru_cache(maxsize=1)
def really_run() -> Run:
    """A run that `dbexp.run` made, in a sweep of its own; to be read only."""
    return dbexp.run(dbexp.compose(overrides()), builders.scratch() / "sweep" / "0")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def other_model(path: Path) -> ModelConfig:
    """Settings of another checkpoint than the tiny model's."""
    return replace(builders.model_config(), path=str(path), name=path.name)
