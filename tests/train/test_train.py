"""Training: lanes equal solo runs, steps equal an independent trainer's, and stopped runs go on as if never stopped."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from dbexp.config.schema import TrainConfig
from dbexp.core.errors import Interrupted, TrainingDiverged
from dbexp.core.store import Store
from dbexp.models import lora_file
from dbexp.models.random_weights import TINY, TINY_V, Size
from dbexp.models.sd import StableDiffusion
from dbexp.train import step as optimizer_step
from dbexp.train.data import Training
from dbexp.train.lane import Draw, Lane, Row
from dbexp.train.result import Trained, inputs_of, iterate_checkpoints
from dbexp.train.train import train
from tests import builders
from tests.builders import model, pictures, training

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def latents_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store of these tests finds latents where the first test put them: encoding is not what is tested."""
    shared = builders.scratch() / "latents"
    shared.mkdir(exist_ok=True)
    path = Store.path

    def shared_path(self: Store, stage: str, inputs: dict[str, Any]) -> Path:
        return path(Store(shared) if stage == "latents" else self, stage, inputs)

    monkeypatch.setattr(Store, "path", shared_path)


def run(trainings: Sequence[Training], store: Store, size: Size = TINY, **kwargs: Any) -> list[Trained]:
    """Train; every run must succeed."""
    results = train(trainings, model(size, trainings[0].record["model"]["precision"]), store, **kwargs)
    for result in results:
        assert isinstance(result, Trained), result
    return [result for result in results if isinstance(result, Trained)]


def column(trained: Trained, name: str) -> list[float]:
    return [row[name] for row in trained.history]


def assert_identical(one: Trained, other: Trained) -> None:
    """Bit for bit the same LoRA and the same history."""
    a, b = builders.tensors(one.lora), builders.tensors(other.lora)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert one.history == other.history


def assert_close(one: Trained, other: Trained, *, losses: float = 1e-5, weights: float = 1e-5) -> None:
    """Losses within a relative, weights within an absolute bound; a step moves a weight by about the lr, 1e-3."""
    assert column(one, "loss") == pytest.approx(column(other, "loss"), rel=losses)
    assert column(one, "lr") == column(other, "lr")
    a, b = builders.tensors(one.lora), builders.tensors(other.lora)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=weights)


# every lane differs from the others in several ways
LANES: dict[str, Callable[..., Training]] = {
    "plain": lambda **kw: training(**kw),
    "text encoder, other rank and rate, no prior": lambda **kw: training(
        weight=0.0, adapters={"rank": 8, "text_encoder": True}, lr=5e-4, text_encoder_lr=2e-4, noise_offset=0.1, **kw
    ),
    "short, polynomial, other seed, weight decay": lambda **kw: training(
        seed=3,
        steps=4,
        weight_decay=0.5,
        adapters={"rank": 2, "alpha": 8.0, "text_encoder": True, "text_encoder_rank": 3},
        schedule={"name": "polynomial", "warmup_steps": 1},
        **kw,
    ),
    "large batches of another subject, min-SNR": lambda **kw: training(
        images=pictures(3, seed=5), weight=0.5, seed=5, batch_size=2, grad_accum=2, min_snr_gamma=5.0, steps=4, **kw
    ),
}


