"""FLUX.2 dev: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2Pipeline, Flux2Transformer2DModel
from numpy.typing import NDArray
from torch import Tensor

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import GUIDANCE, Batch, Model, flux2, lora_file, mistral
from dbexp.models.flux2 import Flux2
from dbexp.models.random_flux2 import build_random
from dbexp.train.data import Training
from dbexp.train.lane import Draw
from tests import builders
from tests.models import drawing, families
from tests.models.flux2_names import comfy_keys

RESOLUTION = 64
TEXT_TOKENS = 96  # of the random weights; real ones have 512
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"]
TARGETS += [f"single_transformer_blocks.{number}.attn.to_out" for number in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random(tmp_path_factory.mktemp("flux2") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> Flux2:
    fields = {"name": "x", "family": "flux2", "path": str(folder), "precision": "fp32", "device": "cpu", **settings}
    return flux2.load(ModelConfig(**fields), Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Flux2:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path) -> Any:
    """The pipeline that anybody would load."""
    pipe = Flux2Pipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def training(**settings: Any) -> Training:
    return families.training(RESOLUTION, **settings)


class Independent(families.Independent):
    """On the pipeline's own helpers."""

    def __init__(self, folder: Path, made: Training) -> None:
        self.pipe = stock(folder)
        super().__init__(made, {"transformer": self.pipe.transformer}, {"transformer": TARGETS})

    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        pipe, images = self.pipe, families.pixels(paths, RESOLUTION)
        with torch.no_grad():
            states, text_ids = pipe.encode_prompt(list(prompts), max_sequence_length=TEXT_TOKENS)
            latents = pipe._encode_vae_image(images, generator=None)
        share = draw.times[:, None, None, None]
        velocity = pipe.transformer(
            hidden_states=pipe._pack_latents((1 - share) * latents + share * draw.noise),
            timestep=draw.times,
            guidance=torch.full((len(prompts),), self.training.cfg.guidance),
            encoder_hidden_states=states,
            txt_ids=text_ids,
            img_ids=pipe._prepare_latent_ids(latents),
            return_dict=False,
        )[0]
        squares: Tensor = (velocity - pipe._pack_latents(draw.noise - latents)) ** 2
        return squares.mean((1, 2))


class TestSteps:
    @pytest.mark.parametrize(
        ("weight", "settings"),
        [
            (0.0, {"adapters": {"rank": 4, "alpha": 2.0}}),
            (0.7, {"batch_size": 2, "guidance": 3.5, "schedule": {"name": "linear", "warmup_steps": 2}}),
        ],
        ids=["without prior, alpha", "prior, batch, schedule, guidance"],
    )
    def test_equal_an_independent_trainers(
        self, folder: Path, model: Model, store: Store, weight: float, settings: dict[str, Any]
    ) -> None:
        made = training(weight=weight, **settings)
        families.assert_same_steps(Independent(folder, made), model, store)


class TestLanes(families.LaneTests):
    resolution = RESOLUTION
    adapters = 12

    @classmethod
    def lanes(cls) -> dict[str, Training]:
        return {**super().lanes(), "other guidance": training(guidance=3.5)}


# -- sampling ---------------------------------------------------------------------------------------------------------


def batch(model: Model, *, guidance: float = 4.0, **others: Any) -> Batch:
    return drawing.batch(model, guidance, **others)


def stock_draw(pipe: Any, guidance_scale: float = 4.0, **others: Any) -> NDArray[np.floating[Any]]:
    return drawing.stock_draw(pipe, guidance_scale, max_sequence_length=TEXT_TOKENS, **others)


