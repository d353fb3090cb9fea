"""The DINO backbone against transformers' ViT, and its errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTConfig, ViTModel

from dbexp.config.schema import DinoConfig
from dbexp.core.errors import ConfigError
from dbexp.estimate.card import PretendedCard
from dbexp.evaluate.backbones.dino import Dino
from dbexp.evaluate.pictures import square, to_tensor

TINY = DinoConfig(
    weights="random",
    kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    resize=40,
    crop=32,
)


@pytest.fixture(scope="module")
def dino(cpu: torch.device) -> Dino:
    return Dino(TINY, cpu)


def to_transformers(weights: dict[str, Tensor]) -> ViTModel:
    """A transformers ViT with a timm ViT's weights."""
    model = ViTModel(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
        ),
        add_pooling_layer=False,
    ).eval()
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
    }
    for i in range(2):
        source, target = f"blocks.{i}", f"layers.{i}"
        names |= {
            f"{target}.layernorm_before": f"{source}.norm1",
            f"{target}.layernorm_after": f"{source}.norm2",
            f"{target}.attention.o_proj": f"{source}.attn.proj",
            f"{target}.mlp.fc1": f"{source}.mlp.fc1",
            f"{target}.mlp.fc2": f"{source}.mlp.fc2",
        }
    state = {}
    for their_name, tensor in model.state_dict().items():
        stem, _, leaf = their_name.rpartition(".")
        part = next((p for p in ("q_proj", "k_proj", "v_proj") if stem.endswith(f"attention.{p}")), None)
        if part:
            fused = weights[f"blocks.{stem.split('.')[1]}.attn.qkv.{leaf}"]
            state[their_name] = fused.chunk(3)["qkv".index(part[0])]
        elif their_name in names:
            state[their_name] = weights[names[their_name]]
        else:
            state[their_name] = weights[f"{names[stem]}.{leaf}"]
        assert state[their_name].shape == tensor.shape
    model.load_state_dict(state)
    return model


def test_embeddings_are_those_of_transformers_vit_with_the_same_weights(dino: Dino, pictures: list[Path]) -> None:
    # timm's initialisation leaves every picture nearly the same vector; larger weights make the comparison bite
    wide = Dino(TINY, dino.device)
    generator = torch.Generator().manual_seed(1)
    for parameter in wide.model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    reference = to_transformers(wide.model.state_dict())
    pixels = torch.stack(
        [to_tensor(square(Image.open(path).convert("RGB"), 40, 32), TINY.mean, TINY.std) for path in pictures]
    )
    with torch.inference_mode():
        expected = reference(pixels).last_hidden_state[:, 0]
    embedded = wide.embed_images(pictures)
    assert embedded.std(dim=0).min() > 1e-2, "the pictures must differ for this test to mean anything"
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-5)


def test_results_do_not_depend_on_the_batch_size(dino: Dino, pictures: list[Path]) -> None:
    torch.testing.assert_close(dino.embed_images(pictures, 1), dino.embed_images(pictures, 4), rtol=0, atol=1e-5)


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone(dino: Dino, cpu: torch.device) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = Dino(TINY, cpu)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.id == dino.id and again.random
    assert "random weights" in dino.id and "sha256:" in dino.id


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_load_and_have_the_identity_of_their_values(
    dino: Dino, cpu: torch.device, tmp_path: Path, pictures: list[Path], suffix: str
) -> None:
    path = tmp_path / f"dino{suffix}"
    state = dino.model.state_dict()
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:  # as DINO's own training checkpoints look
        teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
        torch.save({"teacher": teacher | {"head.mlp.0.weight": torch.zeros(1)}, "epoch": 800}, path)
    loaded = Dino(replace(TINY, weights=str(path)), cpu)
    assert torch.equal(loaded.embed_images(pictures), dino.embed_images(pictures))
    assert loaded.id.rpartition("/")[2] == dino.id.rpartition("/")[2]
    assert "/file/" in loaded.id and str(tmp_path) not in loaded.id and not loaded.random


def test_inference_is_full_fp32_without_gradients_whatever_the_caller_set(dino: Dino, pictures: list[Path]) -> None:
    expected = dino.embed_images(pictures)
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = dino.embed_images(pictures)
    assert embedded.dtype == torch.float32 and not embedded.requires_grad
    assert torch.equal(embedded, expected)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_of_my_own"}, r"evaluate\.dino\.name=vit_of_my_own: timm has no such model"),
        ({"kwargs": {"depht": 2}}, r"evaluate\.dino\.kwargs=.*depht"),
        ({"crop": 48}, r"evaluate\.dino\.crop=48: must lie between 1 and resize=40"),
        ({"crop": 24}, r"evaluate\.dino\.crop=24: .* does not take this size"),
        ({"weights": "/no/such/file.pth"}, r"evaluate\.dino\.weights=/no/such/file\.pth: there is no such file"),
    ],
)
def test_bad_fields_are_named(cpu: torch.device, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Dino(replace(TINY, **changes), cpu)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "cannot be read as a state dict"),
        (None, "holds no tensors"),
        ({"x": torch.ones(1)}, "cls_token is missing"),
    ],
)
def test_unfit_files_are_named(cpu: torch.device, tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content or {"epoch": 1}, path)
    with pytest.raises(ConfigError, match=rf"evaluate\.dino\.weights=.*weights\.pt: .*{message}"):
        Dino(replace(TINY, weights=str(path)), cpu)


def test_weights_of_another_shape_are_refused(dino: Dino, cpu: torch.device, tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    safetensors.torch.save_file(dino.model.state_dict() | {"pos_embed": torch.zeros(1, 5, 32)}, path)
    with pytest.raises(ConfigError, match=r"pos_embed is \[1, 5, 32\] and should be \[1, 17, 32\]"):
        Dino(replace(TINY, weights=str(path)), cpu)


def test_without_network_the_error_says_what_to_pass_instead(
    cpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluate\.dino\.weights=null: .* pass evaluate\.dino\.weights=FILE"):
        Dino(DinoConfig(), cpu)


def test_weights_leave_a_card_and_come_back(pictures: list[Path]) -> None:
    with PretendedCard() as card:
        network = Dino(TINY, torch.device("cuda"))
        held = card.allocated
        network.leave()
        assert card.allocated < held / 10
        for _ in range(2):
            assert network.embed_images(pictures).shape == (len(pictures), 32)
        assert card.allocated >= held
        network.leave()
        assert card.allocated < held / 10
