"""The denoiser compiled while it draws: the same images, of base and LoRAs alike, by code that is made once. Unless a
test says so, the compiler's own code generator is left out, which takes minutes here."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dbexp import models
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.estimate import hollow
from dbexp.estimate.card import PretendedCard
from dbexp.models import Model
from dbexp.models.compiled import compiled
from dbexp.models.sd import StableDiffusion
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.sample import draw as engine
from dbexp.sample import sets
from dbexp.sample.shots import Sampling, Shot
from dbexp.sample.sizes import Sizes
from dbexp.sample.together import LaneSet, draw_together
from tests import builders
from tests.models import drawing

DOGS = Sampling("sample", 1, ("a sks dog in the snow", "a red sks dog"), 2, 2, 4.0, None, 64, "")
SMALL = replace(DOGS, prompts=("a dog",), resolution=32, sampler="ddim")
"""For the tiny model."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing that was compiled for another test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled runs operation by operation."""
    original = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda work, **settings: original(work, **{**settings, "backend": "aot_eager"})
    )


def family_of(name: str, folder: Path) -> tuple[Model, list[Path]]:
    """A small model, and two LoRAs; tiny: the smallest of all."""
    config: dict[str, Any] = {} if name == "tiny" else {"path": "random", "resolution": 64, "family": name}
    model = models.load(builders.model_config(**config), Store(folder / "models"))
    paths = [folder / f"{number}.safetensors" for number in range(2)]
    for path, strength in zip(paths, (0.05, 0.1), strict=True):
        drawing.save_lora(model, "attention", path, strength)
    return model, paths


def draw(wanted: Sequence[tuple[Sampling, Path | None]], model: Model, folder: Path, **settings: Any) -> list[Path]:
    """The files of sets, each with its LoRA."""
    return [
        path
        for sampling, lora in wanted
        for path in sets.draw_set(
            "sample", sampling, model, Store(folder), lora=lora, description="", **{"batch_size": 2, **settings}
        )
    ]


def draw_beside(wanted: Sequence[tuple[Sampling, Path]], model: Model, folder: Path, **settings: Any) -> list[Path]:
    """The same for sets that are drawn together."""
    members = [LaneSet(sampling, lora, 1.0) for sampling, lora in wanted]
    draw_together("sample", members, model, Store(folder), **{"batch_size": 2, "grows": False, **settings})
    return draw(wanted, model, folder)


def pixels(paths: Sequence[Path]) -> NDArray[np.int64]:
    return np.stack([np.asarray(Image.open(path)).astype(np.int64) for path in paths])


def graphs() -> int:
    """That the compiler made so far."""
    assert not torch._dynamo.utils.counters["graph_break"]
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(
    ("family", "mode"),
    [
        ("tiny", "blocks"),
        pytest.param("sd", "blocks", marks=pytest.mark.slow),
        pytest.param("sd", "model", marks=pytest.mark.slow),
        pytest.param("sdxl", "blocks", marks=pytest.mark.slow),
        pytest.param("sd3", "blocks", marks=pytest.mark.slow),
        pytest.param("sd3", "model", marks=pytest.mark.slow),
        pytest.param("flux2_klein", "blocks", marks=pytest.mark.slow),
        pytest.param("flux2_klein", "model", marks=pytest.mark.slow),
        pytest.param("z_image", "blocks", marks=pytest.mark.slow),
    ],
)
def test_images_are_those_of_the_uncompiled(family: str, mode: str, tmp_path: Path) -> None:
    """To the byte; what was compiled for the base model serves LoRAs merged into it, and nothing of it stays."""
    model, loras = family_of(family, tmp_path)
    sampling = SMALL if family == "tiny" else DOGS
    made = []
    for lora in (None, *loras):
        expected, found = (draw([(sampling, lora)], model, tmp_path / how, compile=how) for how in ("none", mode))
        assert [path.read_bytes() for path in found] == [path.read_bytes() for path in expected]
        made.append(graphs())
    assert made[0] >= 1 and len({*made}) == 1
    assert not any("forward" in vars(module) for module in model.part(model.family.denoiser).modules())
    models.forget()


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("mode", ["blocks", "model"])
def test_rows_of_several_loras(mode: str, tmp_path: Path) -> None:
    """In common batches, by code that the next as many LoRAs find again."""
    model, loras = family_of("sd", tmp_path)
    made = []
    for seed in (1, 2):
        wanted = [(replace(DOGS, seed=seed), lora) for lora in loras]
        expected, found = (
            draw_beside(wanted, model, tmp_path / how, batch_size=4, compile=how) for how in ("none", mode)
        )
        assert len(found) == 8 and [path.read_bytes() for path in found] == [path.read_bytes() for path in expected]
        made.append(graphs())
    assert made[0] == made[1] >= 1
    models.forget()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("family", ["sd", "flux2_klein"])
