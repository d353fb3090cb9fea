"""Prior images: the base model's, or the user's own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample import prior
from dbexp.sample.png import read_metadata
from dbexp.sample.prior import PriorRequest, find_prior_images, prior_images
from dbexp.sample.shots import Sampling

SAMPLING = Sampling("prior", 42, ("a photo of dog",), 3, steps=2, guidance_scale=7.5, sampler=None, resolution=32)
REQUEST = PriorRequest(SAMPLING, batch_size=2)


@pytest.fixture
def user_images(tmp_path: Path) -> PriorRequest:
    """A user's folder of five prior images, and a note beside them."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("b.png", "a.jpg", "e.png", "d.png", "c.png"):
        Image.new("RGB", (16, 16), "red").save(folder / name)
    (folder / "notes.txt").write_text("taken in May")
    return replace(REQUEST, path=str(folder))


def with_count(request: PriorRequest, count: int) -> PriorRequest:
    """The same with so many images."""
    return replace(request, sampling=replace(request.sampling, images_per_prompt=count))


def test_the_base_model_draws_as_many_as_wanted(model: Model, store: Store) -> None:
    assert find_prior_images(REQUEST, model, store) is None
    images = prior_images(REQUEST, model, store)
    assert [path.name for path in images] == ["0000.png", "0001.png", "0002.png"]
    assert len({file_hash(path) for path in images}) == 3
    metadata = read_metadata(images[0])
    assert metadata["prompt"] == "a photo of dog"
    assert (metadata["lora"], metadata["stream"], metadata["steps"]) == ("base", "prior", "2")
    with Image.open(images[0]) as image:
        assert image.size == (32, 32)
    assert find_prior_images(REQUEST, model, store) == images


def test_without_prior_preservation_nothing_is_drawn_or_read(model: Model, store: Store) -> None:
    assert prior_images(None, model, store) == () == find_prior_images(None, model, store)
    assert not store.root.exists()


def test_runs_share_them_unless_the_seed_differs(model: Model, store: Store) -> None:
    first = prior_images(REQUEST, model, store)
    assert prior_images(replace(REQUEST, batch_size=1), model, store) == first
    other = prior_images(replace(REQUEST, sampling=replace(SAMPLING, seed=7)), model, store)
    assert not {file_hash(path) for path in other} & {file_hash(path) for path in first}


def test_a_smaller_count_is_the_beginning_of_a_larger_one(model: Model, store: Store) -> None:
    three, two = (prior_images(with_count(REQUEST, count), model, store) for count in (3, 2))
    assert [read_metadata(path)["seed"] for path in two] == [read_metadata(path)["seed"] for path in three][:2]


def test_drawing_them_leaves_global_randomness_alone(model: Model, store: Store) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    prior_images(REQUEST, model, store)
    assert torch.equal(torch.get_rng_state(), before), "a cold cache would change the training that follows"


def test_an_error_names_this_stages_batch_size(model: Model, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        scheduler = None

        def __call__(self, **arguments: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "pipeline", lambda *_: Full())
    with pytest.raises(ConfigError, match=r"prior.batch_size=2: .* for one picture"):
        prior_images(REQUEST, model, store)


def test_the_users_images_the_first_by_name(model: Model, store: Store, user_images: PriorRequest) -> None:
    assert [path.name for path in prior_images(user_images, model, store)] == ["a.jpg", "b.png", "c.png"]
    whole = replace(user_images, use_all=True)
    names = ["a.jpg", "b.png", "c.png", "d.png", "e.png"]
    assert [path.name for path in prior_images(whole, model, store)] == names
    assert [path.name for path in prior_images(with_count(whole, 200), model, store)] == names
    assert not store.root.exists()


def test_fewer_of_the_users_images_than_wanted_are_warned_about(user_images: PriorRequest) -> None:
    few = f"prior.path={user_images.path} holds 5 pictures, fewer than prior.count=200: all of them are used"
    assert few in prior.warnings(with_count(user_images, 200))
    assert not [sentence for sentence in prior.warnings(with_count(user_images, 5)) if "fewer" in sentence]


def test_the_users_images_are_inspected_like_the_subjects(user_images: PriorRequest) -> None:
    folder = Path(str(user_images.path))
    assert prior.problems(user_images) == []
    os.mkfifo(folder / "b2.png")
    (folder / "a2.jpg").write_bytes(b"")
    (folder / "z.png").write_bytes(b"no picture, and beyond the count")
    empty = f"prior.path={folder}: {folder}/a2.jpg: the file is empty"
    assert prior.problems(user_images) == [empty]
    assert prior.problems(replace(user_images, use_all=True)) == [
        empty,
        f"prior.path={folder}: {folder}/b2.png: is a pipe, not a file; remove it",
        f"prior.path={folder}: {folder}/z.png: is not an image of a known format, or is damaged; remove it or make it "
        "again",
    ]
    assert prior.problems(None) == prior.warnings(None) == []


def test_what_is_odd_about_the_users_images(user_images: PriorRequest) -> None:
    (Path(str(user_images.path)) / "a.txt").write_text("a caption")
    large = replace(user_images, sampling=replace(SAMPLING, resolution=100_000))
    small, twins, captions, note = prior.warnings(large)
    assert small.startswith("prior images: smaller than the resolution of 100000 px and therefore enlarged: a.jpg (")
    assert twins == "prior images: the same picture 2 times: b.png and c.png"
    assert captions == "prior images: captions are not read, since every picture has the one of prior.prompt: a.txt"
    assert note.startswith("prior images: not read, since only .avif, ")


def test_a_folder_without_images_is_an_error(model: Model, store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"prior.path=.*empty: the folder holds no picture"):
        prior_images(replace(REQUEST, path=str(tmp_path / "empty")), model, store)
