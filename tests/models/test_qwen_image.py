"""Qwen-Image: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from numpy.typing import NDArray
from torch import Tensor

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch, Model, lora_file, qwen_image
from dbexp.models.qwen_frame import BEFORE
from dbexp.models.qwen_image import QwenImage
from dbexp.models.random_qwen_image import build_random
from dbexp.train.data import Training
from dbexp.train.lane import Draw
from tests import builders
from tests.models import drawing, families

RESOLUTION = 64
TEXT_TOKENS = 96  # of the random weights; real ones have 512
BEYOND = f"{families.LONG} and {families.LONG} and a cat"
"""Longer than a block of 64 tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random(tmp_path_factory.mktemp("qwen") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> QwenImage:
    fields = {"name": "q", "family": "qwen_image", "path": str(folder), "precision": "fp32", "device": "cpu"}
    return qwen_image.load(ModelConfig(**{**fields, **settings}), Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> QwenImage:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path, kind: Any = QwenImagePipeline) -> Any:
    """The pipeline that anybody would load."""
    pipe = kind.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def training(**settings: Any) -> Training:
    return families.training(RESOLUTION, **settings)


class Independent(families.Independent):
    """On the pipeline's own text, packing and statistics, and the denoiser as its pipeline calls it."""

    def __init__(self, folder: Path, made: Training) -> None:
        self.pipe = stock(folder)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        super().__init__(made, {"transformer": self.pipe.transformer}, {"transformer": targets})

    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        pipe, images = self.pipe, families.pixels(paths, RESOLUTION)
        with torch.no_grad():
            states, mask = pipe.encode_prompt(list(prompts), max_sequence_length=TEXT_TOKENS)
            posterior = pipe.vae.encode(images[:, :, None]).latent_dist
            drawn = posterior.mean + posterior.std * draw.latent_noise[:, :, None]
            mean, std = (torch.tensor(pipe.vae.config[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
            latents = (drawn - mean) / std
        share, noise = draw.times[:, None, None, None, None], draw.noise[:, :, None]
        noisy, (count, channels, _, height, width) = (1 - share) * latents + share * noise, latents.shape
        velocity = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, count, channels, height, width),
            timestep=draw.times * 1000 / 1000,
            encoder_hidden_states=states,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * count,
        ).sample
        velocity = pipe._unpack_latents(velocity, RESOLUTION, RESOLUTION, pipe.vae_scale_factor)
        squares: Tensor = (velocity - (noise - latents)) ** 2
        return squares.mean((1, 2, 3, 4))


class TestSteps:
    @pytest.mark.parametrize(
        ("weight", "settings"),
        [
            (0.0, {"adapters": {"rank": 4, "alpha": 2.0}}),
            (
                0.7,
                {
                    "batch_size": 2,
                    "weight_decay": 0.1,
                    "schedule": {"name": "linear", "warmup_steps": 2},
                    "prompt": BEYOND,
                    "class_prompt": "a dog",
                },
            ),
        ],
        ids=["without prior, alpha", "prior, batch, schedule, texts of two lengths"],
    )
    def test_equal_an_independent_trainers(
        self, folder: Path, model: Model, store: Store, weight: float, settings: dict[str, Any]
    ) -> None:
        made = training(weight=weight, **settings)
        families.assert_same_steps(Independent(folder, made), model, store)


class TestLanes(families.LaneTests):
    resolution = RESOLUTION
    adapters = 8

    @classmethod
    def lanes(cls) -> dict[str, Training]:
        """Some of whose texts take one block, and one two."""
        beyond = training(weight=0.5, prompt=BEYOND, seed=9, adapters={"rank": 2})
        return {**super().lanes(), "a text beyond a block": beyond}


# -- sampling ---------------------------------------------------------------------------------------------------------


def batch(model: Model, *, guidance: float = 4.0, **others: Any) -> Batch:
    return drawing.batch(model, guidance, **others)


def stock_draw(pipe: Any, *, guidance: float = 4.0, **others: Any) -> NDArray[np.floating[Any]]:
    common: dict[str, Any] = {"negative_prompt": [" "] * 2, "true_cfg_scale": guidance, **others}
    return drawing.stock_draw(pipe, None, max_sequence_length=TEXT_TOKENS, **common)


class TestPictures:
    @pytest.mark.parametrize("guidance", [4.0, 1.0])
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: QwenImage, guidance: float) -> None:
        """Drawn from embeddings alone, whatever prompts stand beside; a space is steered away from."""
        expected = stock_draw(stock(folder), guidance=guidance)
        drawn = batch(model, guidance=guidance)
        assert (drawn.negative is None) == (guidance == 1)
        model.release("text_encoder")
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is None and pipe.tokenizer is None
        np.testing.assert_allclose(model.draw(pipe, drawn), expected, rtol=0, atol=1e-5)
        assert abs(expected[0] - expected[1]).max() > 0.02

    def test_prompts_of_the_stock_pipeline_are_guided_too(self, folder: Path, model: QwenImage) -> None:
        """Without a negative prompt of any kind it would leave guidance out, with a warning alone."""
        pipe = stock(folder)
        drawn = Batch(drawing.PROMPTS, None, drawing.SEEDS, 3, 4.0, drawing.WIDTH, drawing.HEIGHT)
        np.testing.assert_allclose(model.draw(pipe, drawn), stock_draw(pipe), rtol=0, atol=1e-5)

    def test_steering_away(self, folder: Path, model: QwenImage) -> None:
        expected = stock_draw(stock(folder), negative_prompt=["a purple cat"] * 2)
        steered = drawing.draw(model, batch(model, negative="a purple cat"))
        np.testing.assert_allclose(steered, expected, rtol=0, atol=1e-5)
        assert abs(steered - drawing.draw(model, batch(model))).max() > 1e-3

    def test_another_sampler(self, model: QwenImage) -> None:
        """It draws what many small steps of the first draw, in the same times."""
        many = drawing.draw(model, batch(model, guidance=1.0, steps=60))
        euler = drawing.draw(model, batch(model, guidance=1.0, steps=2))
        unipc = drawing.draw(model, batch(model, guidance=1.0, steps=8), "unipc")
        assert 0 < np.square(unipc - many).mean() < 0.2 * np.square(euler - many).mean()
        assert model.pipeline("unipc").scheduler.config.shift_terminal == 0.02
        with pytest.raises(ConfigError, match="sampler=unipc: cannot start from an image; give euler, or null"):
            model.pipeline("unipc", "image")

    def test_in_bf16_the_vae_is_in_full(self, folder: Path, tmp_path: Path, model: QwenImage) -> None:
        half = load(folder, tmp_path, precision="bf16")
        assert half.part("transformer").dtype == torch.bfloat16 and half.part("vae").dtype == torch.float32
        mean, _ = half.encode_images(torch.zeros(1, 3, 64, 64))
        assert mean.dtype == torch.float32
        start: dict[str, Any] = {"image": drawing.picture(), "strength": 0.8}
        for given in (dict[str, Any](), start, {**start, "mask": drawing.right_half()}):
            images = drawing.draw(half, batch(half, guidance=1.0, **given))
            assert np.abs(images - drawing.draw(model, batch(model, guidance=1.0, **given))).mean() < 0.05


class TestImages:
    def test_from_an_image(self, folder: Path, model: QwenImage) -> None:
        pipe, done = stock(folder, QwenImageImg2ImgPipeline), list[tuple[int, int]]()
        expected = stock_draw(pipe, num_inference_steps=5, image=[drawing.picture()] * 2, strength=0.6)
        given: dict[str, Any] = {"image": drawing.picture(), "strength": 0.6}
        drawn = batch(model, steps=5, after_step=lambda *step: done.append(step), **given)
        np.testing.assert_allclose(drawing.draw(model, drawn), expected, rtol=0, atol=1e-4)
        assert done == [(1, 3), (2, 3), (3, 3)]

    def test_inpainting(self, folder: Path, model: QwenImage) -> None:
        pipe = stock(folder, QwenImageInpaintPipeline)
        twice: dict[str, Any] = {"image": [drawing.picture()] * 2, "mask_image": [drawing.right_half()] * 2}
        expected = stock_draw(pipe, num_inference_steps=5, strength=0.8, **twice)
        given: dict[str, Any] = {"image": drawing.picture(), "strength": 0.8}
        drawn = drawing.draw(model, batch(model, steps=5, mask=drawing.right_half(), **given))
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-4)
        plain = drawing.draw(model, batch(model, steps=5, **given))
        left, right = (abs(drawn - plain)[:, :, half] for half in (slice(0, 32), slice(64, None)))
        assert left.mean() > right.mean()