class TestPictures:
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: Flux2) -> None:
        """Drawn from embeddings alone; guidance is read as a number, in one pass."""
        drawn = {guidance: batch(model, guidance=guidance) for guidance in (1.0, 4.0)}
        assert all(each.negative is None for each in drawn.values())
        model.release("text_encoder")
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is None and pipe.tokenizer is None
        images = {guidance: model.draw(pipe, each) for guidance, each in drawn.items()}
        for guidance, ours in images.items():
            expected = stock_draw(stock(folder), guidance_scale=guidance)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
            assert abs(expected[0] - expected[1]).max() > 0.1
        assert abs(images[1.0] - images[4.0]).max() > 1e-3

    def test_another_sampler(self, model: Flux2) -> None:
        """Of second order, it is nearer to many small steps of the first."""
        many = drawing.draw(model, batch(model, steps=40))
        euler, unipc = (drawing.draw(model, batch(model, steps=6), name) for name in ("euler", "unipc"))
        assert 0 < np.square(unipc - many).mean() < np.square(euler - many).mean()

    def test_half_precision_has_a_vae_in_full(self, folder: Path, tmp_path: Path, model: Flux2) -> None:
        half = load(folder, tmp_path, precision="bf16")
        assert half.part("transformer").dtype == torch.bfloat16 and half.part("vae").dtype == torch.float32
        images = drawing.draw(half, batch(half))
        assert np.abs(images - drawing.draw(model, batch(model))).mean() < 0.05

    def test_no_image_to_start_from(self) -> None:
        """Its pipeline takes pictures to look at; nothing else is said to be possible."""
        assert FAMILIES["flux2"].tasks == tuple(Flux2.pipelines) == ("text",)


# -- files ------------------------------------------------------------------------------------------------------------


class TestFiles:
    @pytest.fixture(scope="class", params=["attention", "linear"])
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: Flux2, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers whose alpha is not its rank."""
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        drawing.save_lora(model, request.param, path, strength=0.5)
        return request.param, path

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, model: Flux2, lora: tuple[str, Path]) -> NDArray[np.floating[Any]]:
        """What the model draws with it."""
        base = drawing.draw(model, batch(model))
        with lora_file.merged(model, lora[1]):
            images = drawing.draw(model, batch(model))
        assert abs(images - base).max() > 0.1
        return images

    @pytest.mark.parametrize("format", [None, "diffusers", "kohya"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: Flux2, lora: tuple[str, Path], expected: Any, format: str | None
    ) -> None:
        preset, path = lora
        target = tmp_path / "out.safetensors"
        lora_file.write(lora_file.read(path, model), target, model, format)
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name=target.name)
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)
        if format is not None:
            assert builders.tensors(target).keys() == comfy_keys(format, preset)

    def test_lanes_draw_what_the_file_draws(self, model: Flux2, lora: tuple[str, Path]) -> None:
        preset, path = lora
        drawing.assert_lanes_draw(model, preset, path, channels=128)


def test_true_size() -> None:
    """Built without memory; the settings of the published checkpoint are the class's defaults."""
    with torch.device("meta"):
        denoiser = Flux2Transformer2DModel()
    assert denoiser.config.guidance_embeds
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(32.223, abs=5e-4)
    presets = [flux2.sites(denoiser, preset) for preset in FAMILIES["flux2"].sites]
    assert tuple(map(len, presets)) == (128, 144, 192)
    layers: Any = [denoiser.get_submodule(name) for name in presets[0]]
    assert sum(16 * sum(layer.weight.shape) for layer in layers) / 1e6 == pytest.approx(77.1, abs=0.05)


# -- traps ------------------------------------------------------------------------------------------------------------


