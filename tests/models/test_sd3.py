"""Stable Diffusion 3.5: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch, Model, lora_file, sd3
from dbexp.models.random_sd3 import build_random
from dbexp.models.sd3 import StableDiffusion3
from dbexp.train.data import Training
from dbexp.train.lane import Draw
from tests import builders
from tests.models import drawing, families

RESOLUTION = 64
CLIP_TOKENS, T5_TOKENS = 32, 64  # of the random weights
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
ENCODERS = ("text_encoder", "text_encoder_2")
SITES = 3 * 8 - 1
"""Of three blocks; the last writes no text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random(tmp_path_factory.mktemp("sd3") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> StableDiffusion3:
    fields = {"name": "x", "family": "sd3", "path": str(folder), "precision": "fp32", "device": "cpu", **settings}
    return sd3.load(ModelConfig(**fields), Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion3:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path, kind: Any = StableDiffusion3Pipeline) -> Any:
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
        adapted = ("transformer", *(ENCODERS if made.lora.text_encoder else ()))
        for name in ("vae", "text_encoder_3", *ENCODERS):
            getattr(self.pipe, name).requires_grad_(False)
        alternatives = "|".join(TARGETS)
        targets = {name: rf".*\.attn\.({alternatives})" if name == "transformer" else TEXT for name in adapted}
        super().__init__(made, {name: getattr(self.pipe, name) for name in adapted}, targets)

    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        for parameter in self.trained:  # what nobody reads has a gradient of nothing, not none
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pipe, images = self.pipe, families.pixels(paths, RESOLUTION)
        posterior = pipe.vae.encode(images).latent_dist
        latents = (posterior.mean + posterior.std * draw.latent_noise - 0.0609) * 1.5305
        states, _, pooled, _ = pipe.encode_prompt(
            list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        share = draw.times[:, None, None, None]
        velocity = pipe.transformer(
            hidden_states=(1 - share) * latents + share * draw.noise,
            timestep=draw.times * 1000,
            encoder_hidden_states=states,
            pooled_projections=pooled,
        ).sample
        squares: Tensor = (velocity - (draw.noise - latents)) ** 2
        return squares.mean((1, 2, 3))


class TestSteps:
    @pytest.mark.parametrize(
        ("weight", "settings"),
        [
            (0.0, {"adapters": {"rank": 4, "alpha": 2.0}}),
            (0.7, {"batch_size": 2, "weight_decay": 0.1, "schedule": {"name": "linear", "warmup_steps": 2}}),
            (0.7, {"adapters": {"rank": 4, "alpha": 6.0, "text_encoder": True}, "text_encoder_lr": 5e-4}),
        ],
        ids=["without prior, alpha", "prior, batch, schedule", "prior, text encoders"],
    )
    def test_equal_an_independent_trainers(
        self, folder: Path, model: Model, store: Store, weight: float, settings: dict[str, Any]
    ) -> None:
        made = training(weight=weight, **settings)
        families.assert_same_steps(Independent(folder, made), model, store)

    def test_times_are_shifted_as_the_checkpoint_says(self, model: StableDiffusion3) -> None:
        """The script's sigma for u = 0.5 is 0.75 at a shift of 3."""
        made = training(timesteps="logit_normal", logit_std=1e-6)
        times = model.draw_times(4, torch.Generator().manual_seed(0), made.cfg, RESOLUTION)
        torch.testing.assert_close(times, torch.full((4,), 0.75))


class TestLanes(families.LaneTests):
    resolution = RESOLUTION
    adapters = SITES

    def test_every_lane_moves_every_adapter(self, solo: list[Any]) -> None:
        """But that of the last block's text queries, whose answers go nowhere."""
        for trained in solo:
            ups = {key: value for key, value in builders.tensors(trained.lora).items() if ".lora_B." in key}
            idle = {key for key, value in ups.items() if value.abs().max() < 1e-5}
            assert len(ups) == SITES
            assert idle == {"transformer.transformer_blocks.2.attn.add_q_proj.lora_B.weight"}

    def test_text_encoders(self, model: Model, store: Store, tmp_path: Path) -> None:
        """A lane that adapts both CLIPs, beside one that adapts none, and interrupted."""
        adapters = {"rank": 4, "text_encoder": True, "text_encoder_rank": 2}
        lanes = [training(adapters=adapters, seed=6, log_every=1), training()]
        alone = [families.run([lane], model, Store(tmp_path / f"solo{n}"))[0] for n, lane in enumerate(lanes)]
        for packed, solo in zip(families.run(lanes, model, store), alone, strict=True):
            families.assert_close(packed, solo)
        families.assert_resumes(lanes[0], model, alone[0], Store(tmp_path / "resumed"))


# -- sampling ---------------------------------------------------------------------------------------------------------


def batch(model: Model, *, guidance: float = 4.5, **others: Any) -> Batch:
    return drawing.batch(model, guidance, **others)


def stock_draw(pipe: Any, *, guidance_scale: float = 4.5, **others: Any) -> NDArray[np.floating[Any]]:
    return drawing.stock_draw(pipe, guidance_scale, max_sequence_length=T5_TOKENS, **others)


class TestPictures:
    @pytest.mark.parametrize("guidance", [4.5, 1.0])
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: StableDiffusion3, guidance: float) -> None:
        """Drawn from embeddings alone, whatever prompts stand beside."""
        expected = stock_draw(stock(folder), guidance_scale=guidance)
        drawn = batch(model, guidance=guidance)
        assert (drawn.negative is None) == (guidance == 1)
        model.release(*model.family.encoders)
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is pipe.text_encoder_3 is pipe.tokenizer is pipe.tokenizer_3 is None
        np.testing.assert_allclose(model.draw(pipe, drawn), expected, rtol=0, atol=1e-5)
        assert abs(expected[0] - expected[1]).max() > 0.1

    def test_steering_away(self, folder: Path, model: StableDiffusion3) -> None:
        expected = stock_draw(stock(folder), negative_prompt=["a purple cat"] * 2)
        steered = drawing.draw(model, batch(model, negative="a purple cat"))
        np.testing.assert_allclose(steered, expected, rtol=0, atol=1e-5)
        assert abs(steered - drawing.draw(model, batch(model))).max() > 1e-3

    @pytest.mark.parametrize("sampler", ["heun", "dpm++", "unipc"])
    def test_other_samplers(self, model: StableDiffusion3, sampler: str) -> None:
        """Of second order, they are nearer to many small steps of the first, in the same times."""
        many = drawing.draw(model, batch(model, steps=60))
        euler, other = (drawing.draw(model, batch(model, steps=8), name) for name in ("euler", sampler))
        assert 0 < np.square(other - many).mean() < np.square(euler - many).mean()
        if sampler != "heun":
            assert model.pipeline(sampler).scheduler.config.flow_shift == 3
            with pytest.raises(ConfigError, match="cannot start from an image; give euler, heun, or null"):
                model.pipeline(sampler, "image")

    def test_in_bf16_the_vae_is_in_full(self, folder: Path, tmp_path: Path, model: StableDiffusion3) -> None:
        half = load(folder, tmp_path, precision="bf16")
        assert half.part("transformer").dtype == torch.bfloat16 and half.part("vae").dtype == torch.float32
        mean, _ = half.encode_images(torch.zeros(1, 3, 64, 64))
        assert mean.dtype == torch.float32
        start: dict[str, Any] = {"image": drawing.picture(), "strength": 0.8}
        for given in (dict[str, Any](), start, {**start, "mask": drawing.right_half()}):
            images = drawing.draw(half, batch(half, **given))
            assert np.abs(images - drawing.draw(model, batch(model, **given))).mean() < 0.05


class TestImages:
    def test_from_an_image(self, folder: Path, model: StableDiffusion3) -> None:
        pipe, done = stock(folder, StableDiffusion3Img2ImgPipeline), list[tuple[int, int]]()
        expected = stock_draw(pipe, num_inference_steps=5, image=[drawing.picture()] * 2, strength=0.6)
        given: dict[str, Any] = {"image": drawing.picture(), "strength": 0.6}
        drawn = batch(model, steps=5, after_step=lambda *step: done.append(step), **given)
        np.testing.assert_allclose(drawing.draw(model, drawn), expected, rtol=0, atol=1e-4)
        assert done == [(1, 3), (2, 3), (3, 3)]

    @pytest.mark.parametrize("strength", [0.8, 1.0])
    def test_inpainting(self, folder: Path, model: StableDiffusion3, strength: float) -> None:
        pipe = stock(folder, StableDiffusion3InpaintPipeline)
        twice: dict[str, Any] = {"image": [drawing.picture()] * 2, "mask_image": [drawing.right_half()] * 2}
        latents = stock_draw(pipe, num_inference_steps=5, strength=strength, output_type="latent", **twice)
        with torch.no_grad():  # the pipeline's own decoding forgets the shift
            decoded = pipe.vae.decode(torch.as_tensor(latents) / 1.5305 + 0.0609).sample
        expected = pipe.image_processor.postprocess(decoded, output_type="np")
        given: dict[str, Any] = {"image": drawing.picture(), "strength": strength}
        drawn = drawing.draw(model, batch(model, steps=5, mask=drawing.right_half(), **given))
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-4)
        plain = drawing.draw(model, batch(model, steps=5, **given))
        left, right = (abs(drawn - plain)[:, :, half] for half in (slice(0, 32), slice(64, None)))
        assert left.mean() > right.mean()


