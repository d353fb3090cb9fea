"""The same picture whatever is drawn around it, and a set that goes on where it was stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dbexp import models
from dbexp.config.families import SAMPLERS
from dbexp.core import cores
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash
from dbexp.core.store import MANIFEST, Store
from dbexp.estimate import hollow
from dbexp.estimate.card import PretendedCard
from dbexp.models import Model
from dbexp.sample import draw as engine
from dbexp.sample import png
from dbexp.sample.png import read_metadata
from dbexp.sample.sets import draw_set
from dbexp.sample.shots import Sampling, Shot, image_seed
from tests import builders

PROMPTS = ("a sks dog in the snow", "a red sks dog", "a dog on the beach")


def sampling(**changes: Any) -> Sampling:
    """Two pictures each of three prompts."""
    settings: dict[str, Any] = {
        "stream": "sample",
        "seed": 42,
        "prompts": PROMPTS,
        "images_per_prompt": 2,
        "steps": 2,
        "guidance_scale": 7.5,
        "sampler": None,
        "resolution": 32,
    }
    return Sampling(**settings | changes)


def draw(model: Model, store: Store, batch_size: int = 4, lora: Path | None = None, **changes: Any) -> list[Path]:
    files = draw_set(
        "sample", sampling(**changes), model, store, lora=lora, batch_size=batch_size, description="sample"
    )
    return list(files)


def pixels(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def distance(a: Path, b: Path) -> int:
    """Largest difference of any pixel, in levels of 0..255."""
    return int(np.abs(pixels(a) - pixels(b)).max())


def hashes(files: Sequence[Path]) -> list[str]:
    return [file_hash(path) for path in files]


class Pipeline:
    """The stock pipeline, with every call noted."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.scheduler = pipe, pipe.scheduler
        self.calls: list[list[int]] = []

    def __call__(self, **arguments: Any) -> Any:
        self.calls.append([generator.initial_seed() for generator in arguments["generator"]])
        return self.pipe(**arguments)


class Stopped(Pipeline):
    """Interrupted in the middle of its second call."""

    def __call__(self, **arguments: Any) -> Any:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        if self.calls:
            arguments["callback_on_step_end"] = interrupt
        return super().__call__(**arguments)


class Diverged(Pipeline):
    """The first picture of every batch is partly NaN."""

    def __call__(self, **arguments: Any) -> Any:
        result = super().__call__(**arguments)
        result.images[0, 3:] = np.nan
        return result


