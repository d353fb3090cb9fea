"""What a checkpoint says and its family does not know is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dbexp.config.families import FAMILIES
from dbexp.config.schema import TrainConfig
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.ddpm import KNOWN_SCHEDULES
from dbexp.models.flux import Flux
from dbexp.models.flux2 import Flux2
from dbexp.models.flux2_klein import Flux2Klein
from dbexp.models.known import unknown
from dbexp.models.sd import StableDiffusion
from dbexp.models.sdxl import StableDiffusionXL
from dbexp.models.z_image import ZImage
from tests import builders
from tests.models.checkpoints import (
    Checkpoints,
    change,
)

SCHEDULER, VAE = "scheduler/scheduler_config.json", "vae/config.json"
UNKNOWN: list[tuple[str, str, dict[str, Any]]] = [
    *((family, SCHEDULER, values) for family in ("sd", "sdxl") for values in (
        {"prediction_type": "sample"}, {"prediction_type": "flow_prediction"}, {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"_class_name": None}, {"beta_schedule": "sigmoid"},
        {"timestep_type": "continuous"}, {"use_flow_sigmas": True}, {"num_train_timesteps": 0}, {"beta_end": "x"},
        {"trained_betas": [0.1, 0.2]},
    )),
    *((family, SCHEDULER, values) for family, known in FAMILIES.items() if known.flow for values in (
        {"_class_name": "DDIMScheduler"}, {"num_train_timesteps": 500}, {"shift": 0}, {"invert_sigmas": True},
    )),
    *((family, VAE, {"_class_name": name}) for family in FAMILIES for name in (
        "AutoencoderTiny", "AsymmetricAutoencoderKL",
    )),
    *((family, VAE, {"latent_channels": 7}) for family in FAMILIES if family not in ("qwen_image", "krea2")),
    *((family, VAE, values) for family in ("sd", "sdxl") for values in (
        {"scaling_factor": None}, {"scaling_factor": -1}, {"shift_factor": 0.1}, {"block_out_channels": [8] * 5},
    )),
    ("sd", VAE, {"latents_mean": [0.0] * 4}),
    *((family, VAE, values) for family in ("z_image", "flux", "sd3") for values in (
        {"scaling_factor": None}, {"shift_factor": None}, {"latents_std": [1.0] * 16},
    )),
    ("flux2_klein", VAE, {"patch_size": [1, 1]}),
    *((family, "unet/config.json", values) for family in ("sd", "sdxl") for values in (
        {"in_channels": 8}, {"in_channels": 5}, {"out_channels": 8}, {"time_cond_proj_dim": 256},
        {"class_embed_type": "timestep"}, {"num_class_embeds": 1000}, {"encoder_hid_dim_type": "image_proj"},
        {"attention_type": "gated"}, {"cross_attention_dim": 999}, {"in_channels": "four"},
    )),
    ("sd", "unet/config.json", {"addition_embed_type": "text"}),
    ("sdxl", "unet/config.json", {"addition_embed_type": None}),
    ("sdxl", "unet/config.json", {"projection_class_embeddings_input_dim": 64}),
    ("flux2_klein", "transformer/config.json", {"guidance_embeds": True}),
    ("flux2_klein", "transformer/config.json", {"in_channels": 64}),
    ("flux2_klein", "transformer/config.json", {"joint_attention_dim": 49}),
    ("flux2_klein", "text_encoder/config.json", {"num_hidden_layers": 12}),
    ("z_image", "transformer/config.json", {"in_channels": 64}),
    ("z_image", "transformer/config.json", {"cap_feat_dim": 17}),
    ("z_image", "transformer/config.json", {"all_patch_size": [1, 2]}),
    *(("flux2", "transformer/config.json", values) for values in (
        {"in_channels": 64}, {"guidance_embeds": False}, {"joint_attention_dim": 49},
    )),
    ("flux2", VAE, {"patch_size": [1, 1]}),
    ("flux2", "text_encoder/config.json", {"text_config": {"hidden_size": 16, "num_hidden_layers": 29}}),
    *(("flux", "transformer/config.json", values) for values in (
        {"in_channels": 384}, {"out_channels": 16}, {"patch_size": 2}, {"guidance_embeds": False},
        {"joint_attention_dim": 25}, {"pooled_projection_dim": 32},
    )),
    ("flux", "text_encoder_2/config.json", {"model_type": "umt5"}),
    *(("sd3", "transformer/config.json", values) for values in (
        {"in_channels": 33}, {"out_channels": 4}, {"patch_size": 1}, {"qk_norm": "layer_norm"},
        {"joint_attention_dim": 41}, {"pooled_projection_dim": 32},
    )),
    *(("qwen_image", "transformer/config.json", values) for values in (
        {"in_channels": 128}, {"joint_attention_dim": 17}, {"zero_cond_t": True}, {"use_layer3d_rope": True},
        {"guidance_embeds": True}, {"patch_size": 1},
    )),
    *(("krea2", "transformer/config.json", values) for values in (
        {"in_channels": 128}, {"text_hidden_dim": 17}, {"num_text_layers": 12},
    )),
    *(("qwen_image", VAE, values) for values in ({"z_dim": 64}, {"input_channels": 4}, {"latents_mean": [0.0]})),
    ("sd3", "text_encoder_3/config.json", {"model_type": "umt5"}),
    *((family, "text_encoder/config.json", {"model_type": "bert"}) for family in FAMILIES),
    *((family, f"{FAMILIES[family].denoiser}/config.json", {"quantization_config": {"a": 1}}) for family in FAMILIES),
]  # fmt: skip


class TestSettings:
    @pytest.mark.parametrize(("family", "file", "values"), UNKNOWN)
    def test_what_is_not_known(self, checkpoints: Checkpoints, family: str, file: str, values: dict[str, Any]) -> None:
        folder = checkpoints.copy(family)
        change(folder / file, **values)
        problems = checkpoints.problems(family)
        (name,) = values
        assert all(problem.startswith(f"model.path={folder}: {folder}/") for problem in problems)
        assert any(name in problem for problem in problems)

    @pytest.mark.parametrize("values", [
        {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}, {"use_karras_sigmas": True},
        {"_class_name": "DEISMultistepScheduler"}, {"trained_betas": [0.001] * 1000},
        {"beta_schedule": "squaredcos_cap_v2"},
    ])  # fmt: skip
    @pytest.mark.parametrize("family", ["sd", "sdxl"])
    def test_what_is(self, checkpoints: Checkpoints, family: str, values: dict[str, Any]) -> None:
        folder = checkpoints.copy(family)
        change(folder / SCHEDULER, **values)
        model = checkpoints.open(family)
        times = torch.tensor([0, 999])
        latents, noise = torch.ones(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
        assert model.add_noise(latents, noise, times).isfinite().all()
        weight = model.loss_weight(times, TrainConfig(min_snr_gamma=5.0))
        assert weight is not None and weight.isfinite().all()

    def test_defaults_of_old_files(self, checkpoints: Checkpoints) -> None:
        """Those of Stable Diffusion 1.5 say neither the scaling nor the prediction."""
        folder = checkpoints.copy("sd")
        for file, fields in (
            (SCHEDULER, ["prediction_type", "timestep_spacing"]),
            (VAE, ["scaling_factor", "shift_factor"]),
        ):
            values = json.loads((folder / file).read_text())
            (folder / file).write_text(
                json.dumps({k: v for k, v in values.items() if k not in (*fields, "shift_factor")})
            )
        assert checkpoints.open("sd").sampler == "PNDMScheduler"

    @pytest.mark.parametrize("family", ["sd", "sdxl"])
    def test_inpainting_checkpoints_open(self, checkpoints: Checkpoints, family: str) -> None:
        folder = checkpoints.copy(family)
        change(folder / "unet" / "config.json", in_channels=9)
        assert checkpoints.open(family).needs_mask


_SD_UNET = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4}
_SD_VAE = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4}
_SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "trained_betas": None}
_BLOCKS = {"block_out_channels": [128, 256, 512, 512]}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_KLEIN = {
    "_class_name": "Flux2Transformer2DModel", "guidance_embeds": False, "in_channels": 128, "out_channels": None,
    "patch_size": 1,
}  # fmt: skip
_KLEIN_VAE = {
    "_class_name": "AutoencoderKLFlux2", "latent_channels": 32, "patch_size": [2, 2], "batch_norm_eps": 1e-4,
}  # fmt: skip
PUBLISHED: dict[str, tuple[type[Checkpoint], dict[str, dict[str, Any]]]] = {
    "Stable Diffusion 1.5": (StableDiffusion, {
        "unet": {**_SD_UNET, "cross_attention_dim": 768},
        "vae": {**_SD_VAE, **_BLOCKS},
        "text_encoder": {"model_type": "clip_text_model", "hidden_size": 768, "projection_dim": 768},
        "scheduler": {**_SD_SCHEDULE, "_class_name": "PNDMScheduler", "num_train_timesteps": 1000},
    }),
    "Stable Diffusion 2.1": (StableDiffusion, {
        "unet": {**_SD_UNET, "cross_attention_dim": 1024, "class_embed_type": None, "num_class_embeds": None},
        "vae": {**_SD_VAE, **_BLOCKS},
        "text_encoder": {"model_type": "clip_text_model", "hidden_size": 1024, "projection_dim": 512},
        "scheduler": {**_SD_SCHEDULE, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    }),
    "Stable Diffusion XL": (StableDiffusionXL, {
        "unet": {
            **_SD_UNET, "cross_attention_dim": 2048, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "time_cond_proj_dim": None,
        },
        "vae": {**_SD_VAE, **_BLOCKS, "scaling_factor": 0.13025},
        "text_encoder": {"model_type": "clip_text_model", "hidden_size": 768, "projection_dim": 768},
        "text_encoder_2": {"model_type": "clip_text_model", "hidden_size": 1280, "projection_dim": 1280},
        "scheduler": {**_SD_SCHEDULE, "_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"},
    }),
    "FLUX.2 klein 4B": (Flux2Klein, {
        "transformer": {**_KLEIN, "joint_attention_dim": 7680},
        "vae": _KLEIN_VAE,
        "text_encoder": {"model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36},
        "scheduler": {**_FLOW, "use_dynamic_shifting": True, "invert_sigmas": False},
    }),
    "FLUX.2 klein 9B": (Flux2Klein, {
        "transformer": {**_KLEIN, "joint_attention_dim": 12288},
        "vae": _KLEIN_VAE,
        "text_encoder": {"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36},
        "scheduler": {**_FLOW, "use_dynamic_shifting": True, "invert_sigmas": False},
    }),
    "FLUX.2 dev": (Flux2, {
        "transformer": {**_KLEIN, "joint_attention_dim": 15360, "guidance_embeds": True},
        "vae": _KLEIN_VAE,
        "text_encoder": {"model_type": "mistral3", "text_config": {"hidden_size": 5120, "num_hidden_layers": 40}},
        "scheduler": {**_FLOW, "use_dynamic_shifting": True},
    }),
    "FLUX.1 dev": (Flux, {
        "transformer": {
            "_class_name": "FluxTransformer2DModel", "guidance_embeds": True, "in_channels": 64, "patch_size": 1,
            "joint_attention_dim": 4096, "pooled_projection_dim": 768,
        },
        "vae": {**_SD_VAE, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": {"model_type": "clip_text_model", "hidden_size": 768, "projection_dim": 768},
        "text_encoder_2": {"model_type": "t5", "d_model": 4096},
        "scheduler": {**_FLOW, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    }),
    "Z-Image": (ZImage, {
        "transformer": {
            "_class_name": "ZImageTransformer2DModel", "all_patch_size": [2], "all_f_patch_size": [1],
            "in_channels": 16, "cap_feat_dim": 2560, "t_scale": 1000.0,
        },
        "vae": {**_SD_VAE, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": {"model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36},
        "scheduler": {**_FLOW, "use_dynamic_shifting": False},
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_known(name: str) -> None:
    kind, settings = PUBLISHED[name]
    assert settings.keys() == kind.known.keys()
    assert unknown(settings, kind.known) == []
    assert list(kind.disagreements({**settings, "model_index": {}})) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the libraries among themselves
@pytest.mark.parametrize("name", KNOWN_SCHEDULES["_class_name"])
def test_every_sampler_that_a_checkpoint_may_name_draws(checkpoints: Checkpoints, name: str) -> None:
    change(checkpoints.copy("sd") / SCHEDULER, _class_name=name, clip_sample=False)
    model = checkpoints.open("sd")
    assert model.sampler == name
    assert builders.picture(model, steps=4).std() > 1
