"""Z-Image: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline, ZImagePipeline, ZImageTransformer2DModel
from numpy.typing import NDArray
from torch import Tensor

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch, Model, lora_file, z_image
from dbexp.models.random_z_image import build_random
from dbexp.models.z_image import ZImage
from dbexp.train.data import Training
from dbexp.train.lane import Draw
from tests import builders
from tests.models import drawing, families

RESOLUTION = 64
TEXT_TOKENS = 64  # of the random weights; real ones have 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random(tmp_path_factory.mktemp("z_image") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> ZImage:
    fields = {"name": "z", "family": "z_image", "path": str(folder), "precision": "fp32", "device": "cpu", **settings}
    return z_image.load(ModelConfig(**fields), Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ZImage:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path, kind: Any = ZImagePipeline) -> Any:
    """The pipeline that anybody would load."""
    pipe = kind.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def training(**settings: Any) -> Training:
    return families.training(RESOLUTION, **settings)


class Independent(families.Independent):
    """On the pipeline's own text, and the denoiser as its pipeline calls it."""

    def __init__(self, folder: Path, made: Training) -> None:
        self.pipe = stock(folder)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        super().__init__(made, {"transformer": self.pipe.transformer}, {"transformer": targets})

    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        pipe, images = self.pipe, families.pixels(paths, RESOLUTION)
        with torch.no_grad():
            texts, _ = pipe.encode_prompt(list(prompts), max_sequence_length=TEXT_TOKENS)
            latents = (pipe.vae.encode(images).latent_dist.mode() - 0.1159) * 0.3611
        share = draw.times[:, None, None, None]
        noisy = (1 - share) * latents + share * draw.noise
        predicted = pipe.transformer(list(noisy.unsqueeze(2)), (1000 - 1000 * draw.times) / 1000, texts)[0]
        velocity = -torch.stack(predicted).squeeze(2)
        squares: Tensor = (velocity - (draw.noise - latents)) ** 2
        return squares.mean((1, 2, 3))


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
                    "prompt": families.LONG,
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

    def test_times_have_the_checkpoints_shift(self, model: ZImage) -> None:
        """Half of the noise in a uniform draw is six sevenths of it in training."""
        cfg = training().cfg
        times = model.draw_times(20000, torch.Generator().manual_seed(0), cfg, RESOLUTION)
        assert times.dtype == torch.float32 and times.min() > 0 and times.max() <= 1
        assert times.median().item() == pytest.approx(6 / 7, abs=5e-3)


class TestLanes(families.LaneTests):
    resolution = RESOLUTION
    adapters = 16


# -- sampling ---------------------------------------------------------------------------------------------------------


def batch(model: Model, *, guidance: float = 5.0, **others: Any) -> Batch:
    return drawing.batch(model, guidance, **others)


def stock_draw(pipe: Any, guidance_scale: float = 4.0, **others: Any) -> NDArray[np.floating[Any]]:
    return drawing.stock_draw(pipe, guidance_scale, max_sequence_length=TEXT_TOKENS, **others)