# -- files ------------------------------------------------------------------------------------------------------------

# What ComfyUI calls layers of Qwen-Image in LoRA files: after `transformer.` and after `lora_unet_` the names of
# diffusers, which are those of the original checkpoint (its comfy/lora.py).
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
KINDS = {
    "attention": ATTENTION,
    "attention+mlp": (*ATTENTION, "img_mlp.net.0.proj", "img_mlp.net.2"),
    "linear": (
        *(*ATTENTION, "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "img_mod.1", "txt_mod.1"),
    ),
}


def comfy_keys(preset: str, format: str) -> set[str]:
    layers = [f"transformer_blocks.{number}.{kind}" for number in range(2) for kind in KINDS[preset]]
    if format == "diffusers":
        return {f"transformer.{layer}.lora_{side}.weight" for layer in layers for side in "AB"}
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    return {f"lora_unet_{layer.replace('.', '_')}.{end}" for layer in layers for end in ends}


class TestFiles:
    @pytest.fixture(scope="class", params=list(KINDS))
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: QwenImage, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers whose alpha is not its rank."""
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        drawing.save_lora(model, request.param, path, strength=0.3)
        return request.param, path

    @pytest.mark.parametrize("format", [None, "diffusers", "kohya"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: QwenImage, lora: tuple[str, Path], format: str | None
    ) -> None:
        preset, path = lora
        base = drawing.draw(model, batch(model))
        with lora_file.merged(model, path):
            expected = drawing.draw(model, batch(model))
        assert abs(expected - base).max() > 0.02
        target = tmp_path / "out.safetensors"
        lora_file.write(lora_file.read(path, model), target, model, format)
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name=target.name)
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)
        if format:
            assert builders.tensors(target).keys() == comfy_keys(preset, format)

    def test_no_alpha_is_needed_beside_the_weights(self, model: QwenImage, lora: tuple[str, Path]) -> None:
        """ComfyUI reads no metadata."""
        tensors, metadata = model.export(lora_file.read(lora[1], model), "diffusers")
        described = json.loads(metadata["lora_adapter_metadata"])
        assert described["transformer.lora_alpha"] == described["transformer.r"] == 4
        key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
        torch.testing.assert_close(tensors[key], 1.5 * builders.tensors(lora[1])[key])

    def test_lanes_draw_what_the_file_draws(self, model: QwenImage, lora: tuple[str, Path]) -> None:
        preset, path = lora
        drawing.assert_lanes_draw(model, preset, path, channels=16)


def test_true_size() -> None:
    """Built without memory, from the settings of the published checkpoint, which are the class's defaults."""
    with torch.device("meta"):
        denoiser = QwenImageTransformer2DModel()
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(20.430, abs=5e-4)
    presets = [qwen_image.sites(denoiser, preset) for preset in FAMILIES["qwen_image"].sites]
    assert tuple(map(len, presets)) == (240, 360, 840)
    layers = [denoiser.get_submodule(name) for name in presets[0]]
    assert sum(16 * sum(layer.weight.shape) for layer in layers) / 1e6 == pytest.approx(23.6, abs=0.05)


# -- traps ------------------------------------------------------------------------------------------------------------


class TestText:
    def test_states_are_those_that_the_pipeline_reads(self, folder: Path, model: QwenImage) -> None:
        """The last layer's, without the 34 tokens of the frame, padded with zeros behind."""
        prompts = ["a photo of sks dog", BEYOND]
        with torch.no_grad():
            expected, wanted = stock(folder).encode_prompt(prompts, max_sequence_length=TEXT_TOKENS)
            read = model.encode(model.tokenize(prompts))
        length = expected.shape[1]
        assert model.token_count(BEFORE) == 34
        assert torch.equal(read["mask"][:, :length], wanted.bool()) and not read["mask"][:, length:].any()
        torch.testing.assert_close(read["states"][:, :length], expected, rtol=1e-5, atol=1e-6)
        assert read["mask"].sum(1).tolist() == [10, 71] and not read["states"][:, length:].any()

    def test_short_texts_take_a_block(self, model: QwenImage) -> None:
        with torch.no_grad():
            short, long = (model.encode(model.tokenize([prompt])) for prompt in ("a dog", BEYOND))
        assert short["states"].shape == (1, 64, 16) and long["states"].shape == (1, TEXT_TOKENS, 16)
        both = model.collate([(short, [2]), (long, [1])])
        assert both["states"].shape == (3, TEXT_TOKENS, 16) and both["mask"].dtype == torch.bool
        assert both["mask"].sum(1).tolist() == [7, 7, 71]

    def test_a_row_does_not_depend_on_its_neighbours(self, model: QwenImage) -> None:
        noisy, times = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.9])
        with torch.no_grad():
            texts = [model.encode(model.tokenize([prompt])) for prompt in ("a photo of sks dog", BEYOND)]
            both = model.predict(noisy, times, model.collate([(text, [1]) for text in texts]))
            alone = [model.predict(noisy[[row]], times[[row]], texts[row]) for row in range(2)]
        torch.testing.assert_close(both, torch.cat(alone), rtol=1e-5, atol=1e-5)

    def test_room(self, model: QwenImage) -> None:
        """Of a prompt that fills it the frame is whole; one word more, and its end is cut off."""
        assert model.token_count("a" + " dog" * (model.room - 1)) == model.room
        ids = model.tokenize(["a" + " dog" * (model.room - 1), "a" + " dog" * model.room])["ids"]
        end = model.tokenizer("\n").input_ids
        assert ids[0, -1:].tolist() == end and ids[0, -3:].tolist() != ids[1, -3:].tolist()


