"""FLUX.2 klein: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline, Flux2KleinPipeline, Flux2Transformer2DModel
from numpy.typing import NDArray
from torch import Tensor

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch, Model, flux2, flux2_klein, lora_file
from dbexp.models.flux2_klein import Flux2Klein
from dbexp.models.random_flux2_klein import build_random
from dbexp.train.data import Training
from dbexp.train.lane import Draw
from tests import builders
from tests.models import drawing, families
from tests.models.flux2_names import comfy_keys

RESOLUTION = 64
TEXT_TOKENS = 64  # of the random weights; real ones have 512
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"]
TARGETS += [f"single_transformer_blocks.{number}.attn.to_out" for number in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random(tmp_path_factory.mktemp("klein") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> Flux2Klein:
    config = ModelConfig(**{"name": "klein", "path": str(folder), "precision": "fp32", "device": "cpu", **settings})
    return flux2_klein.load(config, Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Flux2Klein:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path) -> Any:
    """The pipeline that anybody would load."""
    pipe = Flux2KleinPipeline.from_pretrained(folder, local_files_only=True)
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
        noisy = pipe._pack_latents((1 - share) * latents + share * draw.noise)
        velocity = pipe.transformer(
            hidden_states=noisy,
            timestep=draw.times,
            guidance=None,
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
            (0.7, {"batch_size": 2, "weight_decay": 0.1, "schedule": {"name": "linear", "warmup_steps": 2}}),
        ],
        ids=["without prior, alpha", "prior, batch, schedule"],
    )
    def test_equal_an_independent_trainers(
        self, folder: Path, model: Model, store: Store, weight: float, settings: dict[str, Any]
    ) -> None:
        made = training(weight=weight, **settings)
        families.assert_same_steps(Independent(folder, made), model, store)


class TestLanes(families.LaneTests):
    resolution = RESOLUTION
    adapters = 12


# -- sampling ---------------------------------------------------------------------------------------------------------


def batch(model: Model, *, guidance: float = 4.0, **others: Any) -> Batch:
    return drawing.batch(model, guidance, **others)


def stock_draw(pipe: Any, guidance_scale: float = 4.0, **others: Any) -> NDArray[np.floating[Any]]:
    return drawing.stock_draw(pipe, guidance_scale, max_sequence_length=TEXT_TOKENS, **others)


class TestPictures:
    @pytest.mark.parametrize("guidance", [4.0, 1.0])
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: Flux2Klein, guidance: float) -> None:
        """Drawn from embeddings alone, bit for bit, whatever prompts stand beside."""
        expected = stock_draw(stock(folder), guidance_scale=guidance)
        model.release("text_encoder")
        drawn = batch(model, guidance=guidance)
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is None and pipe.tokenizer is None
        np.testing.assert_array_equal(model.draw(pipe, drawn), expected)
        assert abs(expected[0] - expected[1]).max() > 0.1

    def test_another_sampler(self, model: Flux2Klein) -> None:
        """Of second order, it is nearer to many small steps of the first."""
        many = drawing.draw(model, batch(model, steps=40))
        euler, unipc = (drawing.draw(model, batch(model, steps=6), name) for name in ("euler", "unipc"))
        assert 0 < np.square(unipc - many).mean() < np.square(euler - many).mean()

    def test_steering_away(self, folder: Path, model: Flux2Klein) -> None:
        """The pipeline itself takes no negative prompt; embeddings of one it does."""
        with pytest.raises(TypeError, match="negative_prompt"):
            stock_draw(stock(folder), negative_prompt=["a cat"] * 2)
        plain, steered = (drawing.draw(model, batch(model, negative=text)) for text in ("", "a purple cat"))
        assert abs(plain - steered).max() > 1e-3

    def test_a_distilled_checkpoint_has_one_pass(self, tmp_path: Path) -> None:
        folder = build_random(tmp_path / "distilled", distilled=True)
        model = load(folder, tmp_path / "hashes")
        assert not model.guided(4.0)
        drawn = batch(model)
        assert drawn.negative is None
        np.testing.assert_array_equal(drawing.draw(model, drawn), stock_draw(stock(folder)))

    def test_half_precision_has_a_vae_in_full(self, folder: Path, tmp_path: Path, model: Flux2Klein) -> None:
        half = load(folder, tmp_path, precision="bf16")
        assert half.part("transformer").dtype == torch.bfloat16 and half.part("vae").dtype == torch.float32
        inpainting: dict[str, Any] = {"image": drawing.picture(), "mask": drawing.right_half(), "strength": 0.8}
        for others in ({}, inpainting):
            images = drawing.draw(half, batch(half, **others))
            assert np.abs(images - drawing.draw(model, batch(model, **others))).mean() < 0.05
        mean, _ = half.encode_images(torch.zeros(1, 3, 64, 64))
        assert mean.dtype == torch.float32


class TestImages:
    def test_inpainting_is_the_stock_pipelines(self, folder: Path, model: Flux2Klein) -> None:
        pipe = Flux2KleinInpaintPipeline(**stock(folder).components)
        pipe.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {"image": drawing.picture(), "strength": 0.8}
        expected = stock_draw(pipe, mask_image=drawing.right_half(), num_inference_steps=5, **given)
        drawn = drawing.draw(model, batch(model, steps=5, mask=drawing.right_half(), **given))
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-4)

    def test_the_picture_goes_in_as_latents(self, model: Flux2Klein) -> None:
        """Pixels the pipeline would scale down to a megapixel, and encode in its own precision."""
        drawn = batch(model, image=drawing.picture(), mask=drawing.right_half())
        image = model.call(model.pipeline(None, "inpaint"), drawn)["image"]
        assert image.shape == (1, 128, drawing.HEIGHT // 16, drawing.WIDTH // 16)

    def test_a_sampler_that_cannot_keep(self, model: Flux2Klein) -> None:
        with pytest.raises(ConfigError, match="sampler=unipc: cannot put back what the mask keeps; give euler"):
            model.pipeline("unipc", "inpaint")


# -- files ------------------------------------------------------------------------------------------------------------


class TestFiles:
    @pytest.fixture(scope="class", params=["attention", "linear"])
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: Flux2Klein, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers whose alpha is not its rank."""
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        drawing.save_lora(model, request.param, path, strength=0.5)
        return request.param, path

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, model: Flux2Klein, lora: tuple[str, Path]) -> NDArray[np.floating[Any]]:
        """What the model draws with it."""
        base = drawing.draw(model, batch(model))
        with lora_file.merged(model, lora[1]):
            images = drawing.draw(model, batch(model))
        assert abs(images - base).max() > 0.1
        return images

    @pytest.mark.parametrize("format", [None, "diffusers", "kohya"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: Flux2Klein, lora: tuple[str, Path], expected: Any, format: str | None
    ) -> None:
        preset, path = lora
        target = tmp_path / "out.safetensors"
        lora_file.write(lora_file.read(path, model), target, model, format)
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name=target.name)
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)
        if format is not None:
            assert builders.tensors(target).keys() == comfy_keys(format, preset)

    def test_no_alpha_is_needed_beside_the_weights(self, model: Flux2Klein, lora: tuple[str, Path]) -> None:
        """ComfyUI reads no metadata."""
        tensors, metadata = model.export(lora_file.read(lora[1], model), "diffusers")
        described = json.loads(metadata["lora_adapter_metadata"])
        assert described["transformer.lora_alpha"] == described["transformer.r"] == 4
        key = "transformer.single_transformer_blocks.1.attn.to_out.lora_B.weight"
        torch.testing.assert_close(tensors[key], 1.5 * builders.tensors(lora[1])[key])


