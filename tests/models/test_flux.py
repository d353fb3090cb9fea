"""FLUX.1: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline, FluxTransformer2DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import GUIDANCE, Batch, LoraFile, Model, flux, foreign_reader, lora_file
from dbexp.models.flux import Flux
from dbexp.models.native_names import expand
from dbexp.models.random_flux import build_random
from dbexp.train.data import Training
from dbexp.train.fixed_loss import fixed_loss
from dbexp.train.lane import Draw
from tests import builders
from tests.models import drawing, families

RESOLUTION = 64
CLIP_TOKENS, T5_TOKENS = 32, 64  # of the random weights
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random(tmp_path_factory.mktemp("flux") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> Flux:
    fields = {"name": "x", "family": "flux", "path": str(folder), "precision": "fp32", "device": "cpu", **settings}
    return flux.load(ModelConfig(**fields), Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Flux:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path, kind: Any = FluxPipeline) -> Any:
    """The pipeline that anybody would load."""
    pipe = kind.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def training(**settings: Any) -> Training:
    return families.training(RESOLUTION, **settings)


class Independent(families.Independent):
    """On the pipeline's own text, packing and places, and the denoiser as its pipeline calls it."""

    def __init__(self, folder: Path, made: Training) -> None:
        self.pipe = stock(folder)
        adapted = ("transformer", *(("text_encoder",) if made.lora.text_encoder else ()))
        for name in ("vae", "text_encoder", "text_encoder_2"):
            getattr(self.pipe, name).requires_grad_(False)
        targets = {name: TARGETS if name == "transformer" else TEXT for name in adapted}
        super().__init__(made, {name: getattr(self.pipe, name) for name in adapted}, targets)

    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        pipe, images = self.pipe, families.pixels(paths, RESOLUTION)
        posterior = pipe.vae.encode(images).latent_dist
        latents = (posterior.mean + posterior.std * draw.latent_noise - 0.1159) * 0.3611
        states, pooled, text_ids = pipe.encode_prompt(list(prompts), max_sequence_length=T5_TOKENS)
        share, shape = draw.times[:, None, None, None], latents.shape
        noisy = pipe._pack_latents((1 - share) * latents + share * draw.noise, *shape)
        velocity = pipe.transformer(
            hidden_states=noisy,
            timestep=draw.times,
            guidance=torch.full((shape[0],), self.training.cfg.guidance),
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=text_ids,
            img_ids=pipe._prepare_latent_image_ids(shape[0], shape[2] // 2, shape[3] // 2, "cpu", torch.float32),
        ).sample
        velocity = pipe._unpack_latents(velocity, RESOLUTION, RESOLUTION, pipe.vae_scale_factor)
        squares: Tensor = (velocity - (draw.noise - latents)) ** 2
        return squares.mean((1, 2, 3))


class TestSteps:
    @pytest.mark.parametrize(
        ("weight", "settings"),
        [
            (0.0, {"adapters": {"rank": 4, "alpha": 2.0}}),
            (0.7, {"batch_size": 2, "weight_decay": 0.1, "guidance": 3.5}),
            (0.7, {"adapters": {"rank": 4, "alpha": 6.0, "text_encoder": True}, "text_encoder_lr": 5e-4}),
        ],
        ids=["without prior, alpha", "prior, batch, guidance", "prior, text encoder"],
    )
    def test_equal_an_independent_trainers(
        self, folder: Path, model: Model, store: Store, weight: float, settings: dict[str, Any]
    ) -> None:
        made = training(weight=weight, schedule={"name": "linear", "warmup_steps": 2}, **settings)
        families.assert_same_steps(Independent(folder, made), model, store)

    def test_times_are_not_shifted_unless_it_is_asked_for(self, model: Flux) -> None:
        """Pipelines shift by the size of the picture, e^1.15 at 1024 pixels."""
        for shift, expected in ((None, 0.5), ("resolution", 3.158 / (1 + 3.158))):
            cfg = training(timesteps="logit_normal", logit_std=1e-6, shift=shift).cfg
            times = model.draw_times(4, torch.Generator().manual_seed(0), cfg, 1024)
            torch.testing.assert_close(times, torch.full((4,), expected), rtol=1e-3, atol=0)


class TestLanes(families.LaneTests):
    resolution = RESOLUTION
    adapters = 2 * 8 + 2 * 3

    @classmethod
    def lanes(cls) -> dict[str, Training]:
        return {**super().lanes(), "other guidance": training(guidance=3.5)}

    def test_text_encoder(self, model: Model, store: Store, tmp_path: Path) -> None:
        """A lane that adapts CLIP, beside one that does not, and interrupted."""
        adapters = {"rank": 4, "text_encoder": True, "text_encoder_rank": 2}
        lanes = [training(adapters=adapters, seed=6, log_every=1), training()]
        alone = [families.run([lane], model, Store(tmp_path / f"solo{n}"))[0] for n, lane in enumerate(lanes)]
        for packed, solo in zip(families.run(lanes, model, store), alone, strict=True):
            families.assert_close(packed, solo)
        families.assert_resumes(lanes[0], model, alone[0], Store(tmp_path / "resumed"))


# -- sampling ---------------------------------------------------------------------------------------------------------


def batch(model: Model, *, guidance: float = 3.5, **others: Any) -> Batch:
    return drawing.batch(model, guidance, **others)


def stock_draw(pipe: Any, *, guidance_scale: float = 3.5, **others: Any) -> NDArray[np.floating[Any]]:
    return drawing.stock_draw(pipe, guidance_scale, max_sequence_length=T5_TOKENS, **others)


class TestPictures:
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: Flux) -> None:
        """Drawn from embeddings alone, whatever prompts stand beside; guidance is read as a number, in one pass."""
        drawn = {guidance: batch(model, guidance=guidance) for guidance in (1.0, 3.5)}
        assert all(each.negative is None for each in drawn.values())
        model.release(*model.family.encoders)
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is pipe.text_encoder_2 is pipe.tokenizer is pipe.tokenizer_2 is None
        images = {guidance: model.draw(pipe, each) for guidance, each in drawn.items()}
        for guidance, ours in images.items():
            expected = stock_draw(stock(folder), guidance_scale=guidance)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
            assert abs(expected[0] - expected[1]).max() > 0.1
        assert abs(images[1.0] - images[3.5]).max() > 1e-3

    def test_another_sampler(self, model: Flux) -> None:
        """Of second order, it is nearer to many small steps of the first, in the same times."""
        many = drawing.draw(model, batch(model, steps=60))
        euler, unipc = (drawing.draw(model, batch(model, steps=8), name) for name in ("euler", "unipc"))
        assert 0 < np.square(unipc - many).mean() < np.square(euler - many).mean()
        with pytest.raises(ConfigError, match="sampler=unipc: cannot start from an image; give euler, or null"):
            model.pipeline("unipc", "image")

    def test_in_bf16_the_vae_is_in_full(self, folder: Path, tmp_path: Path, model: Flux) -> None:
        half = load(folder, tmp_path, precision="bf16")
        assert half.part("transformer").dtype == torch.bfloat16 and half.part("vae").dtype == torch.float32
        mean, _ = half.encode_images(torch.zeros(1, 3, 64, 64))
        assert mean.dtype == torch.float32
        start: dict[str, Any] = {"image": drawing.picture(), "strength": 0.8}
        for given in (dict[str, Any](), start, {**start, "mask": drawing.right_half()}):
            images = drawing.draw(half, batch(half, **given))
            assert np.abs(images - drawing.draw(model, batch(model, **given))).mean() < 0.05


