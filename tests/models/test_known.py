"""What a checkpoint says and its family does not know is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dbexp.config.families import FAMILIES
from dbexp.config.schema import TrainConfig
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
    *((family, SCHEDULER, values) for family in ("flux2_klein", "z_image") for values in (
        {"_class_name": "DDIMScheduler"}, {"num_train_timesteps": 500}, {"shift": 0}, {"invert_sigmas": True},
    )),
    *((family, VAE, values) for family in FAMILIES for values in (
        {"_class_name": "AutoencoderTiny"}, {"_class_name": "AsymmetricAutoencoderKL"}, {"latent_channels": 7},
    )),
    *((family, VAE, values) for family in ("sd", "sdxl") for values in (
        {"scaling_factor": None}, {"scaling_factor": -1}, {"shift_factor": 0.1}, {"block_out_channels": [8] * 5},
    )),
    ("sd", VAE, {"latents_mean": [0.0] * 4}),
    ("z_image", VAE, {"scaling_factor": None}),
    ("z_image", VAE, {"shift_factor": None}),
    ("z_image", VAE, {"latents_std": [1.0] * 16}),
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
