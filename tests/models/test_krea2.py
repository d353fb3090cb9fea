"""Krea 2: trained as an independent trainer would, in lanes as alone, drawn, exported, and its traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from numpy.typing import NDArray
from torch import Tensor

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.store import Store
from dbexp.models import Batch, Model, krea2, lora_file
from dbexp.models.krea2 import Krea2
from dbexp.models.random_krea2 import build_random
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
    return build_random(tmp_path_factory.mktemp("krea2") / "model")


def load(folder: Path, hashes: Path, **settings: Any) -> Krea2:
    fields = {"name": "k", "family": "krea2", "path": str(folder), "precision": "fp32", "device": "cpu"}
    return krea2.load(ModelConfig(**{**fields, **settings}), Store(hashes))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Krea2:
    return load(folder, tmp_path_factory.mktemp("hashes"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stock(folder: Path, kind: Any = Krea2Pipeline) -> Any:
    """The pipeline that anybody would load."""
    pipe = kind.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def training(**settings: Any) -> Training:
    return families.training(RESOLUTION, **settings)


# the script's own targets (train_dreambooth_lora_krea2.py of diffusers), but for blocks that see tokens as rows
TARGETS = (
    r"(transformer_blocks|text_fusion\.refiner_blocks)\.\d+\.(attn\.to_(q|k|v|gate|out\.0)|ff\.(up|down))|img_in|time_mod_proj|"
    r"final_layer\.linear|text_fusion\.projector|(txt_in|time_embed)\.linear_[12]"
)


class Independent(families.Independent):
    """On the pipeline's own text, packing, places and statistics, and the denoiser as its pipeline calls it."""

    def __init__(self, folder: Path, made: Training) -> None:
        self.pipe = stock(folder)
        super().__init__(made, {"transformer": self.pipe.transformer}, {"transformer": TARGETS})

    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        pipe, images = self.pipe, families.pixels(paths, RESOLUTION)
        with torch.no_grad():
            states, mask = pipe.encode_prompt(list(prompts), max_sequence_length=TEXT_TOKENS)
            posterior = pipe.vae.encode(images[:, :, None]).latent_dist
            drawn = (posterior.mean + posterior.std * draw.latent_noise[:, :, None])[:, :, 0]
            mean, std = (torch.tensor(pipe.vae.config[f"latents_{name}"]).view(-1, 1, 1) for name in ("mean", "std"))
            latents = (drawn - mean) / std
        share = draw.times[:, None, None, None]
        noisy, (count, channels, height, width) = (1 - share) * latents + share * draw.noise, latents.shape
        velocity = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, count, channels, height, width),
            timestep=draw.times,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            position_ids=pipe.prepare_position_ids(states.shape[1], height // 2, width // 2, torch.device("cpu")),
        ).sample
        velocity = pipe._unpack_latents(velocity, RESOLUTION, RESOLUTION)[:, :, 0]
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
    adapters = 29

    @classmethod
    def lanes(cls) -> dict[str, Training]:
        """Some of whose texts take one block, and one two."""
        beyond = training(weight=0.5, prompt=BEYOND, seed=9, adapters={"rank": 2})
        return {**super().lanes(), "a text beyond a block": beyond}


# -- sampling ---------------------------------------------------------------------------------------------------------


def batch(model: Model, *, guidance: float = 5.5, **others: Any) -> Batch:
    return drawing.batch(model, guidance, **others)


def stock_draw(pipe: Any, *, guidance: float = 5.5, **others: Any) -> NDArray[np.floating[Any]]:
    """The pipeline counts guidance from 0."""
    return drawing.stock_draw(pipe, guidance - 1, max_sequence_length=TEXT_TOKENS, **others)


