"""Latents: those of the VAE, of the right squares, encoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from dbexp.config.schema import TrainConfig
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash
from dbexp.core.images import image_hash, prepare
from dbexp.core.store import Store
from dbexp.evaluate.pictures import inspect
from dbexp.models import Model
from dbexp.train import latents
from dbexp.train.latents import Bank, View
from dbexp.train.result import inputs_of
from tests import builders
from tests.core import icc

SIZE = 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def base() -> Model:
    return builders.model()


@pytest.fixture
def no_vae(base: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the VAE must not be asked."""
    monkeypatch.setattr(type(base), "encode_images", lambda *_: pytest.fail("these latents were encoded before"))


def encode(base: Model, store: Store, paths: tuple[Path, ...], seed: int = 0, **train: Any) -> Bank:
    return latents.encode(paths, base, TrainConfig(**train), SIZE, seed, store, title="pictures")


def posterior(image: Image.Image) -> tuple[Tensor, Tensor]:
    """Scaled mean and standard deviation [4, h, w] of one picture, straight from diffusers."""
    vae = AutoencoderKL.from_pretrained(builders.checkpoint() / "vae")
    with torch.no_grad():
        encoded = vae.encode(2 * to_tensor(image)[None] - 1).latent_dist
    return (encoded.mean * 0.18215)[0], (encoded.std * 0.18215)[0]