class TestImages:
    def test_from_an_image(self, folder: Path, model: Flux) -> None:
        pipe, done = stock(folder, FluxImg2ImgPipeline), list[tuple[int, int]]()
        expected = stock_draw(pipe, num_inference_steps=5, image=[drawing.picture()] * 2, strength=0.6)
        given: dict[str, Any] = {"image": drawing.picture(), "strength": 0.6}
        drawn = batch(model, steps=5, after_step=lambda *step: done.append(step), **given)
        np.testing.assert_allclose(drawing.draw(model, drawn), expected, rtol=0, atol=1e-4)
        assert done == [(1, 3), (2, 3), (3, 3)]

    def test_inpainting(self, folder: Path, model: Flux) -> None:
        pipe = stock(folder, FluxInpaintPipeline)
        twice: dict[str, Any] = {"image": [drawing.picture()] * 2, "mask_image": [drawing.right_half()] * 2}
        expected = stock_draw(pipe, num_inference_steps=5, strength=0.8, **twice)
        given: dict[str, Any] = {"image": drawing.picture(), "strength": 0.8}
        drawn = drawing.draw(model, batch(model, steps=5, mask=drawing.right_half(), **given))
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-4)
        assert abs(drawn - drawing.draw(model, batch(model, steps=5, **given))).max() > 0.1


# -- files ------------------------------------------------------------------------------------------------------------