class TestPictures:
    @pytest.mark.parametrize("guidance", [5.0, 1.5, 1.0])
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: ZImage, guidance: float) -> None:
        """Drawn from embeddings alone, bit for bit, whatever prompts stand beside. Its pipeline counts from 0."""
        expected = stock_draw(stock(folder), guidance_scale=guidance - 1)
        model.release("text_encoder")
        drawn = batch(model, guidance=guidance)
        assert (drawn.negative is None) == (guidance == 1)
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is None and pipe.tokenizer is None
        np.testing.assert_array_equal(model.draw(pipe, drawn), expected)
        assert abs(expected[0] - expected[1]).max() > 0.1

    def test_guidance_is_classifier_free(self, model: ZImage) -> None:
        """A guidance of w is negative + w (text - negative): the first step is linear in w, and 1 is the text alone."""
        one, two, three = (drawing.draw(model, batch(model, guidance=w, steps=1)) for w in (1.0, 1.001, 3.0))
        assert abs(one - two).max() < 1e-2 < abs(one - three).max()

    def test_another_sampler(self, model: ZImage) -> None:
        """Of second order, it is nearer to many small steps of the first, in the same times."""
        many = drawing.draw(model, batch(model, steps=40))
        euler, unipc = (drawing.draw(model, batch(model, steps=6), name) for name in ("euler", "unipc"))
        assert 0 < np.square(unipc - many).mean() < np.square(euler - many).mean()
        assert model.pipeline("unipc").scheduler.config.flow_shift == 6
        with pytest.raises(ConfigError, match="sampler=unipc: cannot start from an image; give euler, or null"):
            model.pipeline("unipc", "image")

    def test_steering_away(self, folder: Path, model: ZImage) -> None:
        expected = stock_draw(stock(folder), negative_prompt=["a purple cat"] * 2)
        steered = drawing.draw(model, batch(model, negative="a purple cat"))
        np.testing.assert_array_equal(steered, expected)
        assert abs(steered - drawing.draw(model, batch(model))).max() > 1e-3

    def test_in_bf16_the_vae_is_in_full(self, folder: Path, tmp_path: Path, model: ZImage) -> None:
        half = load(folder, tmp_path, precision="bf16")
        assert half.part("transformer").dtype == torch.bfloat16 and half.part("vae").dtype == torch.float32
        mean, _ = half.encode_images(torch.zeros(1, 3, 64, 64))
        assert mean.dtype == torch.float32
        pipe = half.stock_pipeline(None)
        np.testing.assert_array_equal(drawing.draw(half, batch(half)), stock_draw(pipe))
        for others in ({"strength": 0.8}, {"strength": 0.8, "mask": drawing.right_half()}):
            given: dict[str, Any] = {"image": drawing.picture(), **others}
            images = drawing.draw(half, batch(half, **given))
            assert np.abs(images - drawing.draw(model, batch(model, **given))).mean() < 0.05


class TestImages:
    def test_from_an_image(self, folder: Path, model: ZImage) -> None:
        pipe, done = stock(folder, ZImageImg2ImgPipeline), list[tuple[int, int]]()
        expected = stock_draw(pipe, num_inference_steps=5, image=[drawing.picture()] * 2, strength=0.6)
        given: dict[str, Any] = {"image": drawing.picture(), "strength": 0.6}
        drawn = batch(model, steps=5, after_step=lambda *step: done.append(step), **given)
        np.testing.assert_allclose(drawing.draw(model, drawn), expected, rtol=0, atol=1e-5)
        assert done == [(1, 3), (2, 3), (3, 3)]

    def test_inpainting(self, folder: Path, model: ZImage) -> None:
        pipe, given = stock(folder, ZImageInpaintPipeline), dict[str, Any](image=drawing.picture(), strength=0.8)
        twice: dict[str, Any] = {"image": [drawing.picture()] * 2, "mask_image": [drawing.right_half()] * 2}
        expected = stock_draw(pipe, num_inference_steps=5, strength=0.8, **twice)
        drawn = drawing.draw(model, batch(model, steps=5, mask=drawing.right_half(), **given))
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-5)
        plain = drawing.draw(model, batch(model, steps=5, **given))
        left, right = (abs(drawn - plain)[:, :, half] for half in (slice(0, 32), slice(64, None)))
        assert left.mean() > right.mean()


# -- files ------------------------------------------------------------------------------------------------------------

# What ComfyUI calls layers of Z-Image in LoRA files (z_image_to_diffusers in its comfy/utils.py): after `transformer.`
# the names of diffusers, of which q, k and v go into one layer there.
COMFY = {
    "attention": ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
    "attention+mlp": ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    "linear": ("adaLN_modulation.0",),
}
BLOCKS = {"layers": 2, "noise_refiner": 1, "context_refiner": 1}


