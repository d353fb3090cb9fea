"""The loss on fixed pictures, times and noise, against stock diffusers with the LoRA that it loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dbexp.config.schema import LoraConfig, SeedsConfig, TrainConfig
from dbexp.core.hashing import seed_of
from dbexp.core.store import Store
from dbexp.train.data import Training, prepare
from dbexp.train.fixed_loss import DRAWS, fixed_loss, rows
from dbexp.train.result import Trained
from dbexp.train.train import train
from tests.builders import model, training


def trained(of: Training, store: Store) -> Path:
    (result,) = train([of], model(), store)
    assert isinstance(result, Trained)
    return result.lora


@pytest.mark.parametrize("text_encoder", [False, True])
def test_it_is_the_error_of_what_stock_diffusers_predicts(tmp_path: Path, text_encoder: bool) -> None:
    store, base = Store(tmp_path), model()
    of = replace(training(steps=3), lora=LoraConfig(rank=2, text_encoder=text_encoder))
    lora = trained(of, store)
    value = fixed_loss(of, lora, base, store)

    (data,) = prepare([of], base, store)
    pipe = base.stock_pipeline(lora)
    tokens = pipe.tokenizer(of.prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    errors = []
    with torch.no_grad():
        text = pipe.text_encoder(tokens)[0].expand(DRAWS, -1, -1)
        for picture in range(len(of.images)):
            generator = torch.Generator().manual_seed(seed_of(of.seeds.noise, "fixed", picture))
            times = torch.randint(0, 1000, (DRAWS,), generator=generator)
            latents = data.instance.mean[data.instance.first[picture]].expand(DRAWS, -1, -1, -1)
            noise = torch.randn(latents.shape, generator=generator)
            noisy = pipe.scheduler.add_noise(latents, noise, times)
            errors.append((pipe.unet(noisy, times, text).sample - noise).square().mean())
    assert value == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_it_is_the_same_for_all_whatever_else_they_draw(tmp_path: Path) -> None:
    store, base = Store(tmp_path), model()
    of = training(steps=3)
    lora = trained(of, store)
    value = fixed_loss(of, lora, base, store)
    others = replace(of, cfg=TrainConfig(steps=9, noise_offset=0.1), seeds=replace(of.seeds, init=7, sample=7))
    assert fixed_loss(others, lora, base, Store(tmp_path / "other")) == value
    elsewhere = replace(of, seeds=SeedsConfig(**{**vars(of.seeds), "noise": 99}))
    assert fixed_loss(elsewhere, lora, base, store) != value
    assert rows(of) == DRAWS * len(of.images)


def test_a_lora_that_learnt_has_a_lower_one(tmp_path: Path) -> None:
    store, base = Store(tmp_path), model()
    short, long = training(steps=1, lr=1e-3), training(steps=40, lr=1e-3)
    losses = [fixed_loss(of, trained(of, store), base, store) for of in (short, long)]
    assert losses[1] < losses[0]