class TestLanes:
    @pytest.fixture(scope="class")
    @classmethod
    def solo(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
        return {name: run([make()], Store(tmp_path_factory.mktemp("solo")))[0] for name, make in LANES.items()}

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_equal_solo_runs(self, solo: dict[str, Trained], store: Store, count: int) -> None:
        names = list(LANES)[-count:]
        for name, packed in zip(names, run([LANES[name]() for name in names], store), strict=True):
            assert_close(packed, solo[name])

    def test_order_does_not_matter(self, solo: dict[str, Trained], store: Store) -> None:
        names = list(reversed(LANES))
        for name, packed in zip(names, run([LANES[name]() for name in names], store), strict=True):
            assert_close(packed, solo[name])

    def test_lanes_differ(self, solo: dict[str, Trained]) -> None:
        """And every one moves all of its adapters, so that comparing them means something."""
        firsts = {column(trained, "loss")[0] for trained in solo.values()}
        assert len(firsts) == len(solo)
        for name, trained in solo.items():
            ups = [value for key, value in builders.tensors(trained.lora).items() if ".lora_B." in key]
            assert min(up.abs().max() for up in ups) > 1e-4, name
            assert any(key.startswith("text_encoder.") for key in builders.tensors(trained.lora)) == (
                "text_encoder" in trained.record["parameters"]
            )

    def test_the_same_run_twice_is_one_lane(self, store: Store, solo: dict[str, Trained]) -> None:
        first, twin = run([training(), training(log_every=3)], store)
        assert first == twin
        assert_identical(first, solo["plain"])

    def test_a_pack_completes_what_the_store_lacks(self, store: Store, solo: dict[str, Trained]) -> None:
        first, second, *_ = LANES.values()
        (before,) = run([second()], store)
        told: list[int] = []
        both = run([first(), second()], store, on_rows=lambda number, rows: told.extend([number] * len(rows)))
        assert_close(both[0], solo["plain"])
        assert both[1] == before
        assert told == [0] * 6, "only the lane that trained had something to tell"

    def test_runs_that_cannot_train_together(self, store: Store) -> None:
        with pytest.raises(ValueError, match=r"must agree in .*lora\.sites"):
            train([training(), training(adapters={"sites": "linear"})], model(), store)

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_half_precision(self, store: Store, tmp_path: Path, precision: str, solo: dict[str, Trained]) -> None:
        names = list(LANES)[1:3]
        packed = run([LANES[name](precision=precision) for name in names], store)
        for name, lane in zip(names, packed, strict=True):
            (alone,) = run([LANES[name](precision=precision)], Store(tmp_path / name))
            # a half-precision number has 8 or 11 bits; the same rows in another batch are summed in another order
            assert_close(lane, alone, losses=5e-3, weights=3e-3)
            assert column(lane, "loss") == pytest.approx(column(solo[name], "loss"), rel=0.05)
            assert all(tensor.dtype == torch.float32 for tensor in builders.tensors(lane.lora).values())


class TestDivergence:
    @pytest.mark.parametrize("text_encoder", [False, True])
    def test_the_others_go_on(self, store: Store, tmp_path: Path, text_encoder: bool) -> None:
        adapters = {"text_encoder": text_encoder}
        wild = training(lr=1e30, seed=7, steps=12, adapters=adapters)
        good = [training(adapters=adapters), training(seed=2, weight=0.0, steps=12, adapters=adapters)]
        first, failed, last = train([good[0], wild, good[1]], model(), store)
        assert isinstance(failed, TrainingDiverged)
        assert str(failed).startswith(
            "the loss became NaN or infinite at step 2 of 12 (train.lr=1e+30); lower train.lr"
        )
        assert store.find("train", inputs_of(wild, model())) is None
        for number, (packed, alone) in enumerate(zip((first, last), good, strict=True)):
            (solo,) = run([alone], Store(tmp_path / str(number)))
            assert isinstance(packed, Trained)
            assert_close(packed, solo)

    def test_alone(self, store: Store) -> None:
        (failed,) = train([training(lr=1e30)], model(), store)
        assert isinstance(failed, TrainingDiverged) and "no checkpoint was made before" in str(failed)

    def test_checkpoints_before_it_are_good(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """From step 5 on its gradient is NaN, while the loss of step 5 is still good."""
        of_lanes = optimizer_step.of_lanes

        def poisoned(lanes: Sequence[Lane], *rates: Tensor) -> Tensor:
            for lane in lanes:
                if lane.step >= 4:
                    torch._foreach_mul_([p.grad for p in lane.parameters if p.grad is not None], math.nan)
            return of_lanes(lanes, *rates)

        monkeypatch.setattr(optimizer_step, "of_lanes", poisoned)
        (failed,) = train([training(checkpoint_every=1)], model(), store)
        assert isinstance(failed, TrainingDiverged)
        assert "at step 5 of 6" in str(failed) and "step_000004.safetensors" in str(failed)
        folder = store.partial("train", inputs_of(training(checkpoint_every=1), model()))
        kept = dict(iterate_checkpoints(folder))
        assert list(kept) == [1, 2, 3, 4]
        assert all(tensor.isfinite().all() for path in kept.values() for tensor in builders.tensors(path).values())

    def test_an_overflow_under_fp16_is_the_lanes_own(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One lane's loss scale halves and its step is skipped; the other keeps scale and step."""
        calm, stormy = training(precision="fp16", steps=3), training(precision="fp16", steps=3, seed=2)
        (alone,) = run([calm], Store(tmp_path / "alone"))
        of_lanes, scales = optimizer_step.of_lanes, dict[int, list[float]]()

        def overflow(lanes: Sequence[Lane], *rates: Tensor) -> Tensor:
            for lane in lanes:
                if lane.training is stormy and lane.step == 1:
                    torch._foreach_mul_(lane.adapter.gradients, math.inf)
            norms = of_lanes(lanes, *rates)
            for lane in lanes:
                assert lane.loss_scale is not None
                scales.setdefault(lane.training.seeds.noise, []).append(float(lane.loss_scale.scale))
            return norms

        monkeypatch.setattr(optimizer_step, "of_lanes", overflow)
        calm_result, stormy_result = run([calm, stormy], store)
        assert scales == {1: [65536.0] * 3, 2: [65536.0, 32768.0, 32768.0]}
        assert stormy_result.history[1]["grad_norm"] is None, "JSON has no infinity"
        assert "Infinity" not in (stormy_result.folder / "history.jsonl").read_text()
        assert_close(calm_result, alone, losses=2e-3, weights=2e-3)
        assert all(tensor.isfinite().all() for tensor in builders.tensors(stormy_result.lora).values())


class Independent:
    """A DreamBooth-LoRA trainer of its own: diffusers' and transformers' models, PEFT's layers, torch's optimizer.

    It shares nothing with the package but the random numbers and the initial A that it is told.
    """

    def __init__(self, size: Size, training: Training) -> None:
        folder, cfg, lora = builders.checkpoint(size), training.cfg, training.lora
        self.training = training
        self.noise = DDPMScheduler.from_pretrained(folder / "scheduler")
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").requires_grad_(False)
        alpha = lora.alpha or lora.rank
        common: dict[str, Any] = {"r": lora.rank, "lora_alpha": alpha, "init_lora_weights": "gaussian"}
        inject_adapter_in_model(PeftConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], **common), self.unet)
        if lora.text_encoder:
            names = ["q_proj", "k_proj", "v_proj", "out_proj"]
            inject_adapter_in_model(PeftConfig(target_modules=names, **common), self.text_encoder)
        self.parts: dict[str, nn.Module] = {"unet": self.unet, "text_encoder": self.text_encoder}
        unet, text = ([p for p in module.parameters() if p.requires_grad] for module in self.parts.values())
        text_lr = cfg.text_encoder_lr or cfg.lr
        groups = [{"params": unet, "lr": cfg.lr}, *([{"params": text, "lr": text_lr}] if text else [])]
        self.trained = [*unet, *text]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=cfg.weight_decay)
        self.scheduler = get_scheduler(
            training.lr_schedule.name,
            self.optimizer,
            num_warmup_steps=training.lr_schedule.warmup_steps,
            num_training_steps=cfg.steps,
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        prompts = [training.prompt, training.class_prompt]
        self.ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.vae = AutoencoderKL.from_pretrained(folder / "vae")

    def adapters(self) -> dict[str, Tensor]:
        """'part.site.down' or '.up' -> parameter, in the shapes of `lora.Adapter`."""
        found: dict[str, Tensor] = {}
        for part, module in self.parts.items():
            for name, parameter in module.named_parameters():
                if ".lora_A." in name:
                    found[f"{part}.{name.partition('.lora_A.')[0]}.down"] = parameter
                elif ".lora_B." in name:
                    found[f"{part}.{name.partition('.lora_B.')[0]}.up"] = parameter.T
        return found

    def latents(self, paths: Sequence[Path], noise: Tensor) -> Tensor:
        images = [Image.open(path).resize((32, 32), Image.Resampling.BILINEAR) for path in paths]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            posterior = self.vae.encode(pixels).latent_dist
        latents: Tensor = (posterior.mean + posterior.std * noise) * 0.18215
        return latents

    def step(self, draws: Sequence[Draw]) -> tuple[float, dict[str, Tensor]]:
        """One optimizer step over accumulated microbatches; its loss, and the gradients before clipping."""
        total = 0.0
        for draw in draws:
            paths = [self.training.images[i] for i in draw.instance] + [
                self.training.class_images[i] for i in draw.prior
            ]
            latents = self.latents(paths, draw.latent_noise)
            noisy = self.noise.add_noise(latents, draw.noise, draw.times)
            rows = [0] * len(draw.instance) + [1] * len(draw.prior)
            prediction = self.unet(noisy, draw.times, self.text_encoder(self.ids[rows])[0]).sample
            velocity = self.noise.config.prediction_type == "v_prediction"
            target = self.noise.get_velocity(latents, draw.noise, draw.times) if velocity else draw.noise
            count = len(draw.instance)
            loss = F.mse_loss(prediction[:count], target[:count])
            if draw.prior:
                loss = loss + self.training.prior_weight * F.mse_loss(prediction[count:], target[count:])
            (loss / self.training.cfg.grad_accum).backward()
            total += loss.item() / len(draws)
        with torch.no_grad():
            gradients = self.gradients()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return total, gradients

    def gradients(self) -> dict[str, Tensor]:
        values = {}
        for part, module in self.parts.items():
            for name, parameter in module.named_parameters():
                for mark, kind in ((".lora_A.", "down"), (".lora_B.", "up")):
                    if mark in name:
                        assert parameter.grad is not None
                        grad = parameter.grad.clone()
                        values[f"{part}.{name.partition(mark)[0]}.{kind}"] = grad if kind == "down" else grad.T
        return values


def stepwise_gradients(lane: Lane) -> dict[str, Tensor]:
    views = {f"{name}.down": p for name, p in lane.adapter.down.items()}
    views |= {f"{name}.up": p for name, p in lane.adapter.up.items()}
    return {name: p.grad.clone() for name, p in views.items() if p.grad is not None}


class TestParity:
    @pytest.mark.parametrize(
        ("size", "weight", "settings"),
        [
            (TINY, 0.0, {}),
            (TINY, 1.0, {"adapters": {"rank": 4, "alpha": 2.0}, "weight_decay": 0.1}),
            (TINY, 0.7, {"adapters": {"rank": 4, "text_encoder": True}, "text_encoder_lr": 3e-4, "batch_size": 2}),
            (TINY_V, 1.0, {"adapters": {"rank": 4, "text_encoder": True}, "grad_accum": 2, "max_grad_norm": 1.0}),
            (TINY_V, 0.0, {"schedule": {"name": "linear", "warmup_steps": 2}, "batch_size": 3}),
            (TINY, 0.0, {"images": pictures(5), "grad_accum": 2, "remainder": "step"}),
        ],
        ids=[
            "without prior",
            "prior, alpha",
            "text encoder, batch",
            "v, text encoder, accumulation",
            "v, schedule",
            "remainder",
        ],
    )
    def test_steps_of_an_independent_trainer(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, size: Size, weight: float, settings: dict[str, Any]
    ) -> None:
        made = training(size=size, weight=weight, steps=5, **settings)
        draws: list[Draw] = []
        starts: list[dict[str, Tensor]] = []
        gradients: list[dict[str, Tensor]] = []
        draw, start, of_lanes = Lane.draw, Lane.__init__, optimizer_step.of_lanes

        def watched_start(lane: Lane, *args: Any) -> None:
            start(lane, *args)
            starts.append(lane.adapter.state())

        def watched_draw(lane: Lane) -> Draw:
            draws.append(draw(lane))
            return draws[-1]

        def watched_step(lanes: Sequence[Lane], *rates: Tensor) -> Tensor:
            gradients.extend(map(stepwise_gradients, lanes))
            return of_lanes(lanes, *rates)

        monkeypatch.setattr(Lane, "__init__", watched_start)
        monkeypatch.setattr(Lane, "draw", watched_draw)
        monkeypatch.setattr(optimizer_step, "of_lanes", watched_step)
        (trained,) = run([made], store, size)

        other, accum = Independent(size, made), made.cfg.grad_accum
        # accelerate's: five pictures at two are steps of 2, 2 and 1 passes
        ends = list(itertools.accumulate([2, 2, 1, 2, 2] if made.cfg.remainder == "step" else [accum] * 5))
        assert len(draws) == ends[-1]
        assert other.adapters().keys() == starts[0].keys()
        with torch.no_grad():
            for name, parameter in other.adapters().items():
                parameter.copy_(starts[0][name])
        for step in range(5):
            loss, expected = other.step(draws[([0, *ends])[step] : ends[step]])
            assert column(trained, "loss")[step] == pytest.approx(loss, rel=1e-5)
            norm = torch.stack([value.norm() for value in expected.values()]).norm().item()
            assert column(trained, "grad_norm")[step] == pytest.approx(norm, rel=1e-4)
            assert gradients[step].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(gradients[step][name], value, rtol=1e-3, atol=1e-5 * norm)
        final = {f"{name}.{kind}": w for name, pair in lora_file.read(trained.lora, model(size)).weights.items()
                 for kind, w in (("down", pair[0]), ("up", pair[1].T))}  # fmt: skip
        for name, parameter in other.adapters().items():
            # Adam turns rounding into steps where a gradient is nothing else: a single weight may be off by more
            apart = (final[name] - parameter.detach()).abs()
            assert apart.mean() < 1e-6 and apart.max() < 1e-4
        moved = max((final[name] - starts[0][name]).abs().max().item() for name in final)
        assert moved > 1e-3


class TestOptions:
    """What a setting must change, seen in the loss of the first step, and in nothing else."""

    def first(self, store: Store, **settings: Any) -> Row:
        return run([training(steps=1, **settings)], store)[0].history[0]

    def test_prior_weight(self, store: Store) -> None:
        plain, half = self.first(store), self.first(store, weight=0.5)
        assert plain["loss"] == pytest.approx(plain["loss_instance"] + plain["loss_prior"])
        assert half["loss"] == pytest.approx(plain["loss_instance"] + 0.5 * plain["loss_prior"])
        assert "loss_prior" not in self.first(store, weight=0.0)

    def test_min_snr(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = self.first(store, weight=0.0)
        seen: list[Tensor] = []
        weigh = StableDiffusion.loss_weight

        def watched(base: StableDiffusion, times: Tensor, cfg: TrainConfig) -> Tensor | None:
            weights = weigh(base, times, cfg)
            if weights is not None:
                seen.append(weights)
            return weights

        monkeypatch.setattr(StableDiffusion, "loss_weight", watched)
        weighted = self.first(store, weight=0.0, min_snr_gamma=0.05)
        assert seen[0].item() < 0.9
        assert weighted["loss"] == pytest.approx(plain["loss"] * seen[0].item(), rel=1e-5)

    def test_gradient_checkpointing_changes_nothing(self, store: Store, tmp_path: Path) -> None:
        adapters = {"text_encoder": True}
        (plain,) = run([training(adapters=adapters)], store)
        (saving,) = run([training(adapters=adapters, gradient_checkpointing=True)], Store(tmp_path / "other"))
        assert_close(saving, plain)
        assert saving.folder.name == plain.folder.name, "it is no part of the key"
        assert not any(module.training for part in model().family.parts for module in model().part(part).modules())

    def test_a_frozen_text_encoder_leaves_memory(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        base = model()
        held: list[set[str]] = []
        assert isinstance(base, StableDiffusion)
        run([training(steps=1)], store, on_rows=lambda *_: held.append(set(base.parts)))
        assert held == [{"unet"}]

    def test_the_base_is_untouched(self, store: Store) -> None:
        base = model()
        before = {part: {k: v.clone() for k, v in base.part(part).state_dict().items()} for part in base.family.parts}
        run([training(adapters={"text_encoder": True}, steps=2)], store)
        for part in model().family.parts:
            after = model().part(part).state_dict()
            assert after.keys() == before[part].keys()
            assert all(torch.equal(after[name], before[part][name]) for name in after)


class TestResult:
    def test_what_a_run_leaves(self, store: Store) -> None:
        (trained,) = run([training(adapters={"text_encoder": True}, checkpoint_every=2)], store)
        assert [row["step"] for row in trained.history] == [1, 2, 3, 4, 5, 6]
        lines = (trained.folder / "history.jsonl").read_text().splitlines()
        assert tuple(json.loads(line) for line in lines) == trained.history
        assert trained.record["steps"] == trained.record["seconds_cover_steps"] == 6
        assert trained.record["lanes"] == 1 and trained.record["memory_mib"] > 0
        assert 0 < trained.record["seconds_share"] <= trained.record["seconds"]
        assert set(trained.record["parameters"]) == {"unet", "text_encoder"}
        assert sorted(path.name for path in trained.folder.iterdir()) == [
            "checkpoints", "history.jsonl", "lora.safetensors", "manifest.json", "train.json",
        ]  # fmt: skip
        read = lora_file.read(trained.lora, model())
        assert read.provenance["step"] == 6
        assert read.provenance["inputs"] == json.loads(json.dumps(inputs_of(training(
            adapters={"text_encoder": True}, checkpoint_every=2), model())))  # fmt: skip

    def test_checkpoints_are_shorter_runs(self, store: Store) -> None:
        """A checkpoint is the LoRA that a run of that many steps gives (the schedule is constant here)."""
        long, short = training(checkpoint_every=2), training(steps=4)
        (trained,) = run([long], store)
        kept = dict(iterate_checkpoints(trained.folder))
        assert list(kept) == [2, 4], "the last step is the result itself"
        (other,) = run([short], store)
        expected = builders.tensors(other.lora)
        assert all(torch.equal(value, expected[key]) for key, value in builders.tensors(kept[4]).items())
        assert lora_file.read(kept[4], model()).provenance["step"] == 4

    def test_found_again(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        (first,) = run([training()], store)
        monkeypatch.setattr(Lane, "draw", lambda _: pytest.fail("it was trained before"))
        assert run([training(log_every=1)], store) == [first]

    @pytest.mark.parametrize("every", [1, 4, 100])
    def test_rows_are_told_once_and_in_order(self, store: Store, every: int) -> None:
        told: list[Row] = []
        (trained,) = run([training(log_every=every)], store, on_rows=lambda _, rows: told.extend(rows))
        assert tuple(told) == trained.history

    def test_what_the_key_depends_on(self) -> None:
        base = training()
        same = [training(log_every=1), training(gradient_checkpointing=True)]
        other = [
            training(lr=2e-3),
            training(seed=2),
            training(weight=0.5),
            training(images=pictures(4, seed=9)),
            training(images=tuple(reversed(pictures()))),
            training(adapters={"rank": 5}),
            training(schedule={"name": "cosine"}),
            replace(base, prompt="a photo of xyz dog"),
            replace(base, class_prompt="a dog"),
        ]
        keys = [json.dumps(inputs_of(one, model()), sort_keys=True) for one in (base, *same, *other)]
        assert len(set(keys[: 1 + len(same)])) == 1
        assert len(set(keys[len(same) :])) == 1 + len(other)
        no_prior = training(weight=0.0)
        assert inputs_of(no_prior, model()) == inputs_of(replace(no_prior, class_prompt="a dog"), model())


class TestResuming:
    SETTINGS: dict[str, Any] = {  # noqa: RUF012  # read only
        "adapters": {"text_encoder": True},
        "grad_accum": 2,
        "batch_size": 2,
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "log_every": 1,
        "steps": 7,
    }

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, tmp_path_factory: pytest.TempPathFactory) -> Trained:
        return run([training(**cls.SETTINGS)], Store(tmp_path_factory.mktemp("whole")))[0]

    def stopped_at(self, step: int, how: Callable[[], None]) -> Callable[[int, Sequence[Row]], None]:
        def on_rows(_: int, rows: Sequence[Row]) -> None:
            if rows[-1]["step"] == step:
                how()

        return on_rows

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal(self, store: Store, whole: Trained, signum: signal.Signals) -> None:
        handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        made = training(**self.SETTINGS)
        with pytest.raises(Interrupted, match="training stopped at step 3 of 7; the same command goes on") as caught:
            run([made], store, on_rows=self.stopped_at(3, lambda: os.kill(os.getpid(), signum)))
        assert caught.value.signum == signum
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert store.find("train", inputs_of(made, model())) is None
        told: list[Row] = []
        (resumed,) = run([made], store, on_rows=lambda _, rows: told.extend(rows))
        assert [row["step"] for row in told] == [1, 2, 3, 4, 5, 6, 7]
        assert_identical(resumed, whole)
        assert resumed.record["seconds_cover_steps"] == 4

    @pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
    def test_a_damaged_state_is_dropped_with_a_word(
        self, store: Store, whole: Trained, caplog: pytest.LogCaptureFixture, damage: str
    ) -> None:
        with pytest.raises(Interrupted, match="at step 3 of 7"):
            stop = self.stopped_at(3, lambda: os.kill(os.getpid(), signal.SIGINT))
            run([training(**self.SETTINGS)], store, on_rows=stop)
        (states,) = (store.root / "packs").glob("*.pt")
        data = states.read_bytes()
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        states.write_bytes({"cut": data[:middle], "flipped": flipped, "emptied": b""}[damage])
        (resumed,) = run([training(**self.SETTINGS)], store)
        assert f"{states} is damaged (" in caplog.text and "starts over" in caplog.text
        assert "weights_only" not in caplog.text
        assert_identical(resumed, whole)
        assert resumed.record["seconds_cover_steps"] == 7

    def test_a_signal_within_an_accumulation(
        self, store: Store, whole: Trained, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw = Lane.draw

        def killed(lane: Lane) -> Draw:
            if lane.micro == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(lane)

        with monkeypatch.context() as patch:
            patch.setattr(Lane, "draw", killed)
            with pytest.raises(Interrupted, match="at step 3 of 7"):
                run([training(**self.SETTINGS)], store)
        assert_identical(run([training(**self.SETTINGS)], store)[0], whole)

    def test_a_signal_at_the_last_step(self, store: Store, whole: Trained) -> None:
        """The run is done and kept, but the process was still asked to stop."""
        with pytest.raises(Interrupted, match="training is done") as caught:
            stop = self.stopped_at(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
            run([training(**self.SETTINGS)], store, on_rows=stop)
        assert caught.value.signum == signal.SIGTERM
        assert store.find("train", inputs_of(training(**self.SETTINGS), model())) is not None
        assert_identical(run([training(**self.SETTINGS)], store)[0], whole)

    def test_a_second_interrupt_does_not_wait(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def twice() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted, match="stopped at once") as caught:
            run([training(**self.SETTINGS)], store, on_rows=self.stopped_at(3, twice))
        assert caught.value.signum == signal.SIGINT

    def test_an_exception(self, store: Store, whole: Trained) -> None:
        """Without a warning only the last checkpoint is left to go on from."""

        def fail() -> None:
            raise OSError("the network is gone")

        settings = self.SETTINGS | {"checkpoint_every": 2}
        with pytest.raises(OSError, match="network"):
            run([training(**settings)], store, on_rows=self.stopped_at(5, fail))
        told: list[Row] = []
        (resumed,) = run([training(**settings)], store, on_rows=lambda _, rows: told.extend(rows))
        assert [row["step"] for row in told] == [1, 2, 3, 4, 5, 6, 7]
        assert_identical(resumed, whole)
        assert resumed.record["seconds_cover_steps"] == 3, "it goes on from step 4"
        assert [step for step, _ in iterate_checkpoints(resumed.folder)] == [2, 4, 6]

    def test_a_pack(self, store: Store, tmp_path: Path) -> None:
        """Lanes of different lengths and accumulation, one of them done before the signal."""
        lanes = [training(steps=2), training(steps=6, seed=2, grad_accum=2), training(steps=9, weight=0.0, log_every=1)]
        expected = run(lanes, Store(tmp_path / "whole"))
        with pytest.raises(Interrupted):
            train(lanes, model(), store, lambda number, rows: (
                os.kill(os.getpid(), signal.SIGTERM) if number == 2 and rows[-1]["step"] == 5 else None
            ))  # fmt: skip
        for resumed, whole in zip(run(lanes, store), expected, strict=True):
            assert_identical(resumed, whole)

    def test_outside_the_main_thread(self, store: Store) -> None:
        """Python lets only the main thread handle signals; training elsewhere works all the same."""
        results: list[Trained] = []
        thread = threading.Thread(target=lambda: results.extend(run([training(steps=1)], store)))
        thread.start()
        thread.join()
        assert len(results) == 1

    def test_killed(self, tmp_path: Path) -> None:
        """kill -9 at step 5; the same command again finishes the rest and gives the same LoRA."""
        made = training(checkpoint_every=2, log_every=1, steps=7)
        (whole,) = run([made], Store(tmp_path / "whole"))
        script = f"""
import os, pickle, signal, sys
from pathlib import Path
from dbexp.config.schema import ModelConfig
from dbexp.models import sd
from dbexp.core.store import Store
from dbexp.train.train import train

training = pickle.load(open({str(tmp_path / "training")!r}, "rb"))
store = Store(Path({str(tmp_path / "store")!r}))

def on_rows(number, rows):
    if rows[-1]["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

train([training], sd.load(ModelConfig(**training.record["model"]), store), store, on_rows)
"""
        store = Store(tmp_path / "store")
        assert python(script, made, tmp_path).returncode == -signal.SIGKILL
        assert store.find("train", inputs_of(made, model())) is None
        told: list[Row] = []
        (resumed,) = run([made], store, on_rows=lambda _, rows: told.extend(rows))
        assert [row["step"] for row in told] == [1, 2, 3, 4, 5, 6, 7]
        assert_identical(resumed, whole)
        assert resumed.record["seconds_cover_steps"] == 3, "it goes on from step 4"


def python(script: str, made: Training, folder: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter, with a training pickled beside it."""
    import pickle

    (folder / "training").write_bytes(pickle.dumps(made))
    (folder / "script.py").write_text(script)
    # with as many threads as this process: another number sums in another order
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, str(folder / "script.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


TWO = """
import os, pickle, signal, sys
from pathlib import Path
from dbexp.config.schema import ModelConfig
from dbexp.core.device import processes
from dbexp.core.errors import Interrupted
from dbexp.models import sd
from dbexp.core.store import Store
from dbexp.train.train import train

folder = Path(__file__).parent
training = pickle.load(open(folder / "training", "rb"))
store = Store(folder / "store")
model = sd.load(ModelConfig(**training.record["model"]), store)
rank, count = processes()
assert count == 2

def stop(number, rows):
    # the signal comes to one of the two processes
    if rank == 1 and rows[-1]["step"] == 2:
        os.kill(os.getpid(), signal.SIGTERM)

try:
    train([training], model, store, stop)
    sys.exit("the signal was lost")
except Interrupted as stopped:
    assert stopped.signum == signal.SIGTERM
(trained,) = train([training], model, store)
(again,) = train([training], model, store)
assert again.folder == trained.folder
print("done", rank, trained.folder, len(trained.history))
"""


@pytest.mark.slow
def test_two_processes_are_two_accumulated_passes(tmp_path: Path) -> None:
    """Interrupted on the way, too: both must stop at the same step and go on from it."""
    settings: dict[str, Any] = {"steps": 5, "log_every": 2, "adapters": {"text_encoder": True}}
    (alone,) = run([training(grad_accum=2, **settings)], Store(tmp_path / "alone"))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    finished = python(TWO, training(grad_accum=1, **settings), tmp_path, *launcher)
    assert finished.returncode == 0, finished.stderr[-3000:]
    said = sorted(line for line in finished.stdout.splitlines() if line.startswith("done"))
    assert [line.split()[1] for line in said] == ["0", "1"]
    folder = Path(said[0].split()[2])
    assert Path(said[1].split()[2]) == folder
    history = tuple(json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines())
    assert_close(Trained(folder, folder / "lora.safetensors", history, {}), alone)