def test_by_the_compilers_own_code(family: str, tmp_path: Path) -> None:
    model, _ = family_of(family, tmp_path)
    batch = drawing.batch(model, 4.0)
    expected = drawing.draw(model, batch)
    with compiled(model, "sample.compile", "blocks"):
        found = drawing.draw(model, batch)
    assert np.abs(found - expected).max() < 1e-5
    assert graphs() >= 1
    models.forget()


@contextmanager
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images are drawn at once inside the block."""
    drawn: list[int] = []
    original = engine.sample_batch

    def sample(pipe: Any, batch: Sequence[Shot], *others: Any) -> NDArray[np.uint8]:
        drawn.append(len(batch))
        return original(pipe, batch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "sample_batch", sample)
        yield drawn


def test_the_last_batch_is_as_large_as_the_others(
    model: Model, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its idle seats leave no file, and change no image beyond rounding."""
    monkeypatch.setattr(torch, "compile", lambda work, **settings: work)
    wanted = [(replace(SMALL, images_per_prompt=5), lora)]
    expected = draw(wanted, model, tmp_path / "eager", batch_size=3)
    with batches(monkeypatch) as drawn:
        found = draw(wanted, model, tmp_path / "compiled", batch_size=3, compile="blocks")
        assert drawn == [3, 3]
    assert len(found) == 5 == len([*found[0].parent.glob("*.png")])
    assert np.abs(pixels(found) - pixels(expected)).max() <= 1


