"""Stable Diffusion checkpoints: found, refused with a reason, and used as diffusers would."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from numpy.typing import NDArray

from dbexp import models
from dbexp.config.families import SAMPLERS
from dbexp.config.schema import TrainConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Model, sd
from dbexp.models.random_weights import TINY, TINY_V, Size
from tests import builders
from tests.builders import model_config

# diffusers' schedulers hand numpy torch tensors in a way that NumPy 2 grumbles about
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(builders.checkpoint(), tmp_path / "checkpoint"))


def refusal(store: Store, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        sd.load(model_config(**config), store)
    assert len(caught.value.problems) == 1
    return str(caught.value)


class TestRefused:
    @pytest.mark.parametrize(
        "path", ["/nowhere/model", "./model", "~/model", "model", "a/b/c", "weights/model.safetensors"]
    )
    def test_no_such_folder(self, store: Store, path: str) -> None:
        expected = f"model.path={path}: there is no such folder or file, and it is no hub id (owner/name)"
        assert refusal(store, path=path) == expected

    def test_hub_out_of_reach(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        message = refusal(store, path="no-such-owner/no-such-model")
        assert message.startswith(
            "model.path=no-such-owner/no-such-model: not on this machine, and the hub did not give it"
        )
        assert message.endswith("pass model.path=FOLDER of a downloaded pipeline, or a .safetensors file")
        assert "\n" not in message

    def test_an_error_without_words(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_HUB_OFFLINE")

        def fail(*_: Any, **__: Any) -> str:
            raise TimeoutError

        monkeypatch.setattr(StableDiffusionPipeline, "download", fail)
        assert "did not give it (TimeoutError)" in refusal(store, path="owner/name")

    def test_parts_are_lacking(self, store: Store, copy: Path) -> None:
        shutil.rmtree(copy / "unet")
        shutil.rmtree(copy / "tokenizer")
        assert f"{copy} lacks unet, tokenizer; expected a diffusers pipeline folder" in refusal(store, path=str(copy))

    def test_an_empty_folder(self, store: Store, tmp_path: Path) -> None:
        assert "lacks vae, unet, text_encoder, tokenizer, scheduler" in refusal(store, path=str(tmp_path))

    def test_two_text_encoders(self, store: Store, copy: Path) -> None:
        shutil.copytree(copy / "text_encoder", copy / "text_encoder_2")
        message = refusal(store, path=str(copy))
        assert "not a Stable Diffusion 1.x or 2.x checkpoint" in message and "two text encoders" in message

    def test_another_denoiser(self, store: Store, copy: Path) -> None:
        settings = json.loads((copy / "unet" / "config.json").read_text())
        (copy / "unet" / "config.json").write_text(json.dumps(settings | {"_class_name": "SomeTransformer2DModel"}))
        assert "(denoiser SomeTransformer2DModel)" in refusal(store, path=str(copy))

    @pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff"])
    def test_no_unet_config(self, store: Store, copy: Path, content: bytes | None) -> None:
        (copy / "unet" / "config.json").unlink()
        if content is not None:
            (copy / "unet" / "config.json").write_bytes(content)
        assert (
            refusal(store, path=str(copy))
            == f"model.path={copy}: {copy / 'unet' / 'config.json'} is missing or damaged"
        )

    def test_vae(self, store: Store, tmp_path: Path) -> None:
        message = refusal(store, vae="no-such-owner/no-such-vae")
        assert message.startswith("model.vae=no-such-owner/no-such-vae: not a folder here, and the hub did not give it")

    @pytest.mark.parametrize("content", [b"", b"no weights", safetensors.torch.save({"a": torch.zeros(1)})])
    def test_a_file_that_is_no_checkpoint(self, store: Store, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        message = refusal(store, path=str(path), single_file_config=str(builders.checkpoint()))
        assert message.startswith(
            f"model.path={path}: could not be read as a checkpoint of Stable Diffusion 1.x and 2.x ("
        )
        whole = content and content[:2] != b"no"
        assert message.endswith("of a pipeline of the same architecture" if whole else "give a whole file")


class TestFound:
    def test_the_last_two_are_kept(self, store: Store) -> None:
        """One may train, and the other draw; the one that was asked for longest ago goes."""
        first = models.load(model_config(), store)
        assert models.load(model_config(), store) is first
        second = models.load(model_config(precision="bf16"), store)
        assert second is not first and models.load(model_config(), store) is first
        models.load(model_config(resolution=64), store)
        assert models.load(model_config(), store) is first
        assert models.load(model_config(precision="bf16"), store) is not second

    def test_random(self, store: Store) -> None:
        found = sd.load(model_config(path="random"), store)
        assert found.identity == sd.load(model_config(path="random"), store).identity
        assert len(list(store.root.glob("model/*/*/unet"))) == 1
        assert found.token_count("sks") == 1 and found.room == 75

    def test_nothing_is_read_until_it_is_used(self, store: Store) -> None:
        found = sd.load(model_config(), store)
        assert not found.parts and "tokenizer" not in found.__dict__
        part = found.part("unet")
        assert found.part("unet") is part
        found.release("unet", "vae")
        assert found.part("unet") is not part

    def test_frozen(self) -> None:
        base = builders.model()
        for part in (base.part(name) for name in ("unet", "text_encoder", "vae")):
            assert not part.training and not any(p.requires_grad for p in part.parameters())

    @pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
    def test_precision(self, precision: str, dtype: torch.dtype) -> None:
        base = builders.model(precision=precision)
        assert base.dtype == dtype
        assert {p.dtype for part in ("unet", "text_encoder") for p in base.part(part).parameters()} == {dtype}

    def test_variant(self, store: Store, tmp_path: Path) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(
            builders.checkpoint(), safety_checker=None, requires_safety_checker=False
        )
        pipe.to(dtype=torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
        base = sd.load(model_config(path=str(tmp_path / "half"), variant="fp16"), store)
        expected = builders.model().part("unet").state_dict()
        for name, value in base.part("unet").state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, expected[name].half().float())

    @pytest.mark.parametrize(
        "name",
        [
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "tokenizer/vocab.json",
            "scheduler/scheduler_config.json",
        ],
    )
    def test_identity_is_that_of_the_files(self, store: Store, copy: Path, name: str) -> None:
        before = sd.load(model_config(path=str(copy)), store).identity
        assert before == builders.model().identity, "where it lies does not matter"
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(
            content[:-1] + bytes([content[-1] ^ 1]) if name.endswith("tensors") else content + b" "
        )
        assert sd.load(model_config(path=str(copy)), store).identity != before

    def test_notes_beside_the_weights_are_no_part_of_it(self, store: Store, copy: Path) -> None:
        (copy / "README.md").write_text("notes")
        (copy / "unet" / "notes.md").write_text("notes")
        assert sd.load(model_config(path=str(copy)), store).identity == builders.model().identity

    def test_another_vae(self, store: Store, copy: Path) -> None:
        other = builders.checkpoint(seed=1) / "vae"
        found = sd.load(model_config(vae=str(other)), store)
        expected = AutoencoderKL.from_pretrained(other).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.part("vae").state_dict().items())
        assert found.identity != builders.model().identity
        shutil.rmtree(copy / "vae")
        assert sd.load(model_config(path=str(copy), vae=str(other)), store).identity == found.identity


class TestPredictions:
    @pytest.mark.parametrize("size", [TINY, TINY_V])
    def test_shapes(self, size: Size) -> None:
        base = builders.model(size)
        tokens = base.tokenize(["a photo of sks dog", "a " * 100])
        assert tokens["ids"].shape == (2, base.room + 2) and tokens["ids"].dtype == torch.int64
        text = base.encode(tokens)
        assert text["states"].shape == (2, 32, 16)
        mean, std = base.encode_images(torch.zeros(2, 3, 32, 32))
        assert mean.shape == std.shape == (2, 4, 16, 16) and mean.dtype == torch.float32
        predicted = base.predict(mean.clone(), torch.tensor([0, 999]), text)
        assert predicted.shape == mean.shape

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_half_precision_takes_and_gives_what_it_should(self, precision: str) -> None:
        base = builders.model(precision=precision)
        mean, std = base.encode_images(torch.zeros(1, 3, 32, 32))
        assert mean.dtype == std.dtype == torch.float32
        text = {"states": base.encode(base.tokenize(["a"]))["states"].float()}
        assert base.predict(mean, torch.tensor([5]), text).dtype == base.dtype

    @pytest.mark.parametrize("size", [TINY, TINY_V])
    def test_noise_and_target_are_those_of_diffusers(self, size: Size) -> None:
        base = builders.model(size)
        noise_schedule = DDPMScheduler.from_pretrained(builders.checkpoint(size) / "scheduler")
        latents, noise, steps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 400, 999])
        assert torch.equal(base.add_noise(latents, noise, steps), noise_schedule.add_noise(latents, noise, steps))
        expected = noise if size is TINY else noise_schedule.get_velocity(latents, noise, steps)
        assert torch.equal(base.target(latents, noise, steps), expected)

    @pytest.mark.parametrize("gamma", [1.0, 5.0])
    @pytest.mark.parametrize("size", [TINY, TINY_V])
    def test_min_snr(self, size: Size, gamma: float) -> None:
        """min(SNR, gamma) over SNR for noise and over SNR + 1 for v, as the Diffusers training scripts have it."""
        base = builders.model(size)
        steps = torch.arange(1000)
        snr = compute_snr(DDPMScheduler.from_pretrained(builders.checkpoint(size) / "scheduler"), steps)
        expected = torch.stack([snr, gamma * torch.ones(1000)], 1).min(1).values / (snr if size is TINY else snr + 1)
        weights = base.loss_weight(steps, TrainConfig(min_snr_gamma=gamma))
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)

    def test_token_count(self) -> None:
        base = builders.model()
        assert [base.token_count(text) for text in ("", "dog", "a photo of sks dog", "zyx")] == [0, 1, 5, 3]


class TestSampling:
    def draw(self, base: Model, sampler: str | None, steps: int = 2) -> NDArray[np.int64]:
        return builders.picture(base, "a dog", sampler=sampler, steps=steps, guidance=2.0)

    @pytest.mark.parametrize("size", [TINY, TINY_V])
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_every_name(self, sampler: str, size: Size, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            assert self.draw(builders.model(size), sampler).shape == (32, 32, 3)
        assert caplog.messages == []

    def test_the_checkpoints_own(self) -> None:
        base = builders.model()
        own = base.pipeline(None).scheduler
        assert type(own).__name__ == "PNDMScheduler" and own.config.skip_prk_steps
        assert np.array_equal(self.draw(base, None, steps=4), self.draw(base, "pndm", steps=4))

    def test_samplers_differ(self) -> None:
        base = builders.model()
        others = [sampler for sampler in SAMPLERS if sampler != "euler_a"]  # whose steps are those of ddpm
        assert len({self.draw(base, sampler, steps=4).tobytes() for sampler in others}) == len(others)

    @pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
    def test_latents_are_not_clipped(self, sampler: str) -> None:
        assert builders.model().pipeline(sampler).scheduler.config.clip_sample is False

    def test_the_checkpoints_noise_schedule_is_kept(self) -> None:
        for sampler in SAMPLERS:
            config = builders.model(TINY_V).pipeline(sampler).scheduler.config
            assert config.prediction_type == "v_prediction"
            assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")

    def test_it_shares_the_loaded_parts_and_reads_no_text(self) -> None:
        base = builders.model()
        pipe = base.pipeline("ddim")
        assert pipe.unet is base.part("unet") and pipe.vae is base.part("vae")
        assert pipe.text_encoder is None and pipe.tokenizer is None and pipe.safety_checker is None

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_it_draws_what_the_stock_pipeline_draws(self, guidance: float) -> None:
        base = builders.model()
        stock = base.stock_pipeline(None)
        generator, sizes = torch.Generator().manual_seed(5), {"height": 32, "width": 32}
        (image,) = stock("a dog", num_inference_steps=3, guidance_scale=guidance, generator=generator, **sizes).images
        ours = builders.picture(base, "a dog", seed=5, guidance=guidance)
        assert np.array_equal(ours, np.asarray(image).astype(int))


def renamed(state: dict[str, torch.Tensor], rules: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    for old, new in rules:
        state = {re.sub(old, new, name): value for name, value in state.items()}
    return state


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return safetensors.torch.load_file(file)


def original_unet(folder: Path) -> dict[str, torch.Tensor]:
    """A UNet's weights under the names of the original single files; two levels with a layer in each block."""
    resnet = [
        (r"\.norm1\.", ".in_layers.0."),
        (r"\.conv1\.", ".in_layers.2."),
        (r"\.time_emb_proj\.", ".emb_layers.1."),
        (r"\.norm2\.", ".out_layers.0."),
        (r"\.conv2\.", ".out_layers.3."),
        (r"\.conv_shortcut\.", ".skip_connection."),
    ]
    unet = weights(folder, "unet")
    blocks = {name: value for name, value in unet.items() if ".resnets." in name}
    others = {name: value for name, value in unet.items() if ".resnets." not in name}
    return renamed(
        renamed(blocks, resnet) | others,
        [
            # one layer per block: down block i is input 1 + 2i, its downsampler 2 + 2i; up block i, outputs 2i, 2i + 1
            (r"^down_blocks\.0\.resnets\.0\.", "input_blocks.1.0."),
            (r"^down_blocks\.0\.attentions\.0\.", "input_blocks.1.1."),
            (r"^down_blocks\.0\.downsamplers\.0\.conv\.", "input_blocks.2.0.op."),
            (r"^down_blocks\.1\.resnets\.0\.", "input_blocks.3.0."),
            (r"^down_blocks\.1\.attentions\.0\.", "input_blocks.3.1."),
            (r"^mid_block\.resnets\.0\.", "middle_block.0."),
            (r"^mid_block\.attentions\.0\.", "middle_block.1."),
            (r"^mid_block\.resnets\.1\.", "middle_block.2."),
            (r"^up_blocks\.0\.resnets\.(\d)\.", r"output_blocks.\1.0."),
            (r"^up_blocks\.0\.attentions\.(\d)\.", r"output_blocks.\1.1."),
            (r"^up_blocks\.0\.upsamplers\.0\.", "output_blocks.1.2."),
            (r"^up_blocks\.1\.resnets\.0\.", "output_blocks.2.0."),
            (r"^up_blocks\.1\.attentions\.0\.", "output_blocks.2.1."),
            (r"^up_blocks\.1\.resnets\.1\.", "output_blocks.3.0."),
            (r"^up_blocks\.1\.attentions\.1\.", "output_blocks.3.1."),
            (r"^time_embedding\.linear_1\.", "time_embed.0."),
            (r"^time_embedding\.linear_2\.", "time_embed.2."),
            (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
            (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
            (r"^conv_in\.", "input_blocks.0.0."),
            (r"^conv_norm_out\.", "out.0."),
            (r"^conv_out\.", "out.2."),
            (r"^", "model.diffusion_model."),
        ],
    )


def original_vae(folder: Path, levels: int) -> dict[str, torch.Tensor]:
    """The same of a VAE."""
    decoder = []
    for level in range(levels):  # the original counts the decoder's blocks from fine to coarse
        block = f"decoder.up.{levels - 1 - level}"
        decoder.append((rf"^decoder\.up_blocks\.{level}\.resnets\.(\d)\.", rf"{block}.block.\1."))
        decoder.append((rf"^decoder\.up_blocks\.{level}\.upsamplers\.0\.", f"{block}.upsample."))
    vae = renamed(
        weights(folder, "vae"),
        [
            *decoder,
            (r"conv_shortcut", "nin_shortcut"),
            (r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)\.", r"encoder.down.\1.block.\2."),
            (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
            (r"mid_block\.resnets\.0\.", "mid.block_1."),
            (r"mid_block\.resnets\.1\.", "mid.block_2."),
            (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
            (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
            (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
            (r"conv_norm_out", "norm_out"),
            (r"^", "first_stage_model."),
        ],
    )
    for name, value in vae.items():
        if ".attn_1." in name and value.ndim == 2:
            vae[name] = value[:, :, None, None]
    return vae


def original_layout(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a pipeline of TINY's architecture under the names that the original single files use."""
    text = renamed(
        weights(folder, "text_encoder"),
        [(r"^(?!text_model\.)", "text_model."), (r"^", "cond_stage_model.transformer.")],
    )
    return original_unet(folder) | original_vae(folder, 2) | text


class TestSingleFile:
    def test_round_trip(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read like the folder that it came from, and converted once."""
        file, folder = tmp_path / "model.safetensors", builders.checkpoint()
        safetensors.torch.save_file({k: v.contiguous() for k, v in original_layout(folder).items()}, file)
        config = model_config(path=str(file), single_file_config=str(folder))
        found, expected = sd.load(config, store), builders.model()
        for part in ("unet", "text_encoder"):
            ours, theirs = found.part(part).state_dict(), expected.part(part).state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        pixels = torch.rand(1, 3, 32, 32)
        for mine, other in zip(found.encode_images(pixels), expected.encode_images(pixels), strict=True):
            assert torch.equal(mine, other)
        ids = "a photo of sks dog"
        assert torch.equal(found.tokenize([ids])["ids"], expected.tokenize([ids])["ids"])

        def again(*_: Any, **__: Any) -> Callable[..., Any]:
            raise AssertionError("it was converted before")

        monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", again)
        assert sd.load(config, store).identity == found.identity


def test_large_images_are_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    base = builders.model()
    whole = builders.picture(base)
    assert not base.part("vae").use_tiling
    monkeypatch.setattr(sd.StableDiffusion, "tiled_above", 16)
    tiled = builders.picture(base)
    assert base.part("vae").use_tiling and base.part("vae").use_slicing
    assert tiled.shape == whole.shape and np.isfinite(tiled).all()
    monkeypatch.undo()
    assert np.array_equal(builders.picture(base), whole), "smaller ones are as before"