# What ComfyUI calls layers of FLUX.1 in LoRA files, read in its comfy/lora.py and comfy/utils.py (flux_to_diffusers):
# after `lora_unet_` the names of the original checkpoint, with underscores, of which linear1 is q, k, v and proj_mlp;
# after `transformer.` those of diffusers.
ATTENTION = {
    "kohya": {
        "double_blocks_{n}_img_attn_qkv",
        "double_blocks_{n}_img_attn_proj",
        "double_blocks_{n}_txt_attn_qkv",
        "double_blocks_{n}_txt_attn_proj",
        "single_blocks_{n}_linear1",
    },
    "diffusers": {
        "transformer_blocks.{n}.attn.to_q",
        "transformer_blocks.{n}.attn.to_k",
        "transformer_blocks.{n}.attn.to_v",
        "transformer_blocks.{n}.attn.to_out.0",
        "transformer_blocks.{n}.attn.add_q_proj",
        "transformer_blocks.{n}.attn.add_k_proj",
        "transformer_blocks.{n}.attn.add_v_proj",
        "transformer_blocks.{n}.attn.to_add_out",
        "single_transformer_blocks.{n}.attn.to_q",
        "single_transformer_blocks.{n}.attn.to_k",
        "single_transformer_blocks.{n}.attn.to_v",
    },
}
MLP = {
    "kohya": {
        "double_blocks_{n}_img_mlp_0",
        "double_blocks_{n}_img_mlp_2",
        "double_blocks_{n}_txt_mlp_0",
        "double_blocks_{n}_txt_mlp_2",
    },
    "diffusers": {
        "transformer_blocks.{n}.ff.net.0.proj",
        "transformer_blocks.{n}.ff.net.2",
        "transformer_blocks.{n}.ff_context.net.0.proj",
        "transformer_blocks.{n}.ff_context.net.2",
    },
}
REST = {
    "kohya": {
        "double_blocks_{n}_img_mod_lin",
        "double_blocks_{n}_txt_mod_lin",
        "single_blocks_{n}_linear2",
        "single_blocks_{n}_modulation_lin",
    },
    "diffusers": {
        "transformer_blocks.{n}.norm1.linear",
        "transformer_blocks.{n}.norm1_context.linear",
        "single_transformer_blocks.{n}.norm.linear",
        "single_transformer_blocks.{n}.proj_mlp",
        "single_transformer_blocks.{n}.proj_out",
    },
}
CLIP = {
    "kohya": "lora_te1_text_model_encoder_layers_{n}_self_attn_{name}",
    "diffusers": "text_encoder.text_model.encoder.layers.{n}.self_attn.{name}",
}
KEYS = {
    "kohya": ("{}.lora_down.weight", "{}.lora_up.weight", "{}.alpha"),
    "diffusers": ("{}.lora_A.weight", "{}.lora_B.weight"),
}
PREFIX = {"kohya": "lora_unet_", "diffusers": "transformer."}


def comfy_keys(format: str, preset: str) -> set[str]:
    """Keys that ComfyUI finds in the file of a preset, for two blocks of each kind and three layers of CLIP."""
    groups = {"attention": (ATTENTION,), "attention+mlp": (ATTENTION, MLP), "linear": (ATTENTION, MLP, REST)}[preset]
    names = [name.format(n=number) for group in groups for name in group[format] for number in range(2)]
    layers = [PREFIX[format] + name for name in names]
    layers += [CLIP[format].format(n=number, name=name) for number in range(3) for name in TEXT]
    return {key.format(layer) for layer in layers for key in KEYS[format]}