def test_latents_are_normalised(folder: Path, model: QwenImage) -> None:
    """Of a film of one picture; mean and deviation of each channel are the checkpoint's."""
    pixels = families.pixels(builders.pictures(2), RESOLUTION)
    mean, std = model.encode_images(pixels)
    vae = stock(folder).vae
    with torch.no_grad():
        posterior = vae.encode(pixels[:, :, None]).latent_dist
    center, scale = (torch.tensor(vae.config[f"latents_{name}"]).view(-1, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(mean * scale + center, posterior.mean[:, :, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std * scale, posterior.std[:, :, 0], rtol=1e-5, atol=1e-5)
    assert mean.shape == (2, 16, 8, 8) and mean.dtype == std.dtype == torch.float32


class TestFound:
    def test_identity_is_that_of_the_files(self, folder: Path, model: QwenImage, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert load(copy, tmp_path / "hashes").identity == model.identity
        path = copy / "text_encoder" / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_qwen_image_2_1(self, folder: Path, tmp_path: Path) -> None:
        """Another architecture with another licence."""
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        index = (copy / "model_index.json").read_text()
        (copy / "model_index.json").write_text(index.replace("QwenImagePipeline", "QwenImage21Pipeline"))
        with pytest.raises(ConfigError, match=r"not a checkpoint of Qwen-Image \(its pipeline is QwenImage21Pipeline"):
            load(copy, tmp_path / "hashes")

    def test_text_first(self, folder: Path, tmp_path: Path) -> None:
        families.assert_text_first(load(folder, tmp_path / "hashes"), training(steps=1), Store(tmp_path / "store"))


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("qwen_image", tmp_path)