class TestText:
    def test_states_are_those_that_the_pipeline_reads(self, folder: Path, model: Flux2) -> None:
        """Of other layers than klein's, and with padding, which the denoiser reads too."""
        pipe = stock(folder)
        with torch.no_grad():
            states = model.encode(model.tokenize(drawing.PROMPTS))["states"]
            expected, _ = pipe.encode_prompt(list(drawing.PROMPTS), max_sequence_length=TEXT_TOKENS)
            klein = {"max_sequence_length": TEXT_TOKENS, "text_encoder_out_layers": (9, 18, 27)}
            others, _ = pipe.encode_prompt(list(drawing.PROMPTS), **klein)
        assert states.shape == (2, TEXT_TOKENS, 3 * 16)
        torch.testing.assert_close(states, expected, rtol=0, atol=0)
        assert not torch.allclose(states, others)

    def test_prompts_follow_the_systems_message(self, folder: Path, model: Flux2) -> None:
        """Begun once; a word that stands for a picture is left out, as the pipeline does."""
        tokens = model.tokenize(["a dog [IMG]in the snow"])
        read = model.tokenizer.decode(tokens["ids"][0][tokens["mask"][0].bool()])
        assert stock(folder).system_message == mistral.SYSTEM_MESSAGE
        system = f"[SYSTEM_PROMPT]{mistral.SYSTEM_MESSAGE}[/SYSTEM_PROMPT]"
        assert read == f"<s>{system}[INST]a dog in the snow[/INST]"

    def test_room(self, model: Flux2) -> None:
        """Of a prompt that fills it the template is whole; one word more, and its end is cut off."""
        assert model.token_count(" ".join(["dog"] * model.room)) == model.room
        ids = model.tokenize(["a" + " dog" * (model.room - 1), "a" + " dog" * model.room])["ids"]
        end = model.tokenizer("[/INST]", add_special_tokens=False).input_ids
        assert ids[0, -1:].tolist() == end and ids[1, -1:].tolist() != end
        (cut,) = model.cuts("[IMG]" + "dog " * (model.room + 3))
        assert cut.room == model.room and cut.tokens > cut.room
        # the closing mark is what is lost first
        assert cut.read == len("dog " * (model.room + 1)) - 1


def test_guidance_of_each_row(model: Flux2) -> None:
    noisy, times = torch.randn(1, 128, 4, 4).expand(2, -1, -1, -1), torch.tensor([0.5, 0.5])
    with torch.no_grad():
        text = model.collate([(model.encode(model.tokenize(["a dog"])), [2])])
        one, other = (model.predict(noisy, times, {**text, GUIDANCE: torch.full((2,), g)}) for g in (1.0, 3.5))
        both = model.predict(noisy, times, {**text, GUIDANCE: torch.tensor([1.0, 3.5])})
    torch.testing.assert_close(both, torch.stack([one[0], other[1]]), rtol=1e-5, atol=1e-6)
    assert abs(both[0] - both[1]).max() > 1e-3


def test_latents_are_the_pipelines(folder: Path, model: Flux2) -> None:
    pixels = families.pixels(builders.pictures(2), RESOLUTION)
    mean, std = model.encode_images(pixels)
    with torch.no_grad():
        expected = stock(folder)._encode_vae_image(pixels, generator=None)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)
    assert mean.dtype == torch.float32 and not std.any()


class TestFound:
    @pytest.mark.parametrize("name", ["tokenizer/chat_template.jinja", "text_encoder/model.safetensors"])
    def test_identity_is_that_of_the_files(self, folder: Path, model: Flux2, tmp_path: Path, name: str) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert load(copy, tmp_path / "hashes").identity == model.identity
        content = bytearray((copy / name).read_bytes())
        content[-2] ^= 1
        (copy / name).write_bytes(content)
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_klein(self, folder: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        index = (copy / "model_index.json").read_text()
        (copy / "model_index.json").write_text(index.replace("Flux2Pipeline", "Flux2KleinPipeline"))
        with pytest.raises(ConfigError, match=r"not a checkpoint of FLUX\.2 dev .*model\.family=flux2_klein those of"):
            load(copy, tmp_path / "hashes")

    def test_text_first(self, folder: Path, tmp_path: Path) -> None:
        families.assert_text_first(load(folder, tmp_path / "hashes"), training(steps=1), Store(tmp_path / "store"))


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("flux2", tmp_path)