@pytest.mark.parametrize("beside", [False, True], ids=["merged", "beside"])
def test_one_shape_serves_the_sets_of_a_sweep_on_a_card(
    beside: bool, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch that measures memory is not compiled. From then on every block sees one shape, whatever is drawn with;
    each batch has the same operations, and the host waits for the card no more often than without."""
    shapes: defaultdict[Any, set[Any]] = defaultdict(set)
    now = {"compiling": True}

    def compile(work: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if now["compiling"]:
                tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
                shapes[work.__self__].add(tuple(tensor.shape for tensor in tensors))  # type: ignore[attr-defined]  # a method
            return work(*args, **kwargs)

        return call

    @contextmanager
    def uncompiled() -> Iterator[None]:
        now["compiling"] = False
        yield
        now["compiling"] = True

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(engine, "uncompiled", uncompiled)
    seen = {}
    original = StableDiffusion.draw
    for how, counts in (("none", [3]), ("blocks", [5, 4])):
        card, operations = PretendedCard(), list[Counter[Any]]()

        def watched(
            *args: Any, card: PretendedCard = card, operations: list[Counter[Any]] = operations
        ) -> NDArray[np.floating[Any]]:
            card.operations.clear()
            images = original(*args)
            operations.append(Counter(card.operations))
            return images

        monkeypatch.setattr(StableDiffusion, "draw", watched)
        with card, hollow.parts_without_weights(card), batches(monkeypatch) as drawn:
            model = models.load(builders.model_config(device="cuda"), Store(tmp_path / "models"))
            card.forget()
            for number, count in enumerate(counts):
                sampling = replace(SMALL, images_per_prompt=count)
                wanted = [(replace(sampling, seed=number + 10 * lane), lora) for lane in range(2 if beside else 1)]
                (draw_beside if beside else draw)(wanted, model, tmp_path / how, grows=True, compile=how)
        monkeypatch.setattr(StableDiffusion, "draw", original)
        seen[how] = drawn, operations, {*card.waits}
        models.forget()
    drawn, operations, waits = seen["blocks"]
    assert drawn == [2, *[10 if beside else 5] * 2]
    assert shapes and {len(each) for each in shapes.values()} == {1}
    assert operations[1] == operations[2] and sum(operations[1].values()) > 100
    assert waits <= seen["none"][2]


class Card:
    """All that sizes ask of a model."""

    device = torch.device("cuda")


def seats(model: Any, count: int, batch_size: int = 8, grows: bool = False, most: int | None = None) -> int | None:
    """Images that each batch of a set has."""
    sizes = Sizes(model, "blocks", batch_size, grows, 512, 512)
    cut = sizes.cut(range(count))
    if sizes.measures and len(cut) > 1:
        assert most is not None
        sizes.grow(most)
        cut = sizes.regroup(range(len(cut[0]), count), count)
    sizes.settle()
    assert all(len(sizes.seated(batch)) == sizes.seats for batch in cut)
    return sizes.seats


class TestSizes:
    def test_sets_of_a_sweep_have_one(self) -> None:
        """Class images, samples and class samples; the first shows how many fit, and later ones know."""
        assert [seats(model, count) for model in [Card()] for count in (200, 100, 100, 25)] == [8] * 4
        card = Card()
        assert [seats(card, 200, grows=True, most=40), seats(card, 100, grows=True), seats(card, 28, grows=True)] == [
            29
        ] * 3

    def test_a_small_set_has_its_own(self) -> None:
        """Rather than many idle seats."""
        card = Card()
        assert [seats(card, count) for count in (100, 4, 33, 3)] == [8, 4, 8, 3]
        assert [seats(card, count) for count in (7, 5, 3)] == [8, 5, 3]

    def test_where_memory_does_not_suffice(self) -> None:
        """Half as many, now and later."""
        card = Card()
        sizes = Sizes(card, "blocks", 8, False, 512, 512)  # type: ignore[arg-type]  # see `Card`
        sizes.cut(range(100))
        sizes.settle()
        assert sizes.halve(8) == 4 and sizes.seats == 4 and sizes.halve(8) is None
        assert sizes.seated([1, 2, 3]) == [1, 2, 3, 3]
        assert seats(card, 100, grows=True) == 4

    def test_what_is_not_compiled_has_no_idle_seats(self) -> None:
        sizes = Sizes(Card(), "none", 8, False, 512, 512)  # type: ignore[arg-type]  # see `Card`
        cut = sizes.cut(range(10))
        sizes.settle()
        assert [*map(len, cut)] == [8, 2] and len(sizes.seated(cut[1])) == 2


def test_what_a_compiler_cannot_do_is_one_message(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(forward: Callable[..., object], **settings: Any) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            raise torch._dynamo.exc.TorchDynamoException("no such target\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        ConfigError, match=r"^sample.compile=model: torch cannot .* here \(no such target\); give none$"
    ):
        draw([(SMALL, None)], model, tmp_path, compile="model")
    assert "forward" not in vars(model.part("unet"))


def test_every_stage_that_draws_is_asked_to(checked: Callable[..., Config]) -> None:
    config = checked("sample.compile=blocks", "dataset.path=nowhere")
    prior = prior_request(config)
    assert prior and prior.compile == sample_request(config).compile == "blocks"
    with pytest.raises(ConfigError, match=r"^sample.compile=all: choose one of none, blocks, model$"):
        checked("sample.compile=all")