def comfy_keys(preset: str) -> set[str]:
    """Keys that ComfyUI finds in the file of a preset: those of the presets up to it."""
    presets = list(COMFY)
    kinds = [kind for name in presets[: presets.index(preset) + 1] for kind in COMFY[name]]
    layers = [
        f"{stack}.{number}.{kind}" for stack, count in BLOCKS.items() for number in range(count) for kind in kinds
    ]
    layers.remove("context_refiner.0.adaLN_modulation.0") if preset == "linear" else None
    return {f"transformer.{layer}.lora_{side}.weight" for layer in layers for side in "AB"}


class TestFiles:
    @pytest.fixture(scope="class", params=list(COMFY))
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: ZImage, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers whose alpha is not its rank."""
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        drawing.save_lora(model, request.param, path, strength=0.2)
        return request.param, path

    @pytest.mark.parametrize("format", [None, "diffusers"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: ZImage, lora: tuple[str, Path], format: str | None
    ) -> None:
        preset, path = lora
        base = drawing.draw(model, batch(model))
        with lora_file.merged(model, path):
            expected = drawing.draw(model, batch(model))
        assert abs(expected - base).max() > 0.05
        target = tmp_path / "out.safetensors"
        lora_file.write(lora_file.read(path, model), target, model, format)
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name=target.name)
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)
        assert builders.tensors(target).keys() == comfy_keys(preset)

    def test_no_alpha_is_needed_beside_the_weights(self, model: ZImage, lora: tuple[str, Path]) -> None:
        """ComfyUI reads no metadata."""
        tensors, metadata = model.export(lora_file.read(lora[1], model), "diffusers")
        described = json.loads(metadata["lora_adapter_metadata"])
        assert described["transformer.lora_alpha"] == described["transformer.r"] == 4
        key = "transformer.noise_refiner.0.attention.to_q.lora_B.weight"
        torch.testing.assert_close(tensors[key], 1.5 * builders.tensors(lora[1])[key])

    def test_lanes_draw_what_the_file_draws(self, model: ZImage, lora: tuple[str, Path]) -> None:
        preset, path = lora
        drawing.assert_lanes_draw(model, preset, path, channels=16)


def test_true_size() -> None:
    """Built without memory, from the settings of the published checkpoint, which are the class's defaults."""
    with torch.device("meta"):
        denoiser = ZImageTransformer2DModel()
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(6.155, abs=5e-4)
    presets = [z_image.sites(denoiser, preset) for preset in FAMILIES["z_image"].sites]
    assert tuple(map(len, presets)) == (136, 238, 270)
    layers = [denoiser.get_submodule(name) for name in presets[0]]
    assert sum(16 * sum(layer.weight.shape) for layer in layers) / 1e6 == pytest.approx(16.7, abs=0.05)


# -- traps ------------------------------------------------------------------------------------------------------------


