"""Stable Diffusion XL: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch, Model, lora_file, sd, sdxl
from dbexp.models.random_sdxl import build_random
from dbexp.models.sdxl import StableDiffusionXL
from dbexp.train.adapter import AdapterSlots, save
from dbexp.train.data import Training
from dbexp.train.lane import Draw
from dbexp.train.result import Trained
from tests import builders
from tests.models import families, test_sd

RESOLUTION = 32
UNET = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
PARTS = ("unet", "text_encoder", "text_encoder_2")

# diffusers' schedulers hand numpy torch tensors in a way that NumPy 2 grumbles about
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random(tmp_path_factory.mktemp("sdxl") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> StableDiffusionXL:
    common = {"name": "xl", "family": "sdxl", "path": str(folder), "precision": "fp32", "device": "cpu"}
    return sdxl.load(ModelConfig(**{**common, **settings}), Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXL:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path, kind: Any = StableDiffusionXLPipeline) -> Any:
    """The pipeline that anybody would load."""
    pipe = kind.from_pretrained(folder, local_files_only=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def training(**settings: Any) -> Training:
    return families.training(RESOLUTION, **settings)


def adapters(rank: int = 4, **settings: Any) -> dict[str, Any]:
    return {"rank": rank, **settings}


class Independent(families.Independent):
    """On the pipeline's own classes; pictures are wider than high, so that every size that the UNet is told differs."""

    def __init__(self, folder: Path, made: Training) -> None:
        self.pipe = stock(folder)
        self.noise = DDPMScheduler.from_config(self.pipe.scheduler.config)
        parts = {name: getattr(self.pipe, name) for name in (PARTS if made.lora.text_encoder else PARTS[:1])}
        for name in ("vae", *PARTS):
            getattr(self.pipe, name).requires_grad_(False)
        super().__init__(made, parts, {name: UNET if name == "unet" else TEXT for name in parts})

    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        for parameter in self.trained:  # nobody reads the first encoder's last layer: a gradient of nothing, not none
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pixels, sizes = zip(*map(self.cut, paths), strict=True)
        posterior = self.pipe.vae.encode(torch.cat(pixels)).latent_dist
        latents = 0.13025 * (posterior.mean + posterior.std * draw.latent_noise)
        states, _, pooled, _ = self.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        predicted = self.pipe.unet(
            self.noise.add_noise(latents, draw.noise, draw.times),
            draw.times,
            encoder_hidden_states=states,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.tensor(sizes, dtype=torch.float32)},
        ).sample
        squares: Tensor = (predicted - draw.noise) ** 2
        return squares.mean((1, 2, 3))

    def cut(self, path: Path) -> tuple[Tensor, tuple[int, ...]]:
        image = Image.open(path)
        resized = functional.resize(image, RESOLUTION)
        pixels = torch.from_numpy(np.array(functional.center_crop(resized, [RESOLUTION, RESOLUTION])))
        left = round((resized.width - RESOLUTION) / 2)
        return pixels.permute(2, 0, 1)[None] / 127.5 - 1, (image.height, image.width, 0, left, RESOLUTION, RESOLUTION)


class TestSteps:
    @pytest.mark.parametrize(
        ("weight", "settings"),
        [
            (0.0, {"adapters": adapters(alpha=2.0)}),
            (0.7, {"batch_size": 2, "weight_decay": 0.1, "schedule": {"name": "linear", "warmup_steps": 2}}),
            (0.7, {"adapters": adapters(alpha=6.0, text_encoder=True), "text_encoder_lr": 5e-4}),
        ],
        ids=["without prior, alpha", "prior, batch, schedule", "prior, text encoders"],
    )
    def test_equal_an_independent_trainers(
        self, folder: Path, model: Model, store: Store, weight: float, settings: dict[str, Any]
    ) -> None:
        wide = {"images": builders.pictures(width=52), "class_images": builders.pictures(6, seed=1, width=44)}
        made = training(weight=weight, **wide, **settings)
        families.assert_same_steps(Independent(folder, made), model, store)