@pytest.mark.parametrize(
    ("shape", "billions", "sites"),
    [((5, 20, 24, 7680), 3.876, (60, 70, 100)), ((8, 24, 32, 12288), 9.079, (80, 96, 144))],
    ids=["4B", "9B"],
)
def test_true_size(shape: tuple[int, int, int, int], billions: float, sites: tuple[int, ...]) -> None:
    """Built without memory, from the settings of the published checkpoints."""
    double, single, heads, text = shape
    with torch.device("meta"):
        denoiser = Flux2Transformer2DModel(
            num_layers=double,
            num_single_layers=single,
            num_attention_heads=heads,
            joint_attention_dim=text,
            guidance_embeds=False,
        )
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    presets = [flux2.sites(denoiser, preset) for preset in FAMILIES["flux2_klein"].sites]
    assert tuple(map(len, presets)) == sites
    layers = [denoiser.get_submodule(name) for name in presets[0]]
    at_16 = sum(16 * sum(layer.weight.shape) for layer in layers)
    assert at_16 / 1e6 == pytest.approx({60: 16.7, 80: 27.8}[sites[0]], abs=0.05)


# -- traps ------------------------------------------------------------------------------------------------------------


class TestText:
    def test_states_are_those_that_the_pipeline_reads(self, folder: Path, model: Flux2Klein) -> None:
        pipe = stock(folder)
        with torch.no_grad():
            states = model.encode(model.tokenize(drawing.PROMPTS))["states"]
            expected, _ = pipe.encode_prompt(drawing.PROMPTS, max_sequence_length=TEXT_TOKENS)
            dev = {"max_sequence_length": TEXT_TOKENS, "text_encoder_out_layers": (10, 20, 28)}
            others, _ = pipe.encode_prompt(drawing.PROMPTS, **dev)
        assert states.shape == (2, TEXT_TOKENS, 3 * 16)
        torch.testing.assert_close(states, expected, rtol=0, atol=0)
        assert not torch.allclose(states, others)

    def test_prompts_are_messages_without_a_thought(self, model: Flux2Klein) -> None:
        tokens = model.tokenize(["a dog"])
        assert tokens["ids"].shape == tokens["mask"].shape == (1, TEXT_TOKENS)
        read = model.tokenizer.decode(tokens["ids"][0][tokens["mask"][0].bool()])
        assert read == "<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def test_room(self, model: Flux2Klein) -> None:
        """Of a prompt that fills it the template is whole; one word more, and its end is cut off."""
        words = " ".join(["dog"] * model.room)
        assert model.token_count(words) == model.room
        ids = model.tokenize(["a" + " dog" * (model.room - 1), "a" + " dog" * model.room])["ids"]
        end = model.tokenizer("\n").input_ids
        assert ids[0, -1:].tolist() == end and ids[0, -3:].tolist() != ids[1, -3:].tolist()