class TestText:
    def test_states_are_those_that_the_pipeline_reads(self, folder: Path, model: ZImage) -> None:
        """Those before the last layer's, of what is not padding."""
        with torch.no_grad():
            expected, _ = stock(folder).encode_prompt(list(drawing.PROMPTS), max_sequence_length=TEXT_TOKENS)
            read = model.encode(model.tokenize(drawing.PROMPTS))
        assert read["states"].shape == (2, TEXT_TOKENS, 16) and read["mask"].dtype == torch.bool
        assert len(expected[0]) < 32 < len(expected[1]), "which the denoiser pads to two lengths"
        for states, mask, wanted in zip(read["states"], read["mask"], expected, strict=True):
            torch.testing.assert_close(states[mask], wanted, rtol=0, atol=0)

    def test_prompts_are_messages_to_one_who_thinks(self, model: ZImage) -> None:
        tokens = model.tokenize(["a dog"])
        read = model.tokenizer.decode(tokens["ids"][0][tokens["mask"][0].bool()])
        assert read == "<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n"

    def test_nobodys_prompts_are_changed(self, folder: Path, model: ZImage) -> None:
        """The pipeline writes its template into the list that it is given."""
        pipe, prompts = stock(folder), list(drawing.PROMPTS)
        model.tokenize(prompts)
        drawn = Batch(drawing.PROMPTS, None, drawing.SEEDS, 2, 5.0, drawing.WIDTH, drawing.HEIGHT)
        once, twice = (pipe(**model.call(pipe, drawn), output_type="latent").images.shape for _ in range(2))
        assert prompts == list(drawing.PROMPTS) and drawn.text == drawing.PROMPTS and once == twice
        pipe.encode_prompt(prompts, max_sequence_length=TEXT_TOKENS)
        assert prompts != list(drawing.PROMPTS)

    def test_a_row_does_not_depend_on_its_neighbours(self, model: ZImage) -> None:
        noisy, times = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.9])
        with torch.no_grad():
            texts = [model.encode(model.tokenize([prompt])) for prompt in drawing.PROMPTS]
            both = model.predict(noisy, times, model.collate([(text, [1]) for text in texts]))
            alone = [model.predict(noisy[[row]], times[[row]], texts[row]) for row in range(2)]
        torch.testing.assert_close(both, torch.cat(alone), rtol=1e-5, atol=1e-5)

    def test_room(self, model: ZImage) -> None:
        """Of a prompt that fills it the template is whole; one word more, and its end is cut off."""
        assert model.token_count("a" + " dog" * (model.room - 1)) == model.room
        ids = model.tokenize(["a" + " dog" * (model.room - 1), "a" + " dog" * model.room])["ids"]
        end = model.tokenizer("\n").input_ids
        assert ids[0, -1:].tolist() == end and ids[0, -3:].tolist() != ids[1, -3:].tolist()


def test_latents_are_the_mode_normalised(folder: Path, model: ZImage) -> None:
    pixels = families.pixels(builders.pictures(2), RESOLUTION)
    mean, std = model.encode_images(pixels)
    vae = stock(folder).vae
    with torch.no_grad():
        decoded = vae.decode(mean / 0.3611 + 0.1159).sample
        expected = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-5)
    assert mean.shape == (2, 16, 8, 8) and mean.dtype == torch.float32 and not std.any()


class TestFound:
    def test_fp16_is_refused(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="precision=fp16: Z-Image overflows in it; give bf16 or fp32"):
            load(folder, tmp_path, precision="fp16")

    @pytest.mark.parametrize("name", ["tokenizer/chat_template.jinja", "text_encoder/model.safetensors"])
    def test_identity_is_that_of_the_files(self, folder: Path, model: ZImage, tmp_path: Path, name: str) -> None:
        """The encoder's and its template's among them: text of another one must not be taken for this one's."""
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert load(copy, tmp_path / "hashes").identity == model.identity
        content = bytearray((copy / name).read_bytes())
        content[-2] ^= 1
        (copy / name).write_bytes(content)
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_another_pipeline(self, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(builders.checkpoint(), tmp_path / "copy"))
        index = (copy / "model_index.json").read_text()
        (copy / "model_index.json").write_text(index.replace("StableDiffusionPipeline", "SomePipeline"))
        with pytest.raises(ConfigError, match="lacks transformer"):
            load(copy, tmp_path / "hashes")
        (copy / "model_index.json").write_text(index)
        (copy / "unet").rename(copy / "transformer")
        with pytest.raises(ConfigError, match=r"not a checkpoint of Z-Image \(its pipeline is StableDiffusionPipe"):
            load(copy, tmp_path / "hashes")
        (copy / "model_index.json").unlink()
        with pytest.raises(ConfigError, match=r"model_index\.json is missing or damaged"):
            load(copy, tmp_path / "hashes")

    def test_random(self, tmp_path: Path) -> None:
        found = load(Path("random"), tmp_path)
        assert found.identity == load(Path("random"), tmp_path).identity
        assert len(list(tmp_path.glob("model/*/*/transformer"))) == 1

    def test_text_first(self, folder: Path, tmp_path: Path) -> None:
        families.assert_text_first(load(folder, tmp_path / "hashes"), training(steps=1), Store(tmp_path / "store"))


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("z_image", tmp_path)