# -- files ------------------------------------------------------------------------------------------------------------

# What ComfyUI calls layers of Stable Diffusion 3 in LoRA files: after `transformer.`, the names of diffusers (its
# comfy/utils.py, mmdit_to_diffusers), of which q, k and v go into one layer there.
PICTURE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
WORDS = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
LAST_LACKS = ("attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")


def comfy_keys(preset: str) -> set[str]:
    """Keys that it finds in the file of a preset."""
    layers = set()
    for block in range(3):
        kinds = [*PICTURE, *WORDS]
        kinds += ["ff.net.0.proj", "ff.net.2"] if preset == "attention+mlp" else []
        lacks = LAST_LACKS if preset == "attention+mlp" else LAST_LACKS[:1]
        kinds += lacks if block < 2 else []
        layers |= {f"transformer_blocks.{block}.{kind}" for kind in kinds}
    return {f"transformer.{layer}.lora_{side}.weight" for layer in layers for side in "AB"}


class TestFiles:
    @pytest.fixture(scope="class", params=["attention", "attention+mlp", "linear"])
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: StableDiffusion3, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers and on both CLIPs, whose alphas are not its ranks."""
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        drawing.save_lora(model, request.param, path, strength=0.2, text_encoders=True)
        return request.param, path

    @pytest.mark.parametrize("format", [None, "diffusers"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: StableDiffusion3, lora: tuple[str, Path], format: str | None
    ) -> None:
        preset, path = lora
        images = []
        for parts in ([], ["transformer"], None):
            with lora_file.merged(model, path, parts=parts):
                images.append(drawing.draw(model, batch(model)))
        base, denoiser, expected = images
        assert min(abs(denoiser - base).max(), abs(expected - denoiser).max()) > 0.05
        target = tmp_path / "out.safetensors"
        lora_file.write(lora_file.read(path, model), target, model, format)
        pipe = stock(folder)
        pipe.load_lora_weights(str(tmp_path), weight_name=target.name)
        np.testing.assert_allclose(stock_draw(pipe), expected, rtol=0, atol=1e-4)
        keys = {key for key in builders.tensors(target) if key.startswith("transformer.")}
        if preset != "linear":
            assert keys == comfy_keys(preset)
        else:
            assert keys > comfy_keys("attention+mlp")

    def test_lanes_draw_what_the_file_draws(self, model: StableDiffusion3, lora: tuple[str, Path]) -> None:
        preset, path = lora
        drawing.assert_lanes_draw(model, preset, path, channels=16)


@pytest.mark.parametrize(
    ("settings", "billions", "counts", "millions"),
    [
        # stabilityai/stable-diffusion-3.5-medium, and -large
        (
            {
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
            },
            2.243,
            (191, 285, 385),
            9.4,
        ),
        (
            {
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
            },
            8.057,
            (303, 453, 529),
            23.6,
        ),
    ],
    ids=["medium", "large"],
)
def test_true_size(settings: dict[str, Any], billions: float, counts: tuple[int, ...], millions: float) -> None:
    """Built without memory, from the settings of the published checkpoints."""
    with torch.device("meta"):
        denoiser = SD3Transformer2DModel(qk_norm="rms_norm", **settings)
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    presets = [sd3.sites(denoiser, preset) for preset in FAMILIES["sd3"].sites]
    assert tuple(map(len, presets)) == counts
    layers = [denoiser.get_submodule(name) for name in presets[0]]
    assert sum(16 * sum(layer.weight.shape) for layer in layers) / 1e6 == pytest.approx(millions, abs=0.05)


# -- traps ------------------------------------------------------------------------------------------------------------


class TestText:
    def test_states_are_those_that_the_pipeline_reads(self, folder: Path, model: StableDiffusion3) -> None:
        prompts = [*drawing.PROMPTS, "a " * 100]
        tokens = model.tokenize(prompts)
        with torch.no_grad():
            read = model.encode(tokens)
            states, _, pooled, _ = stock(folder).encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
            )
            assert read["states"].shape == (3, CLIP_TOKENS + T5_TOKENS, 40) and read["pooled"].shape == (3, 36)
            assert torch.equal(read["states"], states) and torch.equal(read["pooled"], pooled)

    def test_no_encoder_reads_more_than_its_own_length(self, model: StableDiffusion3) -> None:
        """Words behind the CLIPs' end are still read by T5."""
        assert model.room == CLIP_TOKENS - 2
        (cut,) = model.cuts("a " + "dog " * (CLIP_TOKENS - 2))[:1]
        assert (cut.encoder, cut.tokens, cut.room) == ("text_encoder", CLIP_TOKENS - 1, CLIP_TOKENS - 2)
        cuts = model.cuts("dog " * T5_TOKENS)
        assert [cut.encoder for cut in cuts] == [*ENCODERS, "text_encoder_3"]
        assert cuts[2].room == T5_TOKENS - 1 and cuts[2].read == len("dog ") * (T5_TOKENS - 1) - 1
        assert not model.cuts("dog " * (CLIP_TOKENS - 2))