class TestPictures:
    @pytest.mark.parametrize("guidance", [5.5, 1.5, 1.0])
    def test_are_those_of_the_stock_pipeline(self, folder: Path, model: Krea2, guidance: float) -> None:
        """Drawn from embeddings alone, whatever prompts stand beside, with padding elsewhere."""
        expected = stock_draw(stock(folder), guidance=guidance)
        drawn = batch(model, guidance=guidance)
        assert (drawn.negative is None) == (guidance == 1)
        model.release("text_encoder")
        pipe = model.pipeline("euler")
        assert pipe.text_encoder is None and pipe.tokenizer is None
        np.testing.assert_allclose(model.draw(pipe, drawn), expected, rtol=0, atol=2e-5)
        assert abs(expected[0] - expected[1]).max() > 0.02

    def test_steering_away(self, folder: Path, model: Krea2) -> None:
        """From a text that takes more blocks than the prompts do, too."""
        for negative in ("a purple cat", BEYOND):
            expected = stock_draw(stock(folder), negative_prompt=[negative] * 2)
            steered = drawing.draw(model, batch(model, negative=negative))
            np.testing.assert_allclose(steered, expected, rtol=0, atol=2e-5)
            assert abs(steered - drawing.draw(model, batch(model))).max() > 1e-3

    def test_a_distilled_checkpoint(self, tmp_path: Path) -> None:
        """Turbo draws without guidance, in times of its own."""
        folder = build_random(tmp_path / "turbo", distilled=True)
        turbo = load(folder, tmp_path / "hashes")
        assert not turbo.guided(5.5) and batch(turbo).negative is None
        expected = stock_draw(stock(folder), guidance=1.0)
        np.testing.assert_allclose(drawing.draw(turbo, batch(turbo)), expected, rtol=0, atol=2e-5)
        pipe = turbo.pipeline(None)
        turbo.draw(pipe, batch(turbo, steps=2))
        shift = np.exp(1.15)
        assert pipe.scheduler.sigmas[1].item() == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5), rel=1e-5)

    def test_another_sampler(self, model: Krea2) -> None:
        """It draws what many small steps of the first draw, in the same times."""
        many = drawing.draw(model, batch(model, guidance=1.0, steps=60))
        euler = drawing.draw(model, batch(model, guidance=1.0, steps=2))
        unipc = drawing.draw(model, batch(model, guidance=1.0, steps=8), "unipc")
        assert 0 < np.square(unipc - many).mean() < 0.2 * np.square(euler - many).mean()

    def test_in_bf16_the_vae_is_in_full(self, folder: Path, tmp_path: Path, model: Krea2) -> None:
        half = load(folder, tmp_path, precision="bf16")
        assert half.part("transformer").img_in.weight.dtype == torch.bfloat16
        assert half.part("vae").dtype == torch.float32
        mean, _ = half.encode_images(torch.zeros(1, 3, 64, 64))
        assert mean.dtype == torch.float32
        images = drawing.draw(half, batch(half, guidance=1.0))
        assert np.abs(images - drawing.draw(model, batch(model, guidance=1.0))).mean() < 0.05

    def test_from_an_image(self) -> None:
        """No pipeline does."""
        assert FAMILIES["krea2"].tasks == ("text",)


# -- files ------------------------------------------------------------------------------------------------------------

# What ComfyUI calls layers of Krea 2 in LoRA files: after `transformer.`, the names of diffusers (its comfy/lora.py).
AROUND = (
    *("img_in", "final_layer.linear", "text_fusion.projector", "time_mod_proj"),
    *("txt_in.linear_1", "txt_in.linear_2", "time_embed.linear_1", "time_embed.linear_2"),
)
IN_BLOCKS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0", "ff.up", "ff.down")
KINDS = {"attention": IN_BLOCKS, "linear": (*IN_BLOCKS, "ff.gate")}
BLOCKS = ("transformer_blocks.0", "transformer_blocks.1", "text_fusion.refiner_blocks.0")


def comfy_keys(preset: str) -> set[str]:
    layers = {f"{block}.{kind}" for block in BLOCKS for kind in KINDS[preset]} | {*AROUND}
    return {f"transformer.{layer}.lora_{side}.weight" for layer in layers for side in "AB"}