def test_equals_the_vae(base: Model, store: Store) -> None:
    paths = builders.pictures(3, seed=7, width=60, height=40)
    bank = encode(base, store, paths)
    assert len(bank) == 3 and bank.first == (0, 1, 2)
    assert bank.mean.dtype == bank.std.dtype == torch.float32
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            square = image.resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))
        mean, std = posterior(square)
        torch.testing.assert_close(bank.mean[number], mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(bank.std[number], std, rtol=1e-5, atol=1e-6)


def test_rows_are_pictures_in_order(base: Model, store: Store) -> None:
    one, two, three = builders.pictures(3, seed=7)
    forward = encode(base, store, (one, two, three))
    other = encode(base, store, (three, one))
    assert torch.equal(other.mean, forward.mean[[2, 0]])
    assert not torch.equal(forward.mean[0], forward.mean[1])


def test_a_photograph_in_another_colour_space_is_known_by_its_converted_pixels(
    base: Model, store: Store, tmp_path: Path
) -> None:
    """Only what is converted gets new keys: of latents, of the training, of features."""
    colour = np.full((SIZE, SIZE, 3), (200, 100, 50), dtype=np.uint8)
    plain, wide = tmp_path / "plain.png", tmp_path / "wide.png"
    Image.fromarray(colour).save(plain)
    Image.fromarray(colour).save(wide, icc_profile=icc.rgb())
    converted = icc.levels(icc.light(np.array([200, 100, 50]) / 255) @ icc.P3_TO_SRGB.T).astype(np.uint8)
    assert np.abs(converted.astype(int) - (200, 100, 50)).max() > 10
    bank = encode(base, store, (plain, wide))
    for number, pixels in enumerate((colour, np.broadcast_to(converted, colour.shape))):
        torch.testing.assert_close(bank.mean[number], posterior(Image.fromarray(pixels))[0], rtol=1e-5, atol=2e-3)
    inputs = inputs_of(builders.training(images=(plain, wide), class_images=(wide, plain)), base)
    assert inputs["images"] == [file_hash(plain), image_hash(wide)] != [file_hash(plain), file_hash(wide)]
    assert inputs["class_images"] == [image_hash(wide), file_hash(plain)]
    assert [inspect(path).sha256 for path in (plain, wide)] == inputs["images"]


def test_encoded_once(base: Model, store: Store, request: pytest.FixtureRequest) -> None:
    paths = builders.pictures(2, seed=8)
    bank = encode(base, store, paths, lr=1e-4)
    request.getfixturevalue("no_vae")
    again = encode(base, store, paths, lr=5e-4, steps=3, seed=9)  # what latents do not depend on
    assert torch.equal(again.mean, bank.mean) and torch.equal(again.std, bank.std)
    assert again.first == bank.first


@pytest.mark.parametrize("change", [{"interpolation": "lanczos"}, {"flip": True}, {"crop": "random"}])
def test_what_latents_depend_on(base: Model, store: Store, change: dict[str, Any]) -> None:
    paths = builders.pictures(1, seed=9, width=48, height=120)
    assert not torch.equal(encode(base, store, paths).mean[:1], encode(base, store, paths, **change).mean[-1:])


def test_flip_doubles_the_views(base: Model, store: Store) -> None:
    paths = builders.pictures(2, seed=7)
    bank = encode(base, store, paths, flip=True)
    assert bank.first == (0, 2) and bank.mean.shape[0] == 4
    assert [bank.views(picture) for picture in range(2)] == [2, 2]
    with Image.open(paths[1]) as image:
        mirrored = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    torch.testing.assert_close(bank.mean[3], posterior(mirrored)[0], rtol=1e-5, atol=1e-6)


def test_random_crops(base: Model, store: Store) -> None:
    wide, square = builders.pictures(1, seed=7, width=80, height=40), builders.pictures(1, seed=8)
    bank = encode(base, store, wide + square, crop="random", crop_variants=3, flip=True)
    assert bank.first == (0, 6) and bank.mean.shape[0] == 7 + 1, "a square picture has one place to cut, seen two ways"
    assert [bank.views(0), bank.views(1)] == [6, 2]
    # a picture's crops are its own: they do not depend on the pictures around it
    alone = encode(base, store, wide, crop="random", crop_variants=3, flip=True)
    assert torch.equal(alone.mean, bank.mean[:6])
    others = encode(base, store, wide, crop="random", crop_variants=3, flip=True, seed=1)
    assert not torch.equal(others.mean, alone.mean)


class TestViews:
    RANDOM = TrainConfig(crop="random", crop_variants=200)

    def test_center(self) -> None:
        assert latents.views(80, 40, TrainConfig(), SIZE, seed=0) == (View(None, None, False),)
        both = latents.views(80, 40, TrainConfig(flip=True), SIZE, seed=0)
        assert both == (View(None, None, False), View(None, None, True))

    def test_random_covers_what_there_is(self) -> None:
        places = latents.views(36, 32, self.RANDOM, SIZE, seed=0)
        assert len(places) == 200
        assert {place.left for place in places} == {0, 1, 2, 3, 4}
        assert {place.top for place in places} == {0}
        assert {place.top for place in latents.views(32, 34, self.RANDOM, SIZE, seed=0)} == {0, 1, 2}

    def test_every_place_can_be_cut(self) -> None:
        image = Image.new("RGB", (97, 131))
        for place in latents.views(97, 131, self.RANDOM, SIZE, seed=0):
            assert prepare(image, SIZE, "bilinear", place.left, place.top).shape == (3, SIZE, SIZE)

    def test_the_seed_decides(self) -> None:
        first = latents.views(80, 40, self.RANDOM, SIZE, seed=0)
        assert first == latents.views(80, 40, self.RANDOM, SIZE, seed=0)
        assert first != latents.views(80, 40, self.RANDOM, SIZE, seed=1)


class TestNoCrop:
    TRAIN = TrainConfig(crop="none")

    def test_every_oblong_picture_is_named(self, base: Model, store: Store) -> None:
        paths = builders.pictures(2, seed=7, width=60, height=40) + builders.pictures(1, seed=8)
        expected = tuple(
            f"train.crop=none: {number}.png is 60 x 40 px, not square; use train.crop=center" for number in range(2)
        )
        assert tuple(latents.check_square(paths, self.TRAIN)) == expected
        assert latents.check_square(paths, replace(self.TRAIN, crop="random")) == []
        with pytest.raises(ConfigError) as caught:
            encode(base, store, paths, crop="none")
        assert caught.value.problems == expected

    def test_square_pictures_are_those_of_center(
        self, base: Model, store: Store, request: pytest.FixtureRequest
    ) -> None:
        paths = builders.pictures(2, seed=8)
        bank = encode(base, store, paths)
        request.getfixturevalue("no_vae")
        assert torch.equal(encode(base, store, paths, crop="none").mean, bank.mean)


def test_sizes_are_those_of_the_file_and_of_the_cut(base: Model, store: Store) -> None:
    """Height before width, as SDXL's denoiser is told; a mirrored cut counts from the mirrored picture's left."""
    (path,) = builders.pictures(1, seed=5, width=96, height=64)  # 48 x 32 once it is resized
    bank = encode(base, store, (path,), flip=True)
    assert bank.sizes.tolist() == [[64, 96, 0, 8, SIZE, SIZE], [64, 96, 0, 8, SIZE, SIZE]]
    cut = encode(base, store, (path,), crop="random", crop_variants=3, flip=True)
    lefts = cut.sizes[:, 3].tolist()
    pairs = list(zip(lefts[::2], lefts[1::2], strict=True))
    assert len(set(lefts[::2])) > 1 and all(plain + mirrored == 16 for plain, mirrored in pairs)
    again = encode(base, store, (path,), crop="random", crop_variants=3, flip=True)
    assert torch.equal(again.sizes, cut.sizes)


class OnAGpu:
    """A model that says it is on another device, and notes how many pictures are encoded at once."""

    device = torch.device("cuda")

    def __init__(self, base: Model) -> None:
        self.base, self.sizes = base, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.sizes.append(len(pixels))
        return self.base.encode_images(pixels)


def test_a_gpu_encodes_several_at_once(base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "_PIXELS", 4 * SIZE * SIZE)
    paths, gpu = builders.pictures(5), OnAGpu(base)
    together: Any = gpu  # which a model is to whoever encodes
    several = latents.encode(paths, together, TrainConfig(flip=True), SIZE, 0, Store(tmp_path / "a"), title="pictures")
    assert gpu.sizes == [4, 4, 2]
    alone = encode(base, Store(tmp_path / "b"), paths, flip=True)
    assert several.first == alone.first and torch.equal(several.sizes, alone.sizes)
    torch.testing.assert_close(several.mean, alone.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(several.std, alone.std, rtol=1e-5, atol=1e-5)