class TestFiles:
    @pytest.fixture(scope="class", params=["attention", "attention+mlp", "linear"])
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: Flux, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers and on CLIP, whose alphas are not its ranks."""
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        drawing.save_lora(model, request.param, path, strength=0.3, text_encoders=True)
        return request.param, path

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, model: Flux, lora: tuple[str, Path]) -> NDArray[np.floating[Any]]:
        """What the model draws with it; both parts matter."""
        images = []
        for parts in ([], ["transformer"], None):
            with lora_file.merged(model, lora[1], parts=parts):
                images.append(drawing.draw(model, batch(model)))
        base, denoiser, both = images
        assert abs(denoiser - base).max() > 0.05 and abs(both - denoiser).max() > 1e-3
        return both

    @pytest.mark.parametrize("format", [None, "diffusers"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: Flux, lora: tuple[str, Path], expected: Any, format: str | None
    ) -> None:
        preset, path = lora
        target = tmp_path / "out.safetensors"
        lora_file.write(lora_file.read(path, model), target, model, format)
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name=target.name)
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)
        assert builders.tensors(target).keys() == comfy_keys("diffusers", preset)

    def test_names_of_the_original(self, model: Flux, lora: tuple[str, Path], tmp_path: Path) -> None:
        """What is fused there is read as what it was."""
        preset, path = lora
        ours, target = lora_file.read(path, model), tmp_path / "out.safetensors"
        lora_file.write(ours, target, model, "kohya")
        assert builders.tensors(target).keys() == comfy_keys("kohya", preset)
        read = foreign_reader.read(target, model, "lora")
        assert ours.weights.keys() <= read.weights.keys()
        for name, (down, up) in read.weights.items():
            scale = read.alphas[name.partition(".")[0]] / len(down)
            if name in ours.weights:
                a, b = ours.weights[name]
                expected = ours.alphas[name.partition(".")[0]] / len(a) * b @ a
                torch.testing.assert_close(scale * up @ down, expected, rtol=1e-4, atol=1e-5)
            else:  # part of a fused layer, and not adapted
                assert not (up @ down).any()

    def test_pictures_with_names_of_the_original(
        self, folder: Path, tmp_path: Path, model: Flux, lora: tuple[str, Path]
    ) -> None:
        """Of what diffusers reads at this width: all but the single blocks."""
        read = lora_file.read(lora[1], model)
        double = {name: pair for name, pair in read.weights.items() if "single_" not in name}
        part = LoraFile(double, read.alphas, {})
        lora_file.write(part, tmp_path / "part.safetensors", model)
        with lora_file.merged(model, tmp_path / "part.safetensors"):
            expected = drawing.draw(model, batch(model))
        lora_file.write(part, tmp_path / "out.safetensors", model, "kohya")
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name="out.safetensors")
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)

    def test_lanes_draw_what_the_file_draws(self, model: Flux, lora: tuple[str, Path]) -> None:
        preset, path = lora
        drawing.assert_lanes_draw(model, preset, path, channels=16)


def true_size() -> FluxTransformer2DModel:
    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("left_out", [(), ("proj_mlp",), ("proj_mlp", "to_k")])
def test_single_blocks_are_fused_exactly_at_the_published_width(rank: int, left_out: tuple[str, ...]) -> None:
    """Which is the only one that diffusers reads in kohya's names; adapters may be missing."""
    layers = {name: layer for name, layer in true_size().named_modules() if isinstance(layer, nn.Linear)}
    widths = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    block = "single_transformer_blocks.37."
    sites = [name for name in widths if name.startswith(block) and not name.endswith((*left_out, ".linear"))]
    generator = torch.Generator().manual_seed(rank)
    weights = {}
    for site in sites:
        out, width = widths[site]
        pair = (torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator))
        weights[f"transformer.{site}"] = pair
    file = LoraFile(weights, {"transformer": 5.0}, {})
    tensors, _ = lora_file.native_layout(file, "transformer", expand(Flux.native, widths), widths)
    assert {key.partition(".")[0] for key in tensors} == {
        "lora_unet_single_blocks_37_linear1",
        "lora_unet_single_blocks_37_linear2",
    }
    read = FluxPipeline.lora_state_dict(tensors)
    for site in [name for name in widths if name.startswith(block) and not name.endswith(".linear")]:
        down, up = (read[f"transformer.{site}.lora_{side}.weight"] for side in "AB")
        rows = slice(0, 50)
        if f"transformer.{site}" in weights:
            a, b = weights[f"transformer.{site}"]
            torch.testing.assert_close(up[rows] @ down, b[rows] @ a * (5.0 / rank), rtol=1e-4, atol=1e-4)
        else:
            assert not (up[rows] @ down).any()


def test_true_size_is_that_of_the_published_checkpoint() -> None:
    """Built without memory; its settings are the class's defaults."""
    denoiser = true_size()
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(11.901, abs=5e-4)
    presets = {preset: flux.sites(denoiser, preset) for preset in FAMILIES["flux"].sites}
    assert {preset: len(sites) for preset, sites in presets.items()} == {
        "attention": 19 * 8 + 38 * 3,
        "attention+mlp": 342,
        "linear": 342 + 19 * 2 + 38 * 3,
    }
    layers: Any = [denoiser.get_submodule(name) for name in presets["attention+mlp"]]
    assert sum(16 * sum(layer.weight.shape) for layer in layers) / 1e6 == pytest.approx(44.8, abs=0.05)


# -- traps ------------------------------------------------------------------------------------------------------------


