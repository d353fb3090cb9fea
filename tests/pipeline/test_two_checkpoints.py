"""Trained on one checkpoint and drawn by another; and a LoRA that the base has only while it is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from dbexp import models
from dbexp.core.hashing import file_hash
from dbexp.core.store import Store
from dbexp.generate import command
from dbexp.models import Model, foreign_lora, lora_file, random_weights, sd
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.foreign_lora import ForeignLora
from dbexp.models.quantize import Float8Linear
from dbexp.models.random_weights import TINY
from dbexp.runs.folder import RunFolder
from dbexp.sample.png import read_metadata
from dbexp.train.fixed_loss import fixed_loss
from dbexp.train.result import Trained, inputs_of
from dbexp.train.train import train
from tests import builders, sweeps
from tests.pipeline.test_elsewhere import kohya, tiny

OTHER = partial(builders.checkpoint, TINY, 1)
"""The folder of a checkpoint with other weights in the same architecture."""


# -- two checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[set[str]]]]:
    """A sweep in which the checkpoint that trains draws, and another does; and which denoisers were in memory when one
    was read."""
    folder, beside, read = tmp_path_factory.mktemp("two"), list[set[str]](), Checkpoint._load
    models.forget()

    def watched(checkpoint: Checkpoint, name: str) -> Any:
        if name == checkpoint.family.denoiser:
            loaded = {each.name for each in models._loaded.values() if name in getattr(each, "parts", ())}
            beside.append(loaded - {checkpoint.name})
        return read(checkpoint, name)

    words = tiny(folder / "store", f"model.sample_path=null,{OTHER()}", "hydra.sweep.dir=sweep")
    with patch.object(Checkpoint, "_load", watched):
        outcome = sweeps.dbexp_command(folder, "-m", "model=random", *words)
    assert outcome.status == 0, outcome.err
    assert "2 jobs: 2 to train in 1 pack" in outcome.err
    yield folder, beside
    models.forget()


def models_of(paths: Iterator[Path] | list[Path]) -> set[str]:
    return {read_metadata(path)["model_hash"] for path in paths}


def test_one_training_serves_both(sweep: tuple[Path, list[set[str]]]) -> None:
    one, two = (RunFolder(sweep[0] / "sweep" / name) for name in "01")
    assert file_hash(one.lora) == file_hash(two.lora)
    assert len(list((sweep[0] / "store" / "train").glob("*/*/lora.safetensors"))) == 1


def test_which_checkpoint_draws_what(sweep: tuple[Path, list[set[str]]]) -> None:
    """Samples, class samples and the base model's row: the one that draws; prior images: the one that trains."""
    runs = [RunFolder(sweep[0] / "sweep" / name) for name in "01"]
    records = [json.loads(run.metrics.read_text()) for run in runs]
    trains = records[0]["model"]["identity"]
    draws = records[1]["sample_model"]["identity"]
    assert records[1]["model"]["identity"] == trains != draws and "sample_model" not in records[0]
    for run, identity in zip(runs, (trains, draws), strict=True):
        assert models_of(list(run.sample.rglob("[0-9]*.png"))) == {identity}
        assert models_of(list(run.prior.glob("*.png"))) == {trains}
    images = [sorted(run.base_samples.rglob("*.png")) for run in runs]
    assert len(images[0]) == 4 and {file_hash(a) for a in images[0]}.isdisjoint(file_hash(b) for b in images[1])


def test_denoisers_are_never_in_memory_together(sweep: tuple[Path, list[set[str]]]) -> None:
    assert len(sweep[1]) >= 2 and not any(sweep[1])