LANES: dict[str, Callable[[], Training]] = {
    "plain": lambda: training(),
    "other rank and rate, no prior, a long prompt": lambda: training(
        weight=0.0, adapters=adapters(8, alpha=2.0), lr=5e-4, prompt="a photo of sks dog on top of a purple rug"
    ),
    "short, polynomial, other seed, subject and batch": lambda: training(
        images=builders.pictures(3, seed=5, width=56),
        seed=3,
        weight=0.5,
        steps=3,
        batch_size=2,
        schedule={"name": "polynomial", "warmup_steps": 1},
        class_prompt="a dog",
    ),
    "text encoders": lambda: training(adapters=adapters(text_encoder=True, text_encoder_rank=2), seed=6),
}


class TestLanes:
    @pytest.fixture(scope="class")
    @classmethod
    def solo(cls, model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
        make = tmp_path_factory.mktemp
        return [families.run([lane()], model, Store(make("solo")))[0] for lane in LANES.values()]

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_equal_solo_runs(self, model: Model, solo: list[Trained], store: Store, checkpointing: bool) -> None:
        lanes = [lane() for lane in LANES.values()]
        for lane in lanes:
            lane.cfg.gradient_checkpointing = checkpointing
        for packed, alone in zip(families.run(lanes, model, store), solo, strict=True):
            families.assert_close(packed, alone)

    def test_resumed(self, model: Model, solo: list[Trained], store: Store) -> None:
        made = LANES["text encoders"]()
        made.cfg.log_every = 1
        families.assert_resumes(made, model, solo[-1], store)

    def test_every_lane_moves_every_adapter(self, solo: list[Trained]) -> None:
        """But those of the first encoder's last layer, whose states are not read."""
        assert len({trained.history[0]["loss"] for trained in solo}) == len(solo)
        for trained, count in zip(solo, (64, 64, 64, 64 + 2 * 12), strict=True):
            ups = {key: value for key, value in builders.tensors(trained.lora).items() if ".lora_B." in key}
            idle = {key for key, value in ups.items() if value.abs().max() < 1e-5}
            assert len(ups) == count
            last = "text_encoder.text_model.encoder.layers.2.self_attn"
            assert idle == {f"{last}.{name}.lora_B.weight" for name in TEXT if count > 64}


# -- sampling ---------------------------------------------------------------------------------------------------------

PROMPTS = ["a photo of sks dog", "a cat on a beach with a blue house in the background"]
SEEDS = (3, 4)
WIDTH, HEIGHT = 48, 32


def picture(side: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))


def right_half() -> Image.Image:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :] = 255
    return Image.fromarray(mask)


TASKS: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"image": picture(), "strength": 0.7},
    "inpaint": {"image": picture(), "mask": right_half(), "strength": 0.8},
}


def batch(model: Model, *, guidance: float = 5.0, steps: int = 5, negative: str = "", **others: Any) -> Batch:
    """Both prompts, each encoded alone."""
    with torch.no_grad():
        texts = [(model.encode(model.tokenize([prompt])), [1]) for prompt in PROMPTS]
        unguided = None if not model.guided(guidance) else model.collate([(model.unconditional(negative), [2])])
    return Batch(model.collate(texts), unguided, SEEDS, steps, guidance, WIDTH, HEIGHT, **others)


def draw(model: Model, drawn: Batch, sampler: str | None = None) -> NDArray[np.floating[Any]]:
    task = "text" if drawn.image is None else "image" if drawn.mask is None else "inpaint"
    return model.draw(model.pipeline(sampler, task), drawn)