class TestGuidance:
    """A number that every row reads for itself."""

    def test_of_each_row(self, model: Flux) -> None:
        noisy, times = torch.randn(1, 16, 8, 8).expand(2, -1, -1, -1), torch.tensor([0.5, 0.5])
        with torch.no_grad():
            text = model.collate([(model.encode(model.tokenize(["a dog"])), [2])])
            one, other = (model.predict(noisy, times, {**text, GUIDANCE: torch.full((2,), g)}) for g in (1.0, 3.5))
            both = model.predict(noisy, times, {**text, GUIDANCE: torch.tensor([1.0, 3.5])})
        torch.testing.assert_close(both, torch.stack([one[0], other[1]]), rtol=1e-5, atol=1e-6)
        assert abs(both[0] - both[1]).max() > 1e-3

    def test_runs_are_judged_at_one(self, model: Flux, tmp_path: Path) -> None:
        path = tmp_path / "lora.safetensors"
        drawing.save_lora(model, "attention", path, strength=0.3)
        losses = [
            fixed_loss(training(guidance=value), path, model, Store(tmp_path / str(value))) for value in (1.0, 3.5)
        ]
        assert losses[0] == losses[1]


class TestText:
    def test_states_are_those_that_the_pipeline_reads(self, folder: Path, model: Flux) -> None:
        """T5's without a mask, always of one length: padding is read, too."""
        prompts = [*drawing.PROMPTS, "a " * 100]
        with torch.no_grad():
            read = model.encode(model.tokenize(prompts))
            states, pooled, _ = stock(folder).encode_prompt(prompts, max_sequence_length=T5_TOKENS)
        assert read["states"].shape == (3, T5_TOKENS, 24) and read["pooled"].shape == (3, 16)
        assert torch.equal(read["states"], states) and torch.equal(read["pooled"], pooled)

    def test_t5_is_never_in_training_mode(self, model: Flux) -> None:
        """It drops a tenth there, and checkpointing of memory switches it on where a part is adapted."""
        encoder: Any = model.part("text_encoder_2")
        assert encoder.config.dropout_rate == 0.1
        tokens = model.tokenize(["a dog"])
        with torch.no_grad():
            plain = model.encode(tokens)["states"]
            model.enable_gradient_checkpointing(True)
            assert model.part("text_encoder").training and torch.equal(model.encode(tokens)["states"], plain)
        model.enable_gradient_checkpointing(False)

    def test_each_encoder_has_its_own_length(self, model: Flux) -> None:
        assert model.room == CLIP_TOKENS - 2 and Flux.t5_most == 512
        assert [cut.encoder for cut in model.cuts("dog " * (CLIP_TOKENS - 1))] == ["text_encoder"]
        cuts = model.cuts("dog " * T5_TOKENS)
        assert [(cut.encoder, cut.room) for cut in cuts] == [
            ("text_encoder", CLIP_TOKENS - 2),
            ("text_encoder_2", T5_TOKENS - 1),
        ]


def test_latents_are_normalised(folder: Path, model: Flux) -> None:
    pixels = families.pixels(builders.pictures(2), RESOLUTION)
    mean, std = model.encode_images(pixels)
    with torch.no_grad():
        posterior = stock(folder).vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean / 0.3611 + 0.1159, posterior.mean)
    torch.testing.assert_close(std / 0.3611, posterior.std)
    assert mean.shape == (2, 16, 8, 8) and mean.dtype == std.dtype == torch.float32


class TestFound:
    @pytest.mark.parametrize("name", ["text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json"])
    def test_identity_is_that_of_the_files(self, folder: Path, model: Flux, tmp_path: Path, name: str) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert load(copy, tmp_path / "hashes").identity == model.identity
        content = bytearray((copy / name).read_bytes())
        content[-2:] = b"}\n" if name.endswith(".json") else bytes(each ^ 1 for each in content[-2:])
        (copy / name).write_bytes(content)
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_schnell(self, folder: Path, tmp_path: Path) -> None:
        """It reads no guidance, and training it undoes what it was distilled for."""
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        config = copy / "transformer" / "config.json"
        config.write_text(config.read_text().replace('"guidance_embeds": true', '"guidance_embeds": false'))
        with pytest.raises(ConfigError, match="says guidance_embeds=false, where dbexp knows true"):
            load(copy, tmp_path / "hashes")

    def test_text_first(self, folder: Path, tmp_path: Path) -> None:
        families.assert_text_first(load(folder, tmp_path / "hashes"), training(steps=1), Store(tmp_path / "store"))


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("flux", tmp_path, formats=["diffusers"])