def test_the_base_models_images_are_those_of_a_run_on_it(
    sweep: tuple[Path, list[set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key has the identity of the checkpoint that draws, whoever trained."""
    folder = sweep[0]
    count = len(list((folder / "store" / "sample").glob("*/*")))
    words = tiny(folder / "store", f"model.path={OTHER()}", "hydra.run.dir=alone")
    assert sweeps.dbexp_command(folder, "model=random", *words).status == 0
    entries = [path for path in (folder / "store" / "sample").glob("*/*") if path.is_dir()]
    assert len(entries) == len({path.name for path in entries})
    base = RunFolder(folder / "alone").base_samples
    two = RunFolder(folder / "sweep" / "1").base_samples
    assert [file_hash(p) for p in sorted(base.rglob("*.png"))] == [file_hash(p) for p in sorted(two.rglob("*.png"))]
    fresh = len(list((folder / "store" / "sample").glob("*/*"))) - count
    assert fresh > 0, "its own LoRA's images are new"


def test_generate_draws_with_the_same_checkpoint(sweep: tuple[Path, list[set[str]]], tmp_path: Path) -> None:
    run = sweep[0] / "sweep" / "1"
    command.main([f"run={run}", "prompt=a {token}", f"folder={tmp_path / 'out'}", f"store={sweep[0] / 'store'}"])
    record = json.loads(RunFolder(run).metrics.read_text())
    assert models_of(list((tmp_path / "out").glob("*/*/*.png"))) == {record["sample_model"]["identity"]}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "model.sample_path=nowhere: there is no such folder or file"),
        ("wide", "fits it: unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q, 16 x 16, is 8 x 8 there"),
    ],
)
def test_what_is_refused(path: str, says: str, tmp_path: Path) -> None:
    """With one message, before anything is computed."""
    narrow = random_weights.build(tmp_path / "wide", replace(TINY, unet_channels=(8, 32)))
    words = tiny(tmp_path / "store", f"model.sample_path={narrow if path == 'wide' else path}", "hydra.run.dir=run")
    outcome = sweeps.dbexp_command(tmp_path, "model=random", *words)
    assert outcome.status == 1 and says in outcome.err, outcome.err
    assert not {each.name for each in (tmp_path / "store").glob("*")} & {"train", "prior", "sample", "latents"}


# -- a LoRA while training --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ForeignLora:
    folder = tmp_path_factory.mktemp("adapter")
    store = Store(folder / "store")
    return foreign_lora.open_lora(str(kohya(folder)), builders.model(), store, "model.training_lora")


def weights(base: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in base.part("unet").state_dict().items()}


def one(made: Trained | Exception) -> Trained:
    assert isinstance(made, Trained), made
    return made


def assert_close(a: Trained, b: Trained, rel: float = 1e-5) -> None:
    losses = [[row["loss"] for row in made.history] for made in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=rel)
    for name, value in builders.tensors(b.lora).items():
        torch.testing.assert_close(builders.tensors(a.lora)[name], value, rtol=0, atol=10 * rel)


def fresh(**settings: Any) -> Model:
    """A model that a test may change."""
    return sd.load(builders.model_config(**settings), Store(builders.scratch() / "hashes"))


def merge(base: Model, file: ForeignLora) -> None:
    """By hand, for good."""
    unet = base.part("unet")
    with torch.no_grad():
        for name, (down, up) in lora_file.read(file.path, base).updates().items():
            unet.get_submodule(name.removeprefix("unet.")).weight += up @ down  # type: ignore[operator]  # a layer


def test_training_sees_the_merged_base_and_nothing_else_does(adapter: ForeignLora, tmp_path: Path) -> None:
    base, by_hand = builders.model(), fresh()
    merge(by_hand, adapter)
    made, before = builders.training(steps=4), weights(base)
    trained = one(train([replace(made, base_lora=adapter)], base, Store(tmp_path / "a"))[0])
    expected = one(train([made], by_hand, Store(tmp_path / "b"))[0])
    assert_close(trained, expected)
    plain = one(train([made], base, Store(tmp_path / "c"))[0])
    assert plain.history[0]["loss"] != pytest.approx(trained.history[0]["loss"], rel=1e-4)
    after = weights(base)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_beside_quantised_weights(adapter: ForeignLora, tmp_path: Path) -> None:
    """As where the rounded weights are those of an ordinary model that it is merged into."""
    coarse, rounded = fresh(quantize="fp8"), fresh()
    for name, layer in coarse.part("unet").named_modules():
        if isinstance(layer, Float8Linear):
            with torch.no_grad():
                rounded.part("unet").get_submodule(name).weight.copy_(layer.weight.float())  # type: ignore[operator]  # a layer
    made = replace(builders.training(steps=4), base_lora=adapter)
    trained = one(train([made], coarse, Store(tmp_path / "a"))[0])
    expected = one(train([made], rounded, Store(tmp_path / "b"))[0])
    assert_close(trained, expected, rel=1e-4)


def test_the_training_key_has_it_and_a_judge_sees_it(adapter: ForeignLora, tmp_path: Path) -> None:
    base, made = builders.model(), builders.training(steps=2)
    assert "training_lora" not in inputs_of(made, base)
    begun = replace(made, base_lora=adapter)
    assert inputs_of(begun, base)["training_lora"] == adapter.sha256
    store = Store(tmp_path)
    lora = one(train([begun], base, store)[0]).lora
    assert fixed_loss(begun, lora, base, store) != pytest.approx(fixed_loss(made, lora, base, store), rel=1e-3)


def test_lanes_share_it(adapter: ForeignLora, tmp_path: Path) -> None:
    base = builders.model()
    lanes = [replace(builders.training(seed=seed, steps=3), base_lora=adapter) for seed in (1, 2)]
    packed = [one(made) for made in train(lanes, base, Store(tmp_path / "pack"))]
    for number, lane in enumerate(lanes):
        assert_close(packed[number], one(train([lane], base, Store(tmp_path / f"{number}"))[0]))
    with pytest.raises(ValueError, match=r"must agree in .*model\.training_lora"):
        train([lanes[0], builders.training(seed=3)], base, Store(tmp_path / "both"))


def test_whole_runs(tmp_path: Path) -> None:
    """Runs with and without are two packs, draw with one base model, and are found again by the file's content."""
    theirs = kohya(tmp_path)
    words = tiny(tmp_path / "store", f"model.training_lora=null,{theirs}", "hydra.sweep.dir=sweep")
    outcome = sweeps.dbexp_command(tmp_path, "-m", "model=random", *words)
    assert outcome.status == 0, outcome.err
    assert "2 jobs: 2 to train in 2 packs" in outcome.err
    one, two = (RunFolder(tmp_path / "sweep" / name) for name in "01")
    assert file_hash(one.lora) != file_hash(two.lora)
    images = [[file_hash(path) for path in sorted(run.base_samples.rglob("*.png"))] for run in (one, two)]
    assert images[0] == images[1]


def test_an_adapter_of_text_encoders_is_refused(tmp_path: Path) -> None:
    text = kohya(tmp_path, {"unet": 2, "text_encoder": 2})
    words = tiny(tmp_path / "store", f"model.training_lora={text}", "hydra.run.dir=run")
    outcome = sweeps.dbexp_command(tmp_path, "model=random", *words)
    assert outcome.status == 1
    assert f"model.training_lora={text}: adapts the text_encoder; give a LoRA of the unet alone" in outcome.err


def test_a_hub_that_is_switched_off(tmp_path: Path) -> None:
    words = tiny(tmp_path / "store", "model.training_lora=owner/name/adapter.safetensors", "hydra.run.dir=run")
    outcome = sweeps.dbexp_command(tmp_path, "model=random", *words)
    assert outcome.status == 1
    assert (
        "model.training_lora=owner/name/adapter.safetensors: there is no such file, and the hub did not" in outcome.err
    )
