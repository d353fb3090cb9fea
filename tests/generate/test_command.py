"""`dbexp-generate` on the tiny model: the images themselves."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image

from dbexp.config.families import SAMPLERS
from dbexp.core import cores
from dbexp.core.hashing import file_hash
from dbexp.generate import command
from dbexp.models import lora_file
from dbexp.models.random_weights import TINY
from dbexp.sample import draw
from dbexp.sample.png import read_metadata
from tests import builders, run_folders

SNOW = "a {token} {class} in the snow"
Generate = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.make(tmp_path_factory.mktemp("run"), "lora.rank=4", ranks={"unet": 4, "text_encoder": 2})


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's checkpoint with a denoiser that also reads a mask and the masked picture: 9 channels."""
    folder = tmp_path_factory.mktemp("inpainting")
    shutil.copytree(builders.checkpoint(), folder, dirs_exist_ok=True)
    settings = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(settings | {"in_channels": 9}))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    first = tensors["conv_in.weight"]
    more = torch.randn(first.shape[0], 5, *first.shape[2:], generator=torch.Generator().manual_seed(0))
    tensors["conv_in.weight"] = torch.cat([first, more], dim=1)
    safetensors.torch.save_file(tensors, weights)
    return folder


@pytest.fixture
def generate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """`generate("steps=2")` runs the command; the pictures' folder."""
    calls = 0

    def call(*words: str, folder: Path | None = None) -> Path:
        nonlocal calls
        calls += 1
        folder = folder or tmp_path / str(calls)
        given = words if any(word.startswith("run=") for word in words) else (f"run={run}", *words)
        command.main([*given, f"folder={folder}"])
        assert str(folder / "contact_sheet.png") in capsys.readouterr().out
        return folder

    return call


def pixels(folder: Path) -> dict[str, NDArray[np.int64]]:
    """Path in the folder -> its picture, of everything that was drawn."""
    images = {}
    for path in sorted(folder.glob("*/*/*.png")):
        with Image.open(path) as image:
            images[path.relative_to(folder).as_posix()] = np.asarray(image).astype(np.int64)
    return images