def stock_draw(pipe: Any, **others: Any) -> NDArray[np.floating[Any]]:
    """As anybody would call it."""
    if "image" not in others or "mask_image" in others:
        others = {"height": HEIGHT, "width": WIDTH, **others}
    images: NDArray[np.floating[Any]] = pipe(
        PROMPTS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        **{"num_inference_steps": 5, "guidance_scale": 5.0, **others},
    ).images
    return images


def stock_task(folder: Path, task: str) -> NDArray[np.floating[Any]]:
    """The picture of `TASKS` by the pipeline that diffusers has for it."""
    settings = dict(TASKS[task])
    if "mask" in settings:
        settings["mask_image"] = [settings.pop("mask")] * 2
    if "image" in settings:
        settings["image"] = [settings["image"]] * 2
    kinds = {"image": StableDiffusionXLImg2ImgPipeline, "inpaint": StableDiffusionXLInpaintPipeline}
    return stock_draw(stock(folder, kinds.get(task, StableDiffusionXLPipeline)), **settings)


class TestPictures:
    @pytest.mark.parametrize("guidance", [5.0, 1.0])
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: StableDiffusionXL, guidance: float) -> None:
        """Drawn from embeddings alone, whatever prompts stand beside."""
        expected = stock_draw(stock(folder), guidance_scale=guidance)
        drawn = batch(model, guidance=guidance)
        model.release("text_encoder", "text_encoder_2")
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is pipe.text_encoder_2 is pipe.tokenizer is pipe.tokenizer_2 is None
        np.testing.assert_allclose(model.draw(pipe, drawn), expected, rtol=0, atol=1e-5)
        assert abs(expected[0] - expected[1]).max() > 0.05

    def test_no_negative_prompt_is_not_an_empty_one(self, folder: Path, model: StableDiffusionXL) -> None:
        pipe = stock(folder)
        zeros, empty, cat = (
            stock_draw(pipe, **{} if text is None else {"negative_prompt": [text] * 2}) for text in (None, "", "a cat")
        )
        assert min(abs(zeros - empty).max(), abs(zeros - cat).max()) > 1e-3
        np.testing.assert_allclose(draw(model, batch(model)), zeros, rtol=0, atol=1e-5)
        np.testing.assert_allclose(draw(model, batch(model, negative="a cat")), cat, rtol=0, atol=1e-5)

    def test_a_checkpoint_that_wants_an_empty_prompt(self, folder: Path, tmp_path: Path) -> None:
        copy = changed(folder, tmp_path, "model_index.json", force_zeros_for_empty_prompt=False)
        model = load(copy, tmp_path / "hashes")
        np.testing.assert_allclose(draw(model, batch(model)), stock_draw(stock(copy)), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("task", ["image", "inpaint"])
    def test_from_an_image(self, folder: Path, model: StableDiffusionXL, task: str) -> None:
        drawn = draw(model, batch(model, **TASKS[task]))
        np.testing.assert_allclose(drawn, stock_task(folder, task), rtol=0, atol=1e-4)
        assert abs(drawn - draw(model, batch(model))).max() > 0.05

    def test_an_inpainting_checkpoint(self, tmp_path: Path) -> None:
        """Which also reads what the mask leaves of the picture."""
        folder = build_random(tmp_path / "model", in_channels=9)
        model = load(folder, tmp_path / "hashes")
        assert model.needs_mask
        tasks = TASKS["inpaint"]
        hidden = Image.composite(Image.new("RGB", (WIDTH, HEIGHT), "gray"), tasks["image"], right_half())
        images = [draw(model, batch(model, **{**tasks, "image": image})) for image in (tasks["image"], hidden)]
        assert images[0].shape == (2, HEIGHT, WIDTH, 3) and np.isfinite(images[0]).all()
        (masked, other) = (
            model.call(model.pipeline(None, "inpaint"), batch(model, **{**tasks, "image": image}))
            for image in (tasks["image"], hidden)
        )
        torch.testing.assert_close(masked["masked_image_latents"], other["masked_image_latents"], atol=0.01, rtol=0.01)
        assert not torch.allclose(masked["image"], other["image"], atol=0.01, rtol=0.01)

    def test_latents_with_statistics(self, folder: Path, tmp_path: Path) -> None:
        """As Playground's checkpoints have them."""
        statistics = {"latents_mean": [-0.4, 0.2, 0.1, 0.3], "latents_std": [1.4, 0.6, 0.8, 1.2]}
        copy = changed(folder, tmp_path, "vae/config.json", **statistics)
        model = load(copy, tmp_path / "hashes")
        for task in ("text", "image"):
            drawn = draw(model, batch(model, **TASKS[task]))
            np.testing.assert_allclose(drawn, stock_task(copy, task), rtol=0, atol=1e-4)

    def test_the_vae_stays_in_full_precision(self, folder: Path, model: StableDiffusionXL, tmp_path: Path) -> None:
        """Pipelines would encode an image in it and move it to the UNet's precision afterwards."""
        half = load(folder, tmp_path, precision="bf16")
        for settings in TASKS.values():
            images = draw(half, batch(half, **settings))
            assert half.part("vae").dtype == torch.float32 and half.part("unet").dtype == torch.bfloat16
            assert np.abs(images - draw(model, batch(model, **settings))).mean() < 0.05

    def test_a_half_precision_run_encodes_outside_autocast(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Inside it even weights in fp32 would be multiplied in half precision."""
        half = load(folder, tmp_path, precision="bf16")
        encode, seen = AutoencoderKL.encode, list[tuple[bool, torch.dtype]]()

        def watched(vae: Any, pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
            posterior = encode(vae, pixels, *args, **kwargs)
            seen.append((torch.is_autocast_enabled("cpu"), posterior.latent_dist.mean.dtype))
            return posterior

        monkeypatch.setattr(AutoencoderKL, "encode", watched)
        families.run([training(steps=1)], half, Store(tmp_path / "store"))
        assert len(seen) == 10 and set(seen) == {(False, torch.float32)}


# -- files ------------------------------------------------------------------------------------------------------------

# What ComfyUI calls layers of Stable Diffusion XL in LoRA files, read in its comfy/lora.py and comfy/utils.py: the UNet
# has transformers of so many layers at so many places.
PLACES = {
    "down_blocks_1_attentions": (2, 2),
    "down_blocks_2_attentions": (2, 10),
    "mid_block_attentions": (1, 10),
    "up_blocks_0_attentions": (3, 10),
    "up_blocks_1_attentions": (3, 2),
}
TINY_PLACES = {"down_blocks_1_attentions": (1, 2), "mid_block_attentions": (1, 2), "up_blocks_0_attentions": (2, 2)}
ATTENTION = [f"{attn}_{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out_0")]
LAYERS = {
    "attention": ATTENTION,
    "attention+geglu": [*ATTENTION, "ff_net_0_proj"],
    "linear": [*ATTENTION, "ff_net_0_proj", "ff_net_2"],
}
TEXT_LAYERS = [f"self_attn_{name}" for name in TEXT]


def comfy_layers(places: dict[str, tuple[int, int]], preset: str, text_layers: tuple[int, int]) -> set[str]:
    names = {
        f"lora_unet_{place}_{number}_transformer_blocks_{depth}_{layer}"
        for place, (count, depths) in places.items()
        for number in range(count)
        for depth in range(depths)
        for layer in LAYERS[preset]
    }
    return names | {
        f"lora_te{encoder}_text_model_encoder_layers_{number}_{layer}"
        for encoder, count in enumerate(text_layers, 1)
        for number in range(count)
        for layer in TEXT_LAYERS
    }


class TestFiles:
    @pytest.fixture(scope="class", params=["attention", "linear"])
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: StableDiffusionXL, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers and on both text encoders, whose alphas are not its ranks."""
        ranks = {"unet": 4, "text_encoder": 2, "text_encoder_2": 2}
        alphas = {"unet": 6.0, "text_encoder": 3.0, "text_encoder_2": 5.0}
        with AdapterSlots(model, request.param, 1, ranks) as slots:
            adapter = slots.open(0, ranks, alphas, seed=3)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for up in adapter.up.values():
                up.copy_(0.1 * torch.randn(up.shape, generator=generator))
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        save(path, adapter, model, {})
        return request.param, path

    @pytest.mark.parametrize("format", [None, "diffusers", "kohya"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: StableDiffusionXL, lora: tuple[str, Path], format: str | None
    ) -> None:
        preset, path = lora
        images = []
        for parts in ([], ["unet"], None):
            with lora_file.merged(model, path, parts=parts):
                images.append(draw(model, batch(model)))
        base, unet, expected = images
        assert min(abs(unet - base).max(), abs(expected - unet).max()) > 0.05
        target = tmp_path / "out.safetensors"
        lora_file.write(lora_file.read(path, model), target, model, format)
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name=target.name)
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)
        if format == "kohya":
            layers = comfy_layers(TINY_PLACES, preset, (3, 3))
            keys = {f"{layer}.{kind}" for layer in layers for kind in ("lora_down.weight", "lora_up.weight", "alpha")}
            assert builders.tensors(target).keys() == keys


def test_true_size(folder: Path, tmp_path: Path) -> None:
    """Built without memory, from the settings of the published checkpoint."""
    model = load(folder, tmp_path)
    first = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    second = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    with torch.device("meta"):
        model.parts |= {
            "unet": UNet2DConditionModel(
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**first)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**second, projection_dim=1280)),
        }
    billions = [sum(weight.numel() for weight in model.part(part).parameters()) / 1e9 for part in PARTS]
    assert billions == pytest.approx([2.567, 0.123, 0.695], abs=5e-4)
    assert [len(model.sites(part, "attention")) for part in PARTS] == [560, 48, 128]
    layers = [lora_file.linear_layer(model.part("unet"), name) for name in model.sites("unet", "attention")]
    assert sum(16 * sum(layer.weight.shape) for layer in layers) / 1e6 == pytest.approx(23.2, abs=0.05)
    for preset in LAYERS:
        names = {
            f"{model.kohya_prefixes[part]}_{model.saved_site(part, site).replace('.', '_')}"
            for part in PARTS
            for site in model.sites(part, preset)
        }
        assert names == comfy_layers(PLACES, preset, (12, 32))