class TestLatents:
    def test_are_the_pipelines(self, folder: Path, model: Flux2Klein) -> None:
        """The mode, never a draw, in tokens, normalised by the VAE's batch statistics and their epsilon."""
        pixels = families.pixels(builders.pictures(2), RESOLUTION)
        mean, std = model.encode_images(pixels)
        with torch.no_grad():
            expected = stock(folder)._encode_vae_image(pixels, generator=None)
        assert mean.shape == (2, 128, 4, 4) and mean.dtype == torch.float32
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)
        assert not std.any()
        vae: Any = model.part("vae")
        assert ((vae.bn.running_var + vae.config.batch_norm_eps) / vae.bn.running_var).min() > 1.0005, "eps counts"


class TestFound:
    @pytest.mark.parametrize(
        "name",
        ["tokenizer/chat_template.jinja", "text_encoder/model.safetensors", "model_index.json", "vae/config.json"],
    )
    def test_identity_is_that_of_the_files(self, folder: Path, model: Flux2Klein, tmp_path: Path, name: str) -> None:
        """The encoder's and its template's among them: text of another one must not be taken for this one's."""
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert load(copy, tmp_path / "hashes").identity == model.identity
        content = bytearray((copy / name).read_bytes())
        content[-2] ^= 1
        (copy / name).write_bytes((copy / name).read_bytes() + b" " if name.endswith("json") else content)
        if name == "model_index.json":
            (copy / name).write_text((folder / name).read_text().replace("false", "true"))
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_another_pipeline(self, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(builders.checkpoint(), tmp_path / "copy"))
        index = (copy / "model_index.json").read_text()
        (copy / "model_index.json").write_text(index.replace("StableDiffusionPipeline", "SomePipeline"))
        with pytest.raises(ConfigError, match="lacks transformer"):
            load(copy, tmp_path / "hashes")
        (copy / "model_index.json").write_text(index)
        (copy / "unet").rename(copy / "transformer")
        with pytest.raises(ConfigError, match=r"not a checkpoint of FLUX\.2 klein, .* \(its pipeline is StableDif"):
            load(copy, tmp_path / "hashes")

    def test_a_single_file(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"reads FLUX\.2 klein, .* from no single file; pass the folder"):
            load(folder / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path)

    def test_random(self, tmp_path: Path) -> None:
        found = load(Path("random"), tmp_path)
        assert found.identity == load(Path("random"), tmp_path).identity
        assert len(list(tmp_path.glob("model/*/*/transformer"))) == 1

    def test_text_first(self, folder: Path, tmp_path: Path) -> None:
        families.assert_text_first(load(folder, tmp_path / "hashes"), training(steps=1), Store(tmp_path / "store"))


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("flux2_klein", tmp_path)
