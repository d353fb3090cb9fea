"""What must never move without being meant: literal keys of the store, seeded losses, and the rows of a small sweep.

A key that moves makes everything that users have computed unfindable. Whoever means it changes the number here, and
says so in the CHANGELOG.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from dbexp import dataset
from dbexp.config.schema import Config
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.models import Model, sd
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.sample import prior, sample
from dbexp.train import latents
from dbexp.train.data import Training
from dbexp.train.result import inputs_of
from dbexp.train.train import train
from tests import builders, sweeps

PHOTOGRAPHS = 3
PINNED = Path(__file__).parent / "pinned"
KEYS: dict[str, dict[str, str]] = json.loads((PINNED / "keys.json").read_text())
LOSSES: dict[str, list[list[float]]] = json.loads((PINNED / "losses.json").read_text())
PACKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prior accumulated": {"grad_accum": 2, "min_snr_gamma": 5.0},
    "text encoder": {"adapters": {"text_encoder": True}},
    "alone": {"weight": 0.0, "batch_size": 2},
}
"""Name -> what two lanes with seeds 1 and 2 have in common."""


class Asked(Exception):
    """Ends a stage where it asks the store, with the key that it asks for."""


class Recorder(Store):
    """A store that has nothing and makes nothing."""

    def get(self, stage: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> NoReturn:
        raise Asked(stage, key_of({"stage": stage, **inputs}))


@dataclass
class Base:
    """Of a base model only what keys know."""

    identity: str = "0123456789abcdef"
    dtype: torch.dtype = torch.float32
    name: str = "base"
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # it cannot be changed


def asked(work: Callable[[], object]) -> str:
    with pytest.raises(Asked) as caught:
        work()
    return str(caught.value.args[1])


@pytest.fixture
def keys(checked: Callable[..., Config], tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Overrides -> kind of entry -> the first twelve digits of its key; files have fixed bytes."""
    files = []
    for number in range(PHOTOGRAPHS):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(bytes([number]))
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"a LoRA")
    store, base = Recorder(tmp_path / "store"), Base()

    def of(*overrides: str) -> dict[str, str]:
        cfg = checked(*overrides)
        request = sample_request(cfg)
        photographs, class_images = tuple(files), tuple(files[:2])
        given = Training(
            photographs, "a photo of sks dog", class_images, "a photo of dog", cfg.prior.weight,
            cfg.model.resolution, cfg.train, cfg.lora, cfg.lr_schedule, cfg.seeds,
        )  # fmt: skip
        model: Model = base  # type: ignore[assignment]  # which is all that keys ask of one
        kinds: dict[str, Callable[[], str]] = {
            "train": lambda: key_of({"stage": "train", **inputs_of(given, model)}),
            "latents": lambda: asked(
                lambda: latents.encode(files, model, cfg.train, cfg.model.resolution, cfg.seeds.data, store, title="x")
            ),
            "sample": lambda: asked(lambda: sample.sample_prompts(request, model, lora, store)),
            "class": lambda: asked(lambda: sample.sample_class(request, model, lora, store)),
            "base": lambda: asked(lambda: sample.sample_prompts(request, model, None, store)),
        }
        if cfg.prior.weight:
            kinds["prior"] = lambda: asked(lambda: prior.prior_images(prior_request(cfg), model, store))
        if cfg.dataset.source == "storybook":
            kinds["dataset"] = lambda: asked(lambda: dataset.load(cfg.dataset, store))
        if cfg.model.path == "random":
            kinds["model"] = lambda: asked(lambda: sd.load(cfg.model, store))
        return {kind: find()[:12] for kind, find in kinds.items()}

    return of


@pytest.mark.parametrize("overrides", KEYS, ids=lambda text: text or "default")
def test_keys_of_the_store(keys: Callable[..., dict[str, str]], overrides: str) -> None:
    assert keys(*overrides.split()) == KEYS[overrides]


@pytest.mark.parametrize("pack", PACKS)
def test_seeded_losses(pack: str, tmp_path: Path) -> None:
    trainings = [builders.training(seed=seed, **PACKS[pack]) for seed in (1, 2)]
    for result, losses in zip(train(trainings, builders.model(), Store(tmp_path)), LOSSES[pack], strict=True):
        assert not isinstance(result, Exception)
        # another processor rounds otherwise
        assert [row["loss"] for row in result.history] == pytest.approx(losses, rel=1e-5)


def test_results_of_a_small_sweep(tmp_path: Path) -> None:
    swept = ("lora.rank=2,4", "seed=1,2", "hydra.sweep.dir=sweep")
    outcome = sweeps.dbexp_command(tmp_path, "-m", *sweeps.tiny(tmp_path / "store"), *swept)
    assert outcome.status == 0, outcome.err
    text = (tmp_path / "sweep" / "results.csv").read_text()
    pinned = (PINNED / "results.csv").read_text()
    assert text.splitlines()[0] == pinned.splitlines()[0]
    for row, expected in zip(csv.DictReader(text.splitlines()), csv.DictReader(pinned.splitlines()), strict=True):
        for name, value in expected.items():
            try:
                assert float(row[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
            except ValueError:
                assert row[name] == value, name