def only(folder: Path) -> NDArray[np.int64]:
    (picture,) = pixels(folder).values()
    return picture


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """garden.png, 48 x 32, and mask.png, white on the right."""
    folder = tmp_path_factory.mktemp("garden")
    ramp = np.linspace(0, 255, 48)[None, :, None] * np.ones((32, 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(folder / "garden.png")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (24, 0, 48, 32))
    mask.save(folder / "mask.png")
    return folder


def test_the_picture_is_a_stock_pipelines(generate: Generate, run: Path) -> None:
    """With nothing but diffusers, the LoRA file, and the seed that the picture names."""
    image = only(generate(f"prompt={SNOW}", "seed=7"))
    pipe = builders.model().stock_pipeline(run / "train" / "lora.safetensors")
    (stock,) = pipe(
        "a sks dog in the snow",
        num_inference_steps=3,
        guidance_scale=3.0,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(7),
    ).images
    assert np.abs(np.asarray(stock).astype(int) - image).max() <= 1
    with lora_file.merged(builders.model(), None):
        base = only(generate(f"prompt={SNOW}", "seed=7", "lora_scale=0"))
    assert np.abs(base - image).max() > 12


def test_a_grid(generate: Generate) -> None:
    folder = generate(f"prompt={SNOW}", "prompt=a red {class}", "lora_scale=0.4,1", "base=true", "images=2")
    images = pixels(folder)
    assert len(images) == 3 * 2 * 2
    snow = [images[f"{column}/00-a-sks-dog-in-the-snow/43.png"] for column in ("00-base-model", "01-scale-0-4")]
    assert np.abs(snow[0] - snow[1]).mean() > 0
    metadata = read_metadata(folder / "01-scale-0-4" / "01-a-red-dog" / "43.png")
    assert (
        metadata.items()
        >= {
            "prompt": "a red dog",
            "seed": "43",
            "run": "lora.rank=4",
            "lora_scale": "0.4",
            "steps": "3",
            "guidance_scale": "3.0",
            "width": "32",
            "model": "tiny",
            "task": "text",
        }.items()
    )
    assert len(metadata["lora"]) == 64
    assert read_metadata(folder / "00-base-model" / "01-a-red-dog" / "43.png")["lora"] == "base"


def test_pictures_do_not_depend_on_the_batch(generate: Generate) -> None:
    words = (f"prompt={SNOW}", "prompt=a red {class}", "images=2")
    alone, together = pixels(generate(*words, "batch_size=1")), pixels(generate(*words, "batch_size=4"))
    assert alone.keys() == together.keys()
    for name, picture in alone.items():
        assert np.abs(picture - together[name]).max() <= 1, name
    single = only(generate("prompt=a red {class}", "seed=43"))
    assert np.abs(single - alone["00-scale-1/01-a-red-dog/43.png"]).max() <= 1


@pytest.mark.parametrize("keeps", [None, False, True])
def test_cores_share_a_batch(
    generate: Generate, garden: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool | None
) -> None:
    words = [f"prompt={SNOW}", "prompt=a red {class}", "images=2", "batch_size=4"]
    if keeps is not None:
        words += [f"init_image={garden / 'garden.png'}", f"mask={garden / 'mask.png'}", "paste=false"]
        monkeypatch.setattr("dbexp.models.inpaint.is_needed", lambda pipe: keeps)
    alone = pixels(generate(*words))
    threads = set()
    sample = draw.sample_batch

    def spy(*given: Any) -> Any:
        threads.add(threading.get_ident())
        return sample(*given)

    monkeypatch.setattr(draw, "sample_batch", spy)
    monkeypatch.setattr(cores, "count", lambda device: 3)
    together = pixels(generate(*words))
    assert len(threads) > 1 and alone.keys() == together.keys()
    for name, picture in alone.items():
        assert np.abs(picture - together[name]).max() <= 1, name


def test_what_is_there_is_kept(generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, folder = (f"prompt={SNOW}", "images=3", "batch_size=1"), tmp_path / "grid"
    first = pixels(generate(*words, folder=folder))
    paths = sorted(folder.glob("*/*/*.png"))
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    calls = []
    sample = draw.sample_batch

    def spy(*given: Any) -> Any:
        calls.append(given[1])
        return sample(*given)

    monkeypatch.setattr(draw, "sample_batch", spy)
    again = pixels(generate(*words, folder=folder))
    assert [shot.seed for batch in calls for shot in batch] == [42]
    assert all((first[name] == again[name]).all() for name in first)
    generate(*words, "steps=2", folder=folder)
    assert len(calls) == 1 + 3, "other settings, other pictures"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image_with_every_sampler(generate: Generate, garden: Path, sampler: str) -> None:
    words = (f"prompt={SNOW}", f"init_image={garden / 'garden.png'}", f"sampler={sampler}", "strength=0.5")
    image = only(generate(*words, "steps=4"))
    assert image.shape == (32, 48, 3)
    assert image.std() > 5


def test_the_less_strength_the_more_the_picture_counts(generate: Generate, garden: Path, tmp_path: Path) -> None:
    with Image.open(garden / "garden.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "flipped.png")
    counts = []
    for strength in (0.25, 1.0):
        first, other = (
            only(generate(f"prompt={SNOW}", f"init_image={path}", f"strength={strength}", "steps=4"))
            for path in (garden / "garden.png", tmp_path / "flipped.png")
        )
        counts.append(np.abs(first - other).mean())
    assert counts[0] > 2 * counts[1]


class TestInpainting:
    @pytest.fixture
    def words(self, garden: Path) -> tuple[str, ...]:
        return (f"prompt={SNOW}", f"init_image={garden / 'garden.png'}", f"mask={garden / 'mask.png'}")

    def test_what_the_mask_keeps_is_kept(self, generate: Generate, garden: Path, words: tuple[str, ...]) -> None:
        original = np.asarray(Image.open(garden / "garden.png"))
        image = only(generate(*words))
        assert (image[:, :24] == original[:, :24]).all()
        assert np.abs(image[:, 24:] - original[:, 24:]).mean() > 10

    def test_without_pasting_the_latents_are_kept(self, generate: Generate, words: tuple[str, ...]) -> None:
        first, other = (only(generate(*words[1:], "paste=false", f"prompt={more}")) for more in ("a", "the"))
        assert np.abs(first - other)[:, :8].max() <= 3, "far from the mask, nothing that is asked for matters"
        assert np.abs(first - other)[:, 24:].max() > 3

    def test_a_denoiser_of_nine_channels(
        self, generate: Generate, words: tuple[str, ...], garden: Path, inpainting: Path, tmp_path: Path
    ) -> None:
        model = f"model={inpainting}"
        original = np.asarray(Image.open(garden / "garden.png"))
        image = only(generate(*words, model))
        assert (image[:, :24] == original[:, :24]).all()
        # the same call gives the same bytes, so any difference is an effect
        assert (image != only(generate(*words, model, "lora_scale=0"))).any(), "the LoRA counts"
        inverted = tmp_path / "other.png"
        Image.fromarray(255 - original).save(inverted)
        other = only(generate(words[0], f"init_image={inverted}", words[2], model, "paste=false"))
        assert (other != only(generate(*words, model, "paste=false")))[:, 24:].any(), "it sees the picture"

    def test_latents_of_any_number_of_channels_are_inpainted_as_diffusers_does(
        self, generate: Generate, garden: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With 4 channels both ways are open, and give the same picture."""
        settings = (*words, "strength=0.7", "paste=false", "images=2")
        stock = pixels(generate(*settings))
        monkeypatch.setattr("dbexp.models.inpaint.is_needed", lambda pipe: True)
        ours = pixels(generate(*settings))
        assert len(stock) == 2
        for path, picture in stock.items():
            assert np.abs(ours[path] - picture).max() <= 1
        monkeypatch.setattr("dbexp.models.inpaint.keeping", lambda *given: lambda pipe, step, latents: latents)
        without = pixels(generate(*settings))
        assert all(np.abs(without[path] - picture).max() > 8 for path, picture in stock.items()), "nothing is kept here"

    def test_it_needs_a_mask(
        self, run: Path, inpainting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            command.main([f"run={run}", "prompt=a", f"model={inpainting}", f"folder={tmp_path / 'x'}"])
        assert "is an inpainting checkpoint; give it init_image=FILE and mask=FILE" in str(stop.value.code)


def test_a_sweep_draws_with_its_best_run(
    generate: Generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, dino in enumerate((0.3, 0.9)):
        run_folders.make(tmp_path / "sweep" / str(number), f"lora.rank={number}", columns={"dino": dino})
    folder = tmp_path / "pictures"
    command.main([f"run={tmp_path / 'sweep'}", "prompt=a {token}", f"folder={folder}"])
    assert "sweep/1: the best dino of 0.900 among 2 runs" in capsys.readouterr().out
    (path,) = folder.glob("*/*/*.png")
    assert read_metadata(path)["run"] == "lora.rank=1"


def test_mistakes_are_one_message(run: Path, tmp_path: Path) -> None:
    for words, says in (
        (["prompt=a", "images=0", "width=20"], "2 problems\n  images=0"),
        (["prompt={x}", "init_image=nowhere.png"], "2 problems\n  prompt, entry 1: '{x}' has {x}"),
        ([f"run={run / 'train'}", "prompt=a"], "holds neither a run nor a sweep"),
        (["prompt=a", f"model={tmp_path}"], f"model.path={tmp_path}: {tmp_path} lacks vae"),
        (["prompt=a", f"folder={run / 'result.json' / 'x'}"], "choose another place with folder=FOLDER"),
    ):
        given = words if words[0].startswith("run=") else [f"run={run}", *words]
        with pytest.raises(SystemExit) as stop:
            command.main([*given, *([] if "folder" in words[-1] else [f"folder={tmp_path / 'out'}"])])
        assert str(stop.value.code).startswith("dbexp-generate: ")
        assert says in str(stop.value.code)
        assert not (tmp_path / "out").exists()


def test_prompts_that_are_too_long(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = [f"prompt={place * 15}a {{token}} dog" for place in ("in the snow ", "on the beach ")]
    with pytest.raises(SystemExit) as caught:
        command.main([f"run={run}", f"folder={tmp_path / 'grid'}", *lost])
    assert str(caught.value.code).count("which cuts off the token 'sks'") == 2
    assert not (tmp_path / "grid").exists()
    long = ("prompt=a {token} dog " + "in the snow " * 15, "negative_prompt=" + "red " * 40)
    command.main([f"run={run}", f"folder={tmp_path / 'grid'}", *long, "guidance_scale=3", "steps=2"])
    err = capsys.readouterr().err
    assert "dbexp-generate: prompt='a sks dog " in err and "dbexp-generate: negative_prompt='red " in err


def test_a_lora_of_another_architecture(tmp_path: Path) -> None:
    run_folders.make(tmp_path / "run")
    wide = builders.checkpoint(replace(TINY, unet_channels=(8, 32)))
    with pytest.raises(SystemExit, match=r"does not fit the model .*: unet"):
        command.main([f"run={tmp_path / 'run'}", "prompt=a", f"model={wide}", f"folder={tmp_path / 'out'}"])


@pytest.mark.parametrize(
    ("trouble", "status"),
    [(KeyboardInterrupt(), 130), (torch.OutOfMemoryError(), "batch_size=1: the device has not enough memory")],
)
def test_what_stops_it_says_how_to_go_on(
    trouble: BaseException,
    status: int | str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample, calls = draw.sample_batch, 0

    def stop(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise trouble
        return sample(*arguments)

    monkeypatch.setattr(draw, "sample_batch", stop)
    words = [f"run={run}", f"prompt={SNOW}", "images=3", "batch_size=1", f"folder={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as end:
        command.main(words)
    assert end.value.code == status or str(status) in str(end.value.code)
    assert f"stopped; 1 of 3 pictures are there, and the same command with folder={tmp_path / 'out'} goes on" in (
        capsys.readouterr().err
    )
    command.main(words)
    assert calls == 2 + 2


def test_memory_that_does_not_suffice(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(draw, "sample_batch", fail)
    with pytest.raises(SystemExit, match=r"batch_size=4: the device has not enough memory for one picture of 32 x 32"):
        command.main([f"run={run}", "prompt=a", f"folder={tmp_path / 'out'}"])


class TestFromElsewhere:
    """LoRAs of other trainers: kohya's names, as an export of the run's own has them."""

    @pytest.fixture(scope="class")
    @classmethod
    def file(cls, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        base = builders.model()
        path = tmp_path_factory.mktemp("kohya") / "theirs.safetensors"
        lora_file.write(lora_file.read(run / "train" / "lora.safetensors", base), path, base, "kohya")
        return path

    def words(self, tmp_path: Path) -> list[str]:
        return [f"store={tmp_path / 'store'}", f"folder={tmp_path / 'out'}", "seed=7"]

    def test_beside_a_run(self, run: Path, file: Path, tmp_path: Path) -> None:
        command.main([f"run={run}", f"lora={file}", f"prompt={SNOW}", *self.words(tmp_path)])
        one, other = pixels(tmp_path / "out").items()
        assert other[0].startswith("01-lora-theirs-safetensors/")
        assert np.abs(one[1] - other[1]).max() <= 1
        metadata = read_metadata(tmp_path / "out" / other[0])
        assert (metadata["run"], metadata["lora"]) == ("theirs", file_hash(file))

    def test_alone(self, generate: Generate, file: Path, tmp_path: Path) -> None:
        ours = only(generate(f"prompt={SNOW}", "seed=7", "guidance_scale=7.5", "steps=4"))
        model = [f"model={builders.checkpoint()}", "family=sd", "width=32", "height=32", "steps=4", "device=cpu"]
        words = [f"lora={file}", *model, "token=sks", "class_noun=dog", f"prompt={SNOW}", "precision=fp32"]
        command.main([*words, *self.words(tmp_path), "base=true"])
        base, theirs = pixels(tmp_path / "out").values()
        assert np.abs(ours - theirs).max() <= 1 and np.abs(base - theirs).max() > 12

    def test_an_option_of_dbexp(self, tmp_path: Path) -> None:
        """Base model and sampling are the option's."""
        with pytest.raises(SystemExit) as stop:
            command.main([f"lora={self.other(tmp_path)}", "model=storybook", "prompt=a dog", *self.words(tmp_path)])
        assert "x.safetensors: is a LoRA of another architecture than storybook" in str(stop.value.code)

    def other(self, folder: Path) -> Path:
        tensors = {f"lora_unet_double_blocks_0.lora_{way}.weight": torch.zeros(2, 2) for way in ("down", "up")}
        safetensors.torch.save_file(tensors, folder / "x.safetensors")
        return folder / "x.safetensors"

    def test_mistakes_are_one_message(self, run: Path, file: Path, tmp_path: Path) -> None:
        alone = [f"lora={file}", f"model={builders.checkpoint()}", "family=sd"]
        for words, says in (
            ([*alone, "prompt=a {token} dog"], "token=null: a {token} dog has {token}, which only a run fills in"),
            ([*alone, "prompts=live", "token=sks"], "class_noun=null: "),
            ([f"lora={file}", "prompt=a", "model=nowhere/at-all"], "model=nowhere/at-all: is no option of dbexp"),
            ([f"lora={tmp_path / 'x'},{tmp_path}", f"run={run}", "prompt=a"], "2 problems"),
            ([f"lora={self.other(tmp_path)}", f"run={run}", "prompt=a"], "choose the model that it was trained on"),
            ([f"lora={file}", "prompt=a"], "model=null: say which base model the LoRA was trained on"),
        ):
            with pytest.raises(SystemExit) as stop:
                command.main([*words, *self.words(tmp_path)])
            assert says in str(stop.value.code)
            assert not (tmp_path / "out").exists()
