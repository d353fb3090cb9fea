"""The model that ships: it is there, it is small, it loads as any checkpoint, and it knows its world."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dbexp import models
from dbexp.config.schema import Config
from dbexp.core.files import locate
from dbexp.core.store import Store
from dbexp.evaluate import evaluate
from dbexp.storybook.world.subjects import SUBJECTS, draw_subject, oracle

WEIGHTS = locate("package:storybook/weights")
LIMIT_MB = 60


@pytest.fixture(scope="module")
def cfg() -> Config:
    from hydra import compose, initialize_config_dir

    from dbexp.config import check, groups, help

    help.register()
    with initialize_config_dir(str(groups.conf_dir()), version_base="1.3"):
        return check.check(compose("config", overrides=["model=storybook"]))


@pytest.fixture(scope="module")
def backbones(cfg: Config) -> evaluate.Backbones:
    return evaluate.load_backbones(cfg.evaluate, torch.device("cpu"))


def test_all_weights_together_are_small_and_described() -> None:
    total = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert total < LIMIT_MB * 1e6
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    for stage in ("vae", "unet", "dino", "clip", "lpips"):
        assert f"| {stage} |" in card


def test_it_loads_like_any_checkpoint(cfg: Config, tmp_path: Path) -> None:
    model = models.load(cfg.model, Store(tmp_path))
    assert model.token_count(cfg.dataset.token) == 1
    mean, std = model.encode_images(torch.zeros(1, 3, 64, 64))
    assert mean.shape == (1, 16, 16, 16)
    assert (std > 0).all()


def test_it_is_known_as_before(cfg: Config, tmp_path: Path) -> None:
    """What users computed with it is found by this; new weights give it another."""
    model = models.load(cfg.model, Store(tmp_path))
    assert model.identity.startswith("44d85f36010f")


def test_a_stock_pipeline_that_is_told_no_precision_draws() -> None:
    """Weights are stored in half precision, in which transformers would load its part, and diffusers its own not."""
    pipe = DiffusionPipeline.from_pretrained(WEIGHTS)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    (image,) = pipe("a dog in the snow", num_inference_steps=2, generator=generator, output_type="np").images
    assert image.shape == (64, 64, 3) and image.std() > 0.05


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_image_backbone_tells_a_subject_from_strangers(
    name: str, backbones: evaluate.Backbones, tmp_path: Path
) -> None:
    """The oracle bounds: the true subject in another place is nearer to its pictures than another subject there."""
    subject = SUBJECTS[name]
    other = next(key for key in SUBJECTS if key != name and SUBJECTS[key].live == subject.live)
    real = draw_subject(name, tmp_path / "real")
    scene = f"a sks {subject.class_noun} in the snow"
    right, wrong = (oracle(key, scene, 4, tmp_path / key) for key in (name, other))
    features = [
        torch.nn.functional.normalize(torch.as_tensor(backbones.dino.embed_images(paths)), dim=1)
        for paths in (real, right, wrong)
    ]
    assert (features[1] @ features[0].T).mean() > (features[2] @ features[0].T).mean() + 0.3


def test_the_text_backbone_knows_places(backbones: evaluate.Backbones, tmp_path: Path) -> None:
    prompts = ["a dog in the snow", "a dog on the beach", "a dog in the jungle", "a dog on top of pink fabric"]
    pictures = [oracle("dog", prompt, 1, tmp_path / str(i))[0] for i, prompt in enumerate(prompts)]
    shown, said = (
        torch.nn.functional.normalize(torch.as_tensor(rows), dim=1)
        for rows in (backbones.clip.embed_images(pictures), backbones.clip.embed_texts(prompts))
    )
    assert (shown @ said.T).argmax(1).tolist() == [0, 1, 2, 3]