# -- traps ------------------------------------------------------------------------------------------------------------


def changed(folder: Path, tmp_path: Path, name: str, **settings: Any) -> Path:
    """A copy with other settings in a JSON file."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))
    return copy


def test_text_is_what_the_pipeline_reads(folder: Path, model: StableDiffusionXL) -> None:
    """The second tokenizer pads with another token; longer prompts are cut."""
    texts = [*PROMPTS, "a " * 100]
    tokens = model.tokenize(texts)
    with torch.no_grad():
        text = model.encode(tokens)
        states, _, pooled, _ = stock(folder).encode_prompt(texts, do_classifier_free_guidance=False)
    assert tokens["ids"][0, -1] != tokens["ids_2"][0, -1]
    assert torch.equal(text["states"], states) and torch.equal(text["pooled"], pooled)
    assert model.room == 75 and model.token_count("a photo of sks dog") == 5


def test_a_checkpoint_that_predicts_velocity(tmp_path: Path) -> None:
    folder = build_random(tmp_path / "model", prediction_type="v_prediction")
    latents, noise, times = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2), torch.tensor([10, 900])
    expected = DDPMScheduler.from_pretrained(folder / "scheduler").get_velocity(latents, noise, times)
    assert torch.equal(load(folder, tmp_path / "hashes").target(latents, noise, times), expected)


class TestFound:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("text_encoder_2/config.json", {"note": 1}),
            ("tokenizer_2/tokenizer_config.json", {"note": 1}),
            ("model_index.json", {"force_zeros_for_empty_prompt": False}),
        ],
    )
    def test_identity_is_that_of_the_files(
        self, folder: Path, model: StableDiffusionXL, tmp_path: Path, name: str, settings: dict[str, Any]
    ) -> None:
        copy = changed(folder, tmp_path, name)
        (copy / name).write_bytes((folder / name).read_bytes())
        assert load(copy, tmp_path / "hashes").identity == model.identity
        (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | settings))
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_another_pipeline(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"its pipeline is StableDiffusionPipeline.* model\.family=sd those of"):
            load(builders.checkpoint(), tmp_path / "hashes")
        copy = changed(folder, tmp_path, "model_index.json", _class_name="KolorsPipeline")
        with pytest.raises(
            ConfigError, match=r"not a checkpoint of Stable Diffusion XL \(its pipeline is KolorsPipeline"
        ):
            load(copy, tmp_path / "hashes")
        config = ModelConfig(name="xl", path=str(folder), device="cpu")
        with pytest.raises(
            ConfigError, match=r"StableDiffusionXLPipeline\); model\.family=sd .* model\.family=sdxl those of"
        ):
            sd.load(config, Store(tmp_path / "hashes"))
        (copy / "model_index.json").unlink()
        with pytest.raises(ConfigError, match=r"two text encoders\); model\.family=sd .* model\.family=sdxl those of"):
            sd.load(replace(config, path=str(copy)), Store(tmp_path / "hashes"))
        shutil.rmtree(copy / "tokenizer_2")
        with pytest.raises(ConfigError, match=r"lacks tokenizer_2; expected"):
            load(copy, tmp_path / "hashes")

    def test_random(self, tmp_path: Path) -> None:
        found = load(Path("random"), tmp_path)
        assert found.identity == load(Path("random"), tmp_path).identity
        assert len(list(tmp_path.glob("model/*/*/text_encoder_2"))) == 1


def original_layout(folder: Path) -> dict[str, Tensor]:
    """The weights of the pipeline under the names that single files use: the second encoder's are OpenCLIP's."""
    first = test_sd.renamed(
        test_sd.weights(folder, "text_encoder"),
        [(r"^(?!text_model\.)", "text_model."), (r"^", "conditioner.embedders.0.transformer.")],
    )
    second = test_sd.weights(folder, "text_encoder_2")
    second["text_projection"] = second.pop("text_projection.weight").T
    for number in range(3):
        layer = f"text_model.encoder.layers.{number}.self_attn"
        for kind in ("weight", "bias"):
            parts = [second.pop(f"{layer}.{name}_proj.{kind}") for name in "qkv"]
            second[f"{layer}.in_proj_{kind}"] = torch.cat(parts)
    second = test_sd.renamed(
        second,
        [
            (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
            (r"^text_model\.embeddings\.", ""),
            (r"^text_model\.final_layer_norm\.", "ln_final."),
            (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
            (r"\.self_attn\.", ".attn."),
            (r"\.layer_norm(\d)\.", r".ln_\1."),
            (r"\.fc1\.", ".c_fc."),
            (r"\.fc2\.", ".c_proj."),
            (r"^", "conditioner.embedders.1.model."),
        ],
    )
    return test_sd.original_unet(folder) | test_sd.original_vae(folder, 3) | first | second


def test_a_single_file(folder: Path, model: StableDiffusionXL, tmp_path: Path) -> None:
    """As most checkpoints that were made from the published one come."""
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in original_layout(folder).items()}, file)
    found = load(file, tmp_path / "store", single_file_config=str(folder))
    np.testing.assert_allclose(draw(found, batch(found)), draw(model, batch(model)), rtol=0, atol=1e-5)
    for part in (*PARTS, "vae"):
        weights, expected = found.part(part).state_dict(), model.part(part).state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("sdxl", tmp_path)