class TestFiles:
    @pytest.fixture(scope="class", params=list(KINDS))
    @classmethod
    def lora(
        cls, request: pytest.FixtureRequest, model: Krea2, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path]:
        """A preset, and a LoRA on its layers whose alpha is not its rank."""
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        drawing.save_lora(model, request.param, path, strength=0.3)
        return request.param, path

    @pytest.mark.parametrize("format", [None, "diffusers"])
    def test_stock_diffusers_draws_the_same(
        self, folder: Path, tmp_path: Path, model: Krea2, lora: tuple[str, Path], format: str | None
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
        assert builders.tensors(target).keys() == comfy_keys(preset)

    def test_no_alpha_is_needed_beside_the_weights(self, model: Krea2, lora: tuple[str, Path]) -> None:
        """ComfyUI reads no metadata."""
        tensors, metadata = model.export(lora_file.read(lora[1], model), "diffusers")
        described = json.loads(metadata["lora_adapter_metadata"])
        assert described["transformer.lora_alpha"] == described["transformer.r"] == 4
        key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
        torch.testing.assert_close(tensors[key], 1.5 * builders.tensors(lora[1])[key])

    def test_lanes_draw_what_the_file_draws(self, model: Krea2, lora: tuple[str, Path]) -> None:
        preset, path = lora
        drawing.assert_lanes_draw(model, preset, path, channels=16)


def test_true_size() -> None:
    """Built without memory, from the settings of the published checkpoint, which are the class's defaults. The script's
    232 layers are these and seven of each of two blocks that see tokens as rows."""
    with torch.device("meta"):
        denoiser = Krea2Transformer2DModel()
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(12.820, abs=5e-4)
    presets = [krea2.sites(denoiser, preset) for preset in FAMILIES["krea2"].sites]
    assert tuple(map(len, presets)) == (232 - 2 * 7, 232 - 2 * 7 + 28 + 2)
    weights = sum(16 * sum(denoiser.get_submodule(name).weight.shape) for name in presets[0])
    per_block = 16 * (5 * 2 * 2560 + 2 * (2560 + 6912))
    assert (weights + 2 * per_block) / 1e6 == pytest.approx(48.0, abs=0.05)


# -- traps ------------------------------------------------------------------------------------------------------------


class TestText:
    def test_states_are_those_that_the_pipeline_reads(self, folder: Path, model: Krea2) -> None:
        """Of several layers, of what is no padding; a prompt that is too long has the frame's end behind it, too."""
        prompts = ["a photo of sks dog", BEYOND, "a" + " dog" * 200]
        with torch.no_grad():
            expected, wanted = stock(folder).encode_prompt(prompts, max_sequence_length=TEXT_TOKENS)
            read = model.encode(model.tokenize(prompts))
        assert read["states"].shape == (3, TEXT_TOKENS, 3, 16) and read["mask"].dtype == torch.bool
        for states, mask, theirs, valid in zip(read["states"], read["mask"], expected, wanted, strict=True):
            torch.testing.assert_close(states[mask], theirs[valid], rtol=1e-5, atol=1e-5)
            assert not states[~mask].any()
        assert read["mask"].sum(1).tolist() == [10, 71, 96]

    def test_short_texts_take_a_block(self, model: Krea2) -> None:
        with torch.no_grad():
            short, long = (model.encode(model.tokenize([prompt])) for prompt in ("a dog", BEYOND))
        assert short["states"].shape == (1, 64, 3, 16) and long["states"].shape == (1, TEXT_TOKENS, 3, 16)
        both = model.collate([(short, [2]), (long, [1])])
        assert both["states"].shape == (3, TEXT_TOKENS, 3, 16) and both["mask"].dtype == torch.bool
        assert both["mask"].sum(1).tolist() == [7, 7, 71]

    def test_a_row_does_not_depend_on_its_neighbours(self, model: Krea2) -> None:
        noisy, times = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.9])
        with torch.no_grad():
            texts = [model.encode(model.tokenize([prompt])) for prompt in ("a photo of sks dog", BEYOND)]
            both = model.predict(noisy, times, model.collate([(text, [1]) for text in texts]))
            alone = [model.predict(noisy[[row]], times[[row]], texts[row]) for row in range(2)]
        torch.testing.assert_close(both, torch.cat(alone), rtol=1e-5, atol=1e-5)

    def test_room(self, model: Krea2) -> None:
        """One word more, and the last is cut off, not the frame's end."""
        assert model.token_count("a" + " dog" * (model.room - 1)) == model.room
        fits, cut = "a" + " dog" * (model.room - 1), "a" + " dog" * model.room
        assert not model.cuts(fits) and model.cuts(cut)[0].read == len(fits)
        ids = model.tokenize([fits, cut])["ids"]
        assert torch.equal(ids[0], ids[1])


def test_latents_are_normalised(folder: Path, model: Krea2) -> None:
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
    def test_identity_is_that_of_the_files(self, folder: Path, model: Krea2, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert load(copy, tmp_path / "hashes").identity == model.identity
        path = copy / "text_encoder" / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        assert load(copy, tmp_path / "hashes").identity != model.identity

    def test_text_first(self, folder: Path, tmp_path: Path) -> None:
        families.assert_text_first(load(folder, tmp_path / "hashes"), training(steps=1), Store(tmp_path / "store"))


def test_the_whole_experiment(tmp_path: Path) -> None:
    families.assert_whole_experiment("krea2", tmp_path)