class Full(Pipeline):
    """Too large for the device."""

    def __call__(self, **arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")


def seeds(prompt: str) -> list[int]:
    """Of both pictures of a prompt."""
    return [image_seed(sampling(), prompt, k) for k in range(2)]


Wrap = Callable[[type[Pipeline]], list[Pipeline]]


@pytest.fixture
def wrap(model: Model, monkeypatch: pytest.MonkeyPatch) -> Wrap:
    """Put a class around the pipelines that the model gives; those given are appended to the list returned."""
    original = model.pipeline

    def change(kind: type[Pipeline]) -> list[Pipeline]:
        pipelines: list[Pipeline] = []

        def pipeline(*arguments: Any) -> Pipeline:
            pipelines.append(kind(original(*arguments)))
            return pipelines[-1]

        monkeypatch.setattr(model, "pipeline", pipeline)
        return pipelines

    return change


# -- one picture ------------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_the_stock_pipeline(model: Model, store: Store) -> None:
    files = draw(model, store)
    assert all((pixels(path).shape, pixels(path).std() > 1) == ((32, 32, 3), True) for path in files)
    for path in (files[2], files[5]):
        metadata = read_metadata(path)
        generator = torch.Generator().manual_seed(int(metadata["seed"]))
        [stock] = model.stock_pipeline(None)(
            metadata["prompt"], num_inference_steps=2, height=32, width=32, generator=generator
        ).images
        assert np.abs(pixels(path) - np.asarray(stock).astype(int)).max() <= 1


def test_a_picture_says_how_it_was_made(model: Model, lora: Path, store: Store) -> None:
    files = draw(model, store, lora=lora, sampler="ddim", negative_prompt="blurry")
    with Image.open(files[3]) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    assert read_metadata(files[3]) == {
        "prompt": "a red sks dog",
        "k": "1",
        "seed": str(image_seed(sampling(), "a red sks dog", 1)),
        "stream": "sample",
        "model": "tiny",
        "model_hash": model.identity,
        "dtype": "float32",
        "lora": file_hash(lora),
        "lora_scale": "1.0",
        "sampler": "ddim",
        "steps": "2",
        "guidance_scale": "7.5",
        "negative_prompt": "blurry",
    }
    base = read_metadata(draw(model, store)[3])
    assert (base["lora"], base["sampler"], base["negative_prompt"]) == ("base", "PNDMScheduler", "")


def test_prompts_beyond_latin_survive_in_metadata_and_file_names(model: Model, store: Store) -> None:
    files = draw(model, store, prompts=("sks 犬 in Zürich", "犬", "a" * 200), images_per_prompt=1)
    assert [path.parent.name for path in files] == ["00-sks-in-z-rich", "01-prompt", "02-" + "a" * 60]
    assert read_metadata(files[1])["prompt"] == "犬"


# -- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_batch_size_or_order(sampler: str, model: Model, tmp_path: Path) -> None:
    snow, red, _ = PROMPTS
    together = draw(model, Store(tmp_path / "a"), sampler=sampler, prompts=(snow, red))
    alone = draw(model, Store(tmp_path / "b"), sampler=sampler, prompts=(snow,), batch_size=1)
    other = draw(model, Store(tmp_path / "c"), sampler=sampler, prompts=(red, snow), batch_size=3, images_per_prompt=3)
    for mine, theirs in zip(together * 2, [*alone, *other[:2], *other[3:5], *other[:2]], strict=True):
        assert read_metadata(mine)["prompt"] == read_metadata(theirs)["prompt"]
        assert distance(mine, theirs) <= 1
    assert distance(together[0], together[1]) > 10, "the numbers of a prompt must differ"


# -- the store's key --------------------------------------------------------------------------------------------------


def test_batch_size_is_no_part_of_the_key(model: Model, store: Store, wrap: Wrap) -> None:
    files = draw(model, store, batch_size=4)
    pipelines = wrap(Pipeline)
    assert draw(model, store, batch_size=1) == files
    assert pipelines == []


@pytest.mark.parametrize(
    "change",
    [
        {"stream": "class"},
        {"seed": 7},
        {"prompts": PROMPTS[:2]},
        {"images_per_prompt": 1},
        {"steps": 3},
        {"guidance_scale": 2.0},
        {"sampler": "ddim"},
        {"resolution": 64},
        {"negative_prompt": "blurry"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_pictures_changes_the_key(
    change: dict[str, Any], model: Model, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "get", lambda stage, inputs, make: store.path(stage, inputs))
    assert draw(model, store)[0].parent.parent != draw(model, store, **change)[0].parent.parent
    assert draw(model, store) == draw(model, store)


def test_precision_and_the_lora_are_part_of_the_key(
    model: Model, lora: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "get", lambda stage, inputs, make: store.path(stage, inputs))
    copy, other = tmp_path / "copy.safetensors", tmp_path / "other.safetensors"
    copy.write_bytes(lora.read_bytes())
    other.write_bytes(lora.read_bytes() + b" ")
    base, on = draw(model, store), draw(model, store, lora=lora)
    assert base != on
    assert on == draw(model, store, lora=copy), "what counts is what is in the file, not where it lies"
    assert on != draw(model, store, lora=other)
    monkeypatch.setattr(model, "dtype", torch.bfloat16)
    assert base != draw(model, store)


def test_cores_share_a_batch_and_draw_the_same_pictures(
    model: Model, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = draw(model, Store(tmp_path / "alone"), images_per_prompt=5)
    counts: dict[int, int] = {}
    original = engine.sample_batch

    def sample(pipe: Any, batch: Sequence[Shot], *others: Any) -> NDArray[np.uint8]:
        counts[threading.get_ident()] = counts.get(threading.get_ident(), 0) + len(batch)
        return original(pipe, batch, *others)

    monkeypatch.setattr(engine, "sample_batch", sample)
    monkeypatch.setattr(cores, "count", lambda device: 3)
    together = draw(model, store, images_per_prompt=5)
    assert len(counts) > 1 and sum(counts.values()) == len(together) == 15
    assert all(distance(one, other) <= 1 for one, other in zip(alone, together, strict=True))


def test_what_stops_one_core_stops_all_and_leaves_whole_pictures(
    model: Model, lora: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in model.part("unet").state_dict().items()}
    monkeypatch.setattr(cores, "count", lambda device: 2)
    original = png.save

    def save(pixels: NDArray[np.uint8], path: Path, metadata: dict[str, Any]) -> None:
        if path.name == "1.png":
            raise KeyboardInterrupt
        original(pixels, path, metadata)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(png, "save", save)
        draw(model, store, lora=lora)
    assert all(torch.equal(value, before[name]) for name, value in model.part("unet").state_dict().items())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dbexp-core")]
    assert len(draw(model, store, lora=lora)) == 6


# -- interruption -----------------------------------------------------------------------------------------------------


def test_a_set_that_was_stopped_goes_on_and_gives_the_same_bytes(
    model: Model, store: Store, tmp_path: Path, wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    uninterrupted = draw(model, Store(tmp_path / "uninterrupted"))
    wrap(Stopped)
    with pytest.raises(KeyboardInterrupt):
        draw(model, store)
    [partial] = store.root.rglob("*.partial")
    assert len(list(partial.rglob("*.png"))) == 4
    caplog.set_level(logging.INFO)
    pipelines = wrap(Pipeline)
    resumed = draw(model, store)
    assert pipelines[0].calls == [seeds(PROMPTS[2])], "only what is missing is drawn"
    assert hashes(resumed) == hashes(uninterrupted)
    assert "4 of 6 pictures are there from an interrupted run" in caplog.text


def test_missing_and_truncated_pictures_are_drawn_again_with_their_whole_batch(
    model: Model, store: Store, wrap: Wrap
) -> None:
    files = draw(model, store, batch_size=2)
    before, entry = hashes(files), files[0].parent.parent
    partial = entry.with_name(f"{entry.name}.partial")
    entry.rename(partial)
    (partial / MANIFEST).unlink()
    (partial / "00-a-sks-dog-in-the-snow" / "1.png").unlink()
    cut = partial / "01-a-red-sks-dog" / "0.png"
    cut.chmod(0o644)
    cut.write_bytes(cut.read_bytes()[:-200])
    (partial / "01-a-red-sks-dog" / ".0.png.1a2b3c4d").write_bytes(b"half of a picture, left by a killed process")
    pipelines = wrap(Pipeline)
    assert draw(model, store, batch_size=2) == files
    assert pipelines[0].calls == [seeds(PROMPTS[0]), seeds(PROMPTS[1])]
    assert hashes(files) == before
    assert not list(entry.rglob(".*"))
    assert store.damaged(entry) == []


def test_an_interruption_leaves_the_base_weights_as_they_were(
    model: Model, lora: Path, store: Store, wrap: Wrap
) -> None:
    before = {name: value.clone() for name, value in model.part("unet").state_dict().items()}
    wrap(Stopped)
    with pytest.raises(KeyboardInterrupt):
        draw(model, store, lora=lora)
    assert all(torch.equal(value, before[name]) for name, value in model.part("unet").state_dict().items())


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_picture_of_nan_is_kept_black_and_named(
    model: Model, store: Store, wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    wrap(Diverged)
    files = draw(model, store, batch_size=2)
    assert [pixels(path).max() > 0 for path in files] == [False, True] * 3
    for number, prompt in enumerate(PROMPTS):
        assert f"{prompt!r}, {files[2 * number].relative_to(files[0].parent.parent)}: came out as NaN" in caplog.text


def test_a_batch_that_memory_does_not_suffice_for_is_drawn_in_halves(
    model: Model, store: Store, wrap: Wrap, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: those that follow are no larger. Every picture has the noise that it would have had."""
    expected = [pixels(path) for path in draw(model, Store(tmp_path / "other"), batch_size=4)]
    sizes: list[int] = []

    class Narrow(Pipeline):
        """Has room for two."""

        def __call__(self, **arguments: Any) -> Any:
            sizes.append(len(arguments["generator"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(**arguments)

    wrap(Narrow)
    drawn = [pixels(path) for path in draw(model, store, batch_size=4)]
    assert sizes == [4, 2, 2, 2]
    assert caplog.text.count("memory did not suffice for 4 pictures at once: going on with 2 (sample.batch_size)") == 1
    for one, other in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)


def test_too_little_memory_is_told_with_a_way_out(model: Model, store: Store, wrap: Wrap) -> None:
    wrap(Full)
    with pytest.raises(ConfigError, match=r"sample.batch_size=4: .* for one picture of .* lower the resolution"):
        draw(model, store)
    with pytest.raises(ConfigError, match=r"sample.batch_size=1: .* lower the resolution or the precision"):
        draw(model, store, batch_size=1)


# -- on a card --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "grows", "sizes"),
    [(80 << 30, True, [2, 24]), (80 << 30, False, [2] * 3), (12 << 20, True, None)],
    ids=["much memory", "as many as asked for", "little memory"],
)
def test_batches_grow_to_what_a_card_has_room_for(
    memory: int, grows: bool, sizes: list[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    original = engine.sample_batch

    def sample(pipe: Any, batch: Sequence[Shot], *others: Any) -> NDArray[np.uint8]:
        drawn.append(len(batch))
        return original(pipe, batch, *others)

    monkeypatch.setattr(engine, "sample_batch", sample)
    card = PretendedCard(memory=memory)
    with card, hollow.parts_without_weights(card):
        model = models.load(builders.model_config(device="cuda"), Store(tmp_path / "models"))
        store = Store(tmp_path / "store")
        settings = sampling(prompts=("a dog", "a cat"), images_per_prompt=13 if grows else 3)
        files = draw_set("sample", settings, model, store, batch_size=2, grows=grows, description="sample")
    models.forget()
    assert len(files) == (26 if grows else 6) and all(path.is_file() for path in files)
    if sizes is None:
        assert 2 < max(drawn) < 24, drawn
    else:
        assert drawn == sizes