def test_latents_are_normalised(folder: Path, model: StableDiffusion3) -> None:
    pixels = families.pixels(builders.pictures(2), RESOLUTION)
    mean, std = model.encode_images(pixels)
    vae = stock(folder).vae
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean / 1.5305 + 0.0609, posterior.mean)
    torch.testing.assert_close(std / 1.5305, posterior.std)
    assert mean.shape == (2, 16, 8, 8) and mean.dtype == std.dtype == torch.float32


class TestFound:
    @pytest.mark.parametrize("name", ["text_encoder_3/model.safetensors", "tokenizer_3/tokenizer.json"])
    def test_identity_is_that_of_the_files(
        self, folder: Path, model: StableDiffusion3, tmp_path: Path, name: str
    ) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert load(copy, tmp_path / "hashes").identity == model.identity
        content = bytearray((copy / name).read_bytes())
        content[-2:] = b"}\n" if name.endswith(".json") else bytes(each ^ 1 for each in content[-2:])
        (copy / name).write_bytes(content)
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_without_t5(self, folder: Path, tmp_path: Path) -> None:
        """Some drop it to save memory; what it would say is not made up."""
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        shutil.rmtree(copy / "text_encoder_3")
        with pytest.raises(ConfigError, match="lacks text_encoder_3; expected a diffusers pipeline folder with"):
            load(copy, tmp_path / "hashes")

    def test_a_resolution_beyond_its_positions(self, folder: Path, tmp_path: Path) -> None:
        assert load(folder, tmp_path, resolution=512).largest_side == 512
        with pytest.raises(ConfigError, match=r"model\.resolution=528: .* has positions for at most 512 pixels a side"):
            load(folder, tmp_path, resolution=528)

    def test_text_first(self, folder: Path, tmp_path: Path) -> None:
        families.assert_text_first(load(folder, tmp_path / "hashes"), training(steps=1), Store(tmp_path / "store"))


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("sd3", tmp_path)
