"""Class images for prior preservation: the base model's, or the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from dbexp.config.schema import Config, DatasetConfig, ModelConfig, PriorConfig
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample import prior
from dbexp.sample.png import read_metadata


@pytest.fixture
def cfg() -> Config:
    return Config(
        model=ModelConfig(name="tiny", path="unused", resolution=32),
        dataset=DatasetConfig(name="d", path="unused", token="sks", class_noun="stuffed animal", live=False),
        prior=PriorConfig(count=3, steps=2, batch_size=2),
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder of five class images, and a note beside them."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("b.png", "a.jpg", "e.png", "d.png", "c.png"):
        Image.new("RGB", (16, 16), "red").save(folder / name)
    (folder / "notes.txt").write_text("taken in May")
    return folder


def test_the_base_model_draws_as_many_as_wanted(cfg: Config, model: Model, store: Store) -> None:
    images = prior.class_images(cfg, model, store)
    assert [path.name for path in images] == ["0000.png", "0001.png", "0002.png"]
    assert len({file_hash(path) for path in images}) == 3
    metadata = read_metadata(images[0])
    assert metadata["prompt"] == "a photo of stuffed animal"
    assert (metadata["lora"], metadata["stream"], metadata["steps"]) == ("base", "prior", "2")
    with Image.open(images[0]) as image:
        assert image.size == (32, 32)


def test_without_prior_preservation_nothing_is_drawn_or_read(cfg: Config, model: Model, store: Store) -> None:
    cfg.prior.weight, cfg.prior.path = 0.0, "/there/is/no/such/folder"
    assert prior.class_images(cfg, model, store) == ()
    assert not store.root.exists()


def test_runs_share_them_whatever_else_differs(cfg: Config, model: Model, store: Store) -> None:
    first = prior.class_images(cfg, model, store)
    cfg.lora.rank, cfg.train.lr, cfg.prior.weight, cfg.prior.batch_size = 4, 1e-3, 0.5, 1
    cfg.seeds.sample = cfg.seeds.noise = cfg.seeds.data = cfg.seeds.init = 7
    assert prior.class_images(cfg, model, store) == first
    cfg.seeds.prior = 7
    assert not {file_hash(path) for path in prior.class_images(cfg, model, store)} & {file_hash(path) for path in first}


def test_a_smaller_count_is_the_beginning_of_a_larger_one(cfg: Config, model: Model, store: Store) -> None:
    three = prior.class_images(cfg, model, store)
    cfg.prior.count = 2
    seeds = [read_metadata(path)["seed"] for path in prior.class_images(cfg, model, store)]
    assert seeds == [read_metadata(path)["seed"] for path in three][:2]


def test_drawing_them_leaves_global_randomness_alone(cfg: Config, model: Model, store: Store) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    prior.class_images(cfg, model, store)
    assert torch.equal(torch.get_rng_state(), before), "a cold cache would change the training that follows"


def test_an_error_names_this_stages_batch_size(
    cfg: Config, model: Model, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        scheduler = None

        def __call__(self, **arguments: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "pipeline", lambda *_: Full())
    with pytest.raises(ConfigError, match=r"prior.batch_size=2: .* try prior.batch_size=1"):
        prior.class_images(cfg, model, store)


def test_own_pictures_the_first_by_name(cfg: Config, model: Model, store: Store, own: Path) -> None:
    cfg.prior.path = str(own)
    assert [path.name for path in prior.class_images(cfg, model, store)] == ["a.jpg", "b.png", "c.png"]
    cfg.prior.use_all = True
    everything = prior.class_images(cfg, model, store)
    assert [path.name for path in everything] == ["a.jpg", "b.png", "c.png", "d.png", "e.png"]
    cfg.prior.count = 200
    prior.class_images(cfg, model, store)
    assert not store.root.exists()


def test_fewer_own_pictures_than_asked_for_are_warned_about(cfg: Config, own: Path) -> None:
    cfg.prior.path, cfg.prior.count = str(own), 200
    assert f"prior.path={own} holds 5 pictures, fewer than prior.count=200: all of them are used" in prior.warnings(cfg)
    cfg.prior.count = 5
    assert not [sentence for sentence in prior.warnings(cfg) if "fewer" in sentence]


def test_own_pictures_are_inspected_like_the_subjects(cfg: Config, own: Path) -> None:
    cfg.prior.path, cfg.prior.count = str(own), 3
    assert prior.problems(cfg) == []
    os.mkfifo(own / "b2.png")
    (own / "a2.jpg").write_bytes(b"")
    (own / "z.png").write_bytes(b"no picture, and beyond the count")
    assert prior.problems(cfg) == [f"prior.path={own}: {own}/a2.jpg: the file is empty"]
    cfg.prior.use_all = True
    assert prior.problems(cfg) == [
        f"prior.path={own}: {own}/a2.jpg: the file is empty",
        f"prior.path={own}: {own}/b2.png: is a pipe, not a file; remove it",
        f"prior.path={own}: {own}/z.png: is not an image of a known format, or is damaged; remove it or make it again",
    ]
    cfg.prior.weight = 0.0
    assert prior.problems(cfg) == prior.warnings(cfg) == []


def test_what_is_odd_about_own_pictures(cfg: Config, own: Path) -> None:
    cfg.prior.path, cfg.prior.count, cfg.model.resolution = str(own), 3, 100_000
    (own / "a.txt").write_text("a caption")
    small, twins, captions, note = prior.warnings(cfg)
    assert small.startswith("class images: smaller than the resolution of 100000 px and therefore enlarged: a.jpg (")
    assert twins == "class images: the same picture 2 times: b.png and c.png"
    assert captions == "class images: captions are not read, since every picture has the one of prior.prompt: a.txt"
    assert note.startswith("class images: not read, since only .avif, ")


def test_a_folder_without_pictures_is_an_error(cfg: Config, model: Model, store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cfg.prior.path = str(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"prior.path=.*empty: the folder holds no picture"):
        prior.class_images(cfg, model, store)
