"""The CLIP backbone against transformers' CLIPModel, and its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from dbexp.config.schema import ClipConfig
from dbexp.core.errors import ConfigError
from dbexp.evaluate.backbones.clip import Clip

PARTS: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TINY = ClipConfig(name="tiny", weights="random", kwargs=PARTS)
PROMPTS = ["a dog in the snow", "a red teapot", "a cat on top of a wooden floor", "a dog"]


@pytest.fixture(scope="module")
def clip(cpu: torch.device) -> Clip:
    return Clip(TINY, cpu)


def to_transformers(weights: dict[str, Tensor]) -> CLIPModel:
    """A transformers CLIPModel with an open_clip model's weights."""
    common: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    vision = {"hidden_size": 64, "intermediate_size": 256, "image_size": 32, "patch_size": 8}
    # the end-of-text token is where the text is pooled
    text = {"hidden_size": 32, "intermediate_size": 128, "vocab_size": 49408, "eos_token_id": 49407}
    model = CLIPModel(CLIPConfig(text_config=common | text, vision_config=common | vision, projection_dim=16)).eval()
    names = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.final_layer_norm": "ln_final",
        "vision_model.embeddings.patch_embedding": "visual.conv1",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    whole = {
        "logit_scale": weights["logit_scale"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "vision_model.embeddings.class_embedding": weights["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": weights["visual.positional_embedding"],
        "visual_projection.weight": weights["visual.proj"].T,
        "text_projection.weight": weights["text_projection"].T,
    }
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for i in range(2):
            target, source = f"{tower}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
            names |= {
                f"{target}.layer_norm1": f"{source}.ln_1",
                f"{target}.layer_norm2": f"{source}.ln_2",
                f"{target}.mlp.fc1": f"{source}.mlp.c_fc",
                f"{target}.mlp.fc2": f"{source}.mlp.c_proj",
                f"{target}.self_attn.out_proj": f"{source}.attn.out_proj",
            }
            for leaf in ("weight", "bias"):
                thirds = weights[f"{source}.attn.in_proj_{leaf}"].chunk(3)
                whole |= {f"{target}.self_attn.{x}_proj.{leaf}": third for x, third in zip("qkv", thirds, strict=True)}
    state = {}
    for name, tensor in model.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        state[name] = whole[name] if name in whole else weights[f"{names[stem]}.{leaf}"]
        assert state[name].shape == tensor.shape
    model.load_state_dict(state)
    return model


def test_embeddings_are_those_of_transformers_clip_with_the_same_weights(clip: Clip, pictures: list[Path]) -> None:
    reference = to_transformers(clip.model.state_dict())
    pixels = torch.stack([clip.preprocess(Image.open(path).convert("RGB")) for path in pictures])
    tokens = open_clip.tokenize(PROMPTS)
    with torch.inference_mode():
        images = reference.get_image_features(pixel_values=pixels).pooler_output
        texts = reference.get_text_features(input_ids=tokens).pooler_output
    torch.testing.assert_close(clip.embed_images(pictures), images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clip.embed_texts(PROMPTS), texts, rtol=1e-5, atol=1e-5)
    assert images.std(dim=0).min() > 1e-3 and texts.std(dim=0).min() > 1e-3


def test_results_do_not_depend_on_the_batch_size(clip: Clip, pictures: list[Path]) -> None:
    torch.testing.assert_close(clip.embed_images(pictures, 1), clip.embed_images(pictures, 4), rtol=0, atol=1e-5)
    many = [f"a dog number {i}" for i in range(70)]
    together, alone = clip.embed_texts(many), torch.cat([clip.embed_texts([text]) for text in many[60:]])
    torch.testing.assert_close(together[60:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("words", "cut"), [(75, False), (76, True), (200, True)])
def test_texts_beyond_the_context_are_noticed(clip: Clip, words: int, cut: bool) -> None:
    """75 one-token words, a start and an end fill the 77 places."""
    assert clip.context_length == 77
    assert clip.truncated(["dog " * words, "a dog"]) == [cut, False]


def test_random_weights_are_the_same_every_time(clip: Clip, cpu: torch.device) -> None:
    torch.manual_seed(99)
    again = Clip(TINY, cpu)
    assert again.id == clip.id and again.random and "random weights" in clip.id
    assert Clip(replace(TINY, quick_gelu=False), cpu).id == clip.id, "the activation has no weights"


def test_a_local_checkpoint_and_a_local_folder_load(
    clip: Clip, cpu: torch.device, tmp_path: Path, pictures: list[Path]
) -> None:
    expected = clip.embed_images(pictures)
    file = tmp_path / "open_clip_model.safetensors"
    safetensors.torch.save_file(clip.model.state_dict(), file)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": PARTS | {"quick_gelu": True}}))
    from_file = Clip(replace(TINY, weights=str(file)), cpu)
    from_folder = Clip(ClipConfig(name=f"local-dir:{tmp_path}", weights=None), cpu)
    for loaded in (from_file, from_folder):
        assert torch.equal(loaded.embed_images(pictures), expected)
        assert loaded.id.rpartition(":")[2] == clip.id.rpartition(":")[2]
        assert str(tmp_path) not in loaded.id and not loaded.random


def test_a_folder_without_weights_is_not_filled_with_random_ones(cpu: torch.device, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": PARTS | {"quick_gelu": True}}))
    with pytest.raises(ConfigError, match=r"evaluate\.clip\.weights=null: local-dir:.* could not be loaded"):
        Clip(ClipConfig(name=f"local-dir:{tmp_path}", weights=None), cpu)


def test_gelu_in_place_of_quick_gelu_is_refused_before_anything_is_downloaded(cpu: torch.device) -> None:
    for config in (ClipConfig(name="ViT-B-32"), ClipConfig(name="ViT-B-32", quick_gelu=False)):
        with pytest.raises(ConfigError, match=r"evaluate\.clip\.name=ViT-B-32: computes GELU.*ViT-B-32-quickgelu"):
            Clip(config, cpu)


def test_gelu_is_found_in_the_network_itself(cpu: torch.device) -> None:
    plain = replace(TINY, kwargs=PARTS | {"quick_gelu": False})
    with pytest.raises(ConfigError, match=r"evaluate\.clip\.quick_gelu=true: tiny computes GELU"):
        Clip(plain, cpu)
    assert Clip(replace(plain, quick_gelu=False), cpu).random


def test_without_network_the_error_says_what_to_pass_instead(
    cpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluate\.clip\.weights=openai: .* pass evaluate\.clip\.weights=FILE"):
        Clip(ClipConfig(), cpu)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClipConfig(name="ViT-Q-99"), r"evaluate\.clip\.name=ViT-Q-99: open_clip has no such model"),
        (ClipConfig(weights=None), r"evaluate\.clip\.weights=null: ViT-B-32-quickgelu needs a tag"),
        (ClipConfig(name="local-dir:/x"), r"evaluate\.clip\.weights=openai: local-dir:/x brings its own weights"),
        (ClipConfig(weights="opanai"), r"evaluate\.clip\.weights=opanai: neither one of its tags \(.*openai.*\) nor"),
        (replace(TINY, weights="/no/file.pt"), r"evaluate\.clip\.weights=/no/file\.pt: no such file"),
        (replace(TINY, kwargs=PARTS | {"depht": 3}), r"evaluate\.clip\.kwargs=.*depht"),
    ],
)
def test_bad_fields_are_named(cpu: torch.device, config: ClipConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Clip(config, cpu)


def test_a_checkpoint_of_another_architecture_is_refused(clip: Clip, cpu: torch.device, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    state = clip.model.state_dict()
    safetensors.torch.save_file({name: state[name] for name in list(state)[:-1]}, file)
    with pytest.raises(ConfigError, match=r"evaluate\.clip\.weights=.* is missing"):
        Clip(replace(TINY, weights=str(file)), cpu)


def test_cosines_are_raw(clip: Clip, pictures: list[Path]) -> None:
    """Neither multiplied by a hundred nor cut off at zero: with random weights both signs occur."""
    images = clip.embed_images(pictures).double().numpy()
    texts = clip.embed_texts(PROMPTS).double().numpy()
    cosines = (images @ texts.T) / np.outer(np.linalg.norm(images, axis=1), np.linalg.norm(texts, axis=1))
    assert cosines.min() < 0 < cosines.max() and np.abs(cosines).max() <= 1
