"""LoRAs of other trainers: written here in every naming, by diffusers and PEFT themselves or by hand, and read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn

from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash
from dbexp.core.store import Store
from dbexp.models import LoraFile, Model, foreign_lora, foreign_reader, lora_file
from dbexp.models.beside import adapted
from tests import builders
from tests.models import checkpoints, drawing

ATTENTION = {
    "sd": "attn1.to_",
    "sdxl": "attn1.to_",
    "flux2_klein": ".attn.to_",
    "z_image": ".attention.to_",
    "sd3": ".attn.to_",
    "flux": ".attn.to_",
    "flux2": ".attn.to_",
    "qwen_image": ".attn.to_",
    "krea2": "transformer_blocks",
}
FAMILIES = tuple(ATTENTION)
Updates = Mapping[str, Tensor]
"""'part.site' -> B A alpha / r, [out, in]."""


@cache
def model(family: str) -> Model:
    opened = checkpoints.Checkpoints(builders.scratch() / "foreign").open(family, checkpoints.original(family))
    return opened


class Lora:
    """Random adapters, whose rank and alpha differ from layer to layer."""

    def __init__(self, family: str, *, text: bool = False, every: str | None = None, mixed: bool = True) -> None:
        base = model(family)
        self.family, self.denoiser, mark = family, base.family.denoiser, every or ATTENTION[family]
        self.sites = [site for site in base.layers(self.denoiser) if mark in site]
        names = [f"{self.denoiser}.{site}" for site in self.sites]
        for part in base.family.text_parts if text else ():
            names += [f"{part}.{site}" for site in base.layers(part) if ".self_attn." in site]
        generator = torch.Generator().manual_seed(0)
        self.weights: dict[str, tuple[Tensor, Tensor, float]] = {}
        for number, name in enumerate(names):
            part, _, site = name.partition(".")
            out, width = base.layers(part)[site]
            rank = 2 + number % 3 if mixed else 4
            down = torch.randn(rank, width, generator=generator) / math.sqrt(width)
            up = 0.4 * torch.randn(out, rank, generator=generator)
            self.weights[name] = down, up, float(rank + 1 + (number % 2 if mixed else 0))

    @property
    def updates(self) -> Updates:
        return {name: alpha / len(down) * up @ down for name, (down, up, alpha) in self.weights.items()}

    def tensors(
        self, name: Callable[[str, str], str], ends: Sequence[str] = (".lora_down.weight", ".lora_up.weight")
    ) -> dict[str, Tensor]:
        """The tensors of a file. Alpha is a tensor, or in B where there is no third end."""
        tensors: dict[str, Tensor] = {}
        for layer, (down, up, alpha) in self.weights.items():
            part, _, site = layer.partition(".")
            key = name(part, site)
            baked = up if len(ends) > 2 else up * (alpha / len(down))
            tensors |= {f"{key}{ends[0]}": down, f"{key}{ends[1]}": baked.contiguous()}
            if len(ends) > 2:
                tensors[f"{key}{ends[2]}"] = torch.tensor(alpha)
        return tensors


KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = (".lora_A.weight", ".lora_B.weight")
ADAPTER = (".lora_A.default.weight", ".lora_B.default.weight")
ADAPTER_ALPHA = (*PEFT, ".alpha")
TWO = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
TEXT = {"sd": {"text_encoder": "lora_te"}, "sdxl": TWO, "sd3": TWO, "flux": {"text_encoder": "lora_te1"}}


def with_text_model(site: str) -> str:
    return f"text_model.{site.removeprefix('text_model.')}"


def dotted(prefix: str) -> Callable[[str, str], str]:
    return lambda part, site: f"{prefix}{site}" if not part.startswith("text") else f"{part}.{with_text_model(site)}"


def flat(family: str, prefix: str = "lora_unet_") -> Callable[[str, str], str]:
    def name(part: str, site: str) -> str:
        if part.startswith("text"):
            return f"{TEXT[family][part]}_{with_text_model(site).replace('.', '_')}"
        return f"{prefix}{site.replace('.', '_')}"

    return name


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    safetensors.torch.save_file(dict(tensors), path, {"format": "pt", **(metadata or {})})
    return path


def updates(file: LoraFile) -> Updates:
    return {
        name: file.alphas[name.partition(".")[0]] / len(down) * up @ down for name, (down, up) in file.weights.items()
    }


def assert_updates(path: Path, family: str, expected: Updates) -> LoraFile:
    file = foreign_reader.read(path, model(family), "lora")
    found = updates(file)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=1e-5, atol=1e-6)
    return file


# -- names ------------------------------------------------------------------------------------------------------------


NAMINGS: dict[str, tuple[Callable[[str], Callable[[str, str], str]], Sequence[str]]] = {
    "diffusers": (lambda family: dotted(f"{model(family).family.denoiser}."), PEFT),
    "diffusers, alpha in tensors": (lambda family: dotted(f"{model(family).family.denoiser}."), ADAPTER_ALPHA),
    "PEFT": (lambda family: dotted(f"{model(family).family.denoiser}."), ADAPTER),
    "a bare PEFT model": (lambda family: dotted("base_model.model."), PEFT),
    "bare names": (lambda family: dotted(""), ADAPTER_ALPHA),
    "lora.down": (lambda family: dotted(f"{model(family).family.denoiser}."), (".lora.down.weight", ".lora.up.weight")),
    "ai-toolkit": (lambda family: dotted("diffusion_model."), PEFT),
    "ComfyUI": (lambda family: dotted("diffusion_model."), KOHYA),
    "kohya": (flat, KOHYA),
    "OneTrainer": (lambda family: flat(family, "lora_transformer_"), KOHYA),
    "lycoris": (lambda family: flat(family, "lycoris_"), KOHYA),
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_naming_is_read(family: str, naming: str, tmp_path: Path) -> None:
    """Ranks and alphas differ from layer to layer; text encoders are adapted where they can be."""
    make, ends = NAMINGS[naming]
    lora = Lora(family, text=True)
    file = assert_updates(save(lora.tensors(make(family), ends), tmp_path / "x.safetensors"), family, lora.updates)
    for part, alpha in file.alphas.items():
        ranks = {len(down) for name, (down, _) in file.weights.items() if name.startswith(f"{part}.")}
        assert ranks == {alpha}, "one rank a part, and a scale of 1"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_rank_and_one_alpha_stay(family: str, tmp_path: Path) -> None:
    lora = Lora(family, mixed=False)
    path = save(lora.tensors(flat(family), KOHYA), tmp_path / "x.safetensors")
    file = assert_updates(path, family, lora.updates)
    assert file.alphas == {lora.denoiser: 5.0}
    for name, (down, up, _) in lora.weights.items():
        assert torch.equal(file.weights[name][0], down) and torch.equal(file.weights[name][1], up)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    lora = Lora("sd")
    tensors = {key: value.to(dtype) for key, value in lora.tensors(flat("sd"), KOHYA).items()}
    file = foreign_reader.read(save(tensors, tmp_path / "x.safetensors"), model("sd"), "lora")
    assert all(down.dtype == up.dtype == torch.float32 for down, up in file.weights.values())
    for name, value in updates(file).items():
        torch.testing.assert_close(value, lora.updates[name], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_before_peft(family: str, tmp_path: Path) -> None:
    """Of attention alone, where `to_out` is the first layer of `to_out`; text encoders have another word."""
    lora = Lora(family, text=True)

    def name(part: str, site: str) -> str:
        if part != "unet":
            return f"{part}.{with_text_model(site)}.lora_linear_layer"
        stem, _, last = site.removesuffix(".0").rpartition(".")
        return f"unet.{stem}.processor.{last}_lora"

    tensors = lora.tensors(name, (".down.weight", ".up.weight"))
    assert any(key.endswith(".processor.to_out_lora.down.weight") for key in tensors)
    assert_updates(save(tensors, tmp_path / "x.safetensors"), family, lora.updates)


def original_unet_name(site: str, levels: int, layers: int) -> str:
    """Where a layer of attention stands in the original UNet, by going through its blocks one by one."""
    number, places = 0, dict[str, str]()
    for level in range(levels):
        for layer in range(layers):
            number += 1
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
        number += 1  # the downsampler
    places |= {f"mid_block.resnets.{layer}": f"middle_block.{2 * layer}" for layer in (0, 1)}
    places["mid_block.attentions.0"], number = "middle_block.1", 0
    for level in range(levels):
        for layer in range(layers + 1):
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            number += 1
    block = next(place for place in places if site.startswith(f"{place}."))
    rest = site.removeprefix(f"{block}.")
    inner = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
    return f"{places[block]}.{inner.get(rest, rest)}"


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("every", ["attn1.to_", "resnets.0.time_emb_proj", "proj_in"])
def test_names_of_the_original_unet(family: str, every: str, tmp_path: Path) -> None:
    """As sd-scripts writes them for SDXL, and ComfyUI's own trainers."""
    lora = Lora(family, every=every)
    unet: Any = model(family).part("unet").config

    def name(part: str, site: str) -> str:
        original = original_unet_name(site, len(unet.block_out_channels), unet.layers_per_block)
        return f"lora_unet_{original.replace('.', '_')}"

    tensors = lora.tensors(name, KOHYA)
    assert any(key.startswith("lora_unet_output_blocks_") for key in tensors)
    assert_updates(save(tensors, tmp_path / "x.safetensors"), family, lora.updates)


@pytest.mark.parametrize("every", ["proj_in", "conv1", "downsamplers.0.conv"])
def test_convolutions(every: str, tmp_path: Path) -> None:
    """kohya's LoRA-C3Lier and LoCon; 1 x 1 in every file for Stable Diffusion 1.5."""
    lora = Lora("sd", every=every)
    tensors = lora.tensors(flat("sd"), KOHYA)
    unet = model("sd").part("unet")
    layers: dict[str, Any] = {site.replace(".", "_"): unet.get_submodule(site) for site in lora.sites}
    for key, value in tensors.items():
        layer = layers[key.removeprefix("lora_unet_").partition(".")[0]]
        if key.endswith("lora_down.weight"):
            tensors[key] = value.view(len(value), layer.in_channels, *layer.kernel_size)
        elif key.endswith("lora_up.weight"):
            tensors[key] = value[:, :, None, None]
    path = tmp_path / "x.safetensors"
    assert_updates(save(tensors, path), "sd", lora.updates)
    opened = foreign_lora.open_lora(str(path), model("sd"), Store(tmp_path / "store"), "lora")
    before = {site: unet.get_submodule(site).weight.clone() for site in lora.sites}  # type: ignore[operator]  # a layer
    with adapted(model("sd"), opened.path):
        for site, weight in before.items():
            change: Any = unet.get_submodule(site).weight
            expected = lora.updates[f"unet.{site}"].view(weight.shape)
            torch.testing.assert_close(change - weight, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(unet.get_submodule(site).weight, weight) for site, weight in before.items())  # type: ignore[arg-type]  # a layer


# -- layers that are one elsewhere ------------------------------------------------------------------------------------


FUSED = {
    "flux2_klein": {
        "double_blocks.{}.img_attn.qkv": [f"transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"],
        "double_blocks.{}.txt_attn.qkv": [f"transformer_blocks.{{}}.attn.add_{name}_proj" for name in "qkv"],
        "double_blocks.{}.img_attn.proj": ["transformer_blocks.{}.attn.to_out.0"],
        "double_blocks.{}.txt_mlp.2": ["transformer_blocks.{}.ff_context.linear_out"],
        "single_blocks.{}.linear1": ["single_transformer_blocks.{}.attn.to_qkv_mlp_proj"],
        "single_blocks.{}.linear2": ["single_transformer_blocks.{}.attn.to_out"],
    },
    "flux2": {"single_blocks.{}.linear2": ["single_transformer_blocks.{}.attn.to_out"]},
    "flux": {
        "double_blocks.{}.img_attn.qkv": [f"transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"],
        "double_blocks.{}.txt_attn.qkv": [f"transformer_blocks.{{}}.attn.add_{name}_proj" for name in "qkv"],
        "double_blocks.{}.img_mlp.0": ["transformer_blocks.{}.ff.net.0.proj"],
        "single_blocks.{}.linear1": [
            *(f"single_transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
            "single_transformer_blocks.{}.proj_mlp",
        ],
        "single_blocks.{}.linear2": ["single_transformer_blocks.{}.proj_out"],
    },
    "sd3": {
        "joint_blocks.{}.x_block.attn.qkv": [f"transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"],
        "joint_blocks.{}.context_block.attn.qkv": [f"transformer_blocks.{{}}.attn.add_{name}_proj" for name in "qkv"],
        "joint_blocks.{}.context_block.mlp.fc2": ["transformer_blocks.{}.ff_context.net.2"],
    },
    "z_image": {
        "layers.{}.attention.qkv": [f"layers.{{}}.attention.to_{name}" for name in "qkv"],
        "layers.{}.attention.out": ["layers.{}.attention.to_out.0"],
        "layers.{}.feed_forward.w1": ["layers.{}.feed_forward.w1"],
    },
}


def fused(family: str, *, diagonal: bool = False) -> tuple[dict[str, tuple[Tensor, Tensor, float]], Updates]:
    """Layer of the original checkpoint -> A, B and alpha; and what they mean here."""
    generator, base = torch.Generator().manual_seed(1), model(family)
    layers: dict[str, tuple[Tensor, Tensor, float]] = {}
    expected: dict[str, Tensor] = {}
    for native, targets in FUSED[family].items():
        for number in range(2):
            sites = [target.format(number) for target in targets]
            widths = [base.layers("transformer")[site] for site in sites]
            count = len(sites) if diagonal else 1
            down = torch.randn(3 * count, widths[0][1], generator=generator) / math.sqrt(widths[0][1])
            ups = [torch.randn(out, 3, generator=generator) for out, _ in widths]
            up = torch.block_diag(*ups) if diagonal else torch.cat(ups)
            alpha = 2.0 * count
            layers[native.format(number)] = down, up, alpha
            whole = alpha / len(down) * up @ down
            pieces = whole.split([out for out, _ in widths])
            expected |= {f"transformer.{site}": piece for site, piece in zip(sites, pieces, strict=True)}
    return layers, expected


@pytest.mark.parametrize("diagonal", [False, True], ids=["A shared", "blocks on a diagonal"])
@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("kohya", [True, False])
def test_fused_layers_are_parted_exactly(family: str, kohya: bool, diagonal: bool, tmp_path: Path) -> None:
    layers, expected = fused(family, diagonal=diagonal)
    tensors: dict[str, Tensor] = {}
    for name, (down, up, alpha) in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}" if kohya else f"diffusion_model.{name}"
        ends = KOHYA if kohya else ADAPTER_ALPHA
        tensors |= {f"{key}{ends[0]}": down, f"{key}{ends[1]}": up, f"{key}.alpha": torch.tensor(alpha)}
    file = assert_updates(save(tensors, tmp_path / "x.safetensors"), family, expected)
    assert {len(down) for down, _ in file.weights.values()} == {3}, "no rank grows"


def test_joined_layers_that_nobody_adapts(tmp_path: Path) -> None:
    """q alone is adapted, k and v are zeros; where all is, there is no LoRA."""
    layers, expected = fused("flux2_klein", diagonal=True)
    name, q, (down, up, alpha) = (
        "double_blocks.0.img_attn.qkv",
        "transformer_blocks.0.attn.to_q",
        next(iter(layers.values())),
    )
    key, out = f"diffusion_model.{name}", model("flux2_klein").layers("transformer")[q][0]
    up[out:] = 0
    tensors = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    path = tmp_path / "x.safetensors"
    assert_updates(save(tensors, path), "flux2_klein", {f"transformer.{q}": expected[f"transformer.{q}"]})
    tensors[f"{key}.lora_B.weight"] = torch.zeros_like(up)
    with pytest.raises(ConfigError, match="numbers that are all 0"):
        foreign_reader.read(save(tensors, path), model("flux2_klein"), "lora")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_dbexp_exports_is_read_as_it_was(family: str, tmp_path: Path) -> None:
    base, store = model(family), Store(tmp_path / "store")
    path = tmp_path / "lora.safetensors"
    drawing.save_lora(base, "attention", path, 0.3)
    ours = lora_file.read(path, base)
    for kind in base.family.formats:
        exported = tmp_path / f"{kind}.safetensors"
        lora_file.write(ours, exported, base, kind)
        assert_updates(exported, family, updates(ours))
        assert {len(down) for down, _ in foreign_reader.read(exported, base, "lora").weights.values()} == {4}
    opened = foreign_lora.open_lora(str(path), base, store, "lora")
    assert opened.path.read_bytes() == path.read_bytes(), "its images are known by its bytes"
    assert opened.sha256 == file_hash(path)


# -- pictures ---------------------------------------------------------------------------------------------------------


def ours(family: str, path: Path, store: Store) -> NDArray[np.floating[Any]]:
    """Both prompts, drawn with a LoRA from elsewhere."""
    base = model(family)
    opened = foreign_lora.open_lora(str(path), base, store, "lora").path
    with lora_file.merged(base, opened):
        return drawing.draw(base, drawing.batch(base, 1.0))


def stock(family: str, path: Path | None) -> NDArray[np.floating[Any]]:
    base = model(family)
    base.release("text_encoder", "text_encoder_2", base.family.denoiser)
    guidance = 0.0 if family in ("z_image", "krea2") else 1.0
    lengths = dict.fromkeys(("z_image", "flux2_klein", "sd3", "flux", "qwen_image", "krea2"), 64) | {"flux2": 96}
    more = {"max_sequence_length": lengths[family]} if family in lengths else {}
    return drawing.stock_draw(base.stock_pipeline(path), guidance, **more)


def assert_stock_pictures(family: str, path: Path, store: Store) -> None:
    """Stock diffusers draws the same with the file that it reads itself, and other images without."""
    images, expected, base = ours(family, path, store), stock(family, path), stock(family, None)
    effect = np.abs(expected - base).max()
    assert effect > 5e-3
    assert np.abs(images - expected).max() < 5e-3 * effect


READ_BY_DIFFUSERS = {
    "sd": ("diffusers", "kohya"),
    "sdxl": ("diffusers", "kohya"),
    "flux2_klein": ("diffusers", "ai-toolkit"),
    "z_image": ("diffusers", "kohya", "ComfyUI", "bare names"),
    "sd3": ("diffusers",),
    "flux": ("diffusers",),
    "flux2": ("diffusers", "ai-toolkit"),
    "qwen_image": ("diffusers", "kohya", "ComfyUI"),
    "krea2": ("diffusers",),
}


@pytest.mark.parametrize(("family", "naming"), [(f, n) for f, names in READ_BY_DIFFUSERS.items() for n in names])
def test_pictures_are_those_of_stock_diffusers(family: str, naming: str, tmp_path: Path) -> None:
    make, ends = NAMINGS[naming]
    # of kohya's files for a UNet, diffusers 0.42 gives every layer the same alpha, with a warning
    lora = Lora(family, text=family in TEXT, mixed=not (naming == "kohya" and family in TEXT))
    path = save(lora.tensors(make(family), ends), tmp_path / "x.safetensors")
    assert_stock_pictures(family, path, Store(tmp_path / "store"))


def test_fused_pictures_are_those_of_stock_diffusers(tmp_path: Path) -> None:
    """ai-toolkit's file for FLUX.2, with q, k and v in one."""
    layers, _ = fused("flux2_klein")
    tensors: dict[str, Tensor] = {}
    for name, (down, up, _) in layers.items():
        tensors |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    path = save(tensors, tmp_path / "x.safetensors")
    assert_stock_pictures("flux2_klein", path, Store(tmp_path / "store"))


def saved_by_diffusers(family: str, folder: Path, **settings: Any) -> Path:
    """A file of diffusers' own `save_lora_weights`, of a denoiser that PEFT adapts."""
    base = model(family)
    base.release(base.family.denoiser)
    pipe = base.stock_pipeline(None)
    denoiser: nn.Module = getattr(pipe, base.family.denoiser)
    config = PeftConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], init_lora_weights=False,
        rank_pattern={r".*\.0\..*to_k": 3}, alpha_pattern={r".*\.0\..*to_k": 5}, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    inject_adapter_in_model(config, denoiser)
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if "lora_B" in name:
                parameter.copy_(2 * torch.randn(parameter.shape))
    part = base.family.denoiser
    fields: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]  # PEFT says none
    described = {key: value for key, value in fields.items() if value is not None}
    described = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    pipe.save_lora_weights(
        str(folder),
        **{f"{part}_lora_layers": get_peft_model_state_dict(denoiser), f"{part}_lora_adapter_metadata": described},
    )
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stabilised", [False, True])
def test_what_diffusers_saves(family: str, stabilised: bool, tmp_path: Path) -> None:
    """With patterns of ranks and alphas in its metadata, and PEFT's other scale."""
    path = saved_by_diffusers(family, tmp_path, **({"use_rslora": True} if stabilised else {}))
    assert_stock_pictures(family, path, Store(tmp_path / "store"))


def test_pefts_own_folder(tmp_path: Path) -> None:
    """Alpha is in a file beside, which is part of what the LoRA is known by."""
    lora, store = Lora("sd", mixed=False), Store(tmp_path / "store")
    raw = {name: (down, up, float(len(down))) for name, (down, up, _) in lora.weights.items()}
    expected = {name: 8 / 4 * up @ down for name, (down, up, _) in raw.items()}
    lora.weights = raw
    path = save(lora.tensors(dotted("base_model.model."), PEFT), tmp_path / "adapter_model.safetensors")
    alone = foreign_lora.open_lora(str(path), model("sd"), store, "lora")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "LORA"}))
    assert_updates(path, "sd", expected)
    assert foreign_lora.open_lora(str(path), model("sd"), store, "lora").sha256 != alone.sha256


# -- the store --------------------------------------------------------------------------------------------------------


def test_is_read_once_and_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora, store = Lora("sd"), Store(tmp_path / "store")
    path = save(lora.tensors(flat("sd"), KOHYA), tmp_path / "x.safetensors")
    first = foreign_lora.open_lora(str(path), model("sd"), store, "lora")
    other = Path(path.rename(tmp_path / "renamed.safetensors"))
    monkeypatch.setattr("dbexp.models.foreign_lora.read", lambda *_: pytest.fail("read again"))
    assert foreign_lora.open_lora(str(other), model("sd"), store, "lora") == first
    assert first.sha256 == file_hash(other)
    assert lora_file.read(first.path, model("sd")).provenance == {"source": first.sha256}


# -- what is refused --------------------------------------------------------------------------------------------------


def spoilt(change: Callable[[dict[str, Tensor]], object], family: str = "sd") -> dict[str, Tensor]:
    tensors = Lora(family).tensors(flat(family), KOHYA)
    change(tensors)
    return tensors


def first(tensors: Mapping[str, Tensor], end: str) -> str:
    return next(key for key in tensors if key.endswith(end))


def put(key: str, value: Tensor | None = None) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({key: torch.zeros(2, 2) if value is None else value})


def swap(end: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({first(tensors, end): value(tensors[first(tensors, end)]).contiguous()})


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "half of a pair": (lambda t: t.pop(first(t, ".lora_up.weight")), "the other half"),
    "the other half of a pair": (lambda t: t.pop(first(t, ".lora_down.weight")), "the other half"),
    "alpha alone": (put("lora_unet_x.alpha", torch.tensor(1.0)), "the other half"),
    "an unknown key": (put("something.else"), "keys that no trainer known to dbexp writes"),
    "a layer that is not there": (
        lambda t: t.update({f"lora_unet_no_layer{end}": torch.zeros(2, 2) for end in KOHYA[:2]}),
        "layers that x does not have",
    ),
    "DoRA": (put(f"{LAYER}.dora_scale"), "DoRA, which is not read"),
    "DoRA of PEFT": (put("unet.x.lora_magnitude_vector.weight"), "DoRA, which is not read"),
    "LoHa": (put(f"{LAYER}.hada_w1_a"), "LoHa, which is not read"),
    "LoKr": (put(f"{LAYER}.lokr_w1"), "LoKr, which is not read"),
    "a core": (put(f"{LAYER}.lora_mid.weight"), "LoCon with a core"),
    "biases": (put("unet.x.lora_B.bias"), "LoRA with biases"),
    "whole weights": (put(f"{LAYER}.diff"), "differences of whole weights"),
    "an embedding": (put("bundle_emb.sks.string_to_param.*"), "an embedding"),
    "another rank of A": (swap(".lora_down.weight", lambda a: a[:1]), "fit no layer of"),
    "another width": (swap(".lora_down.weight", lambda a: a[:, :3]), "fit no layer of"),
    "another output": (swap(".lora_up.weight", lambda b: b[:3]), "fit no layer of"),
    "no matrix": (swap(".lora_up.weight", lambda b: b.flatten()), "fit no layer of"),
    "rank 0": (
        lambda t: [swap(KOHYA[0], lambda a: a[:0])(t), swap(KOHYA[1], lambda b: b[:, :0])(t)],
        "fit no layer of",
    ),
    "NaN": (swap(".lora_up.weight", lambda b: b * math.nan), "NaN or infinite"),
    "infinity": (swap(".lora_down.weight", lambda a: a / 0.0), "NaN or infinite"),
    "alpha of NaN": (swap(".alpha", lambda alpha: alpha * math.nan), "NaN or infinite"),
    "alpha of several": (swap(".alpha", lambda alpha: torch.ones(3)), "alpha is no single number"),
    "whole numbers": (swap(".lora_down.weight", lambda a: a.int()), "numbers of I32"),
    "two adapters of a layer": (
        lambda t: t.update({"unet." + Lora("sd").sites[0] + end: torch.zeros(2, 2) for end in PEFT}),
        "has two adapters",
    ),
    "a second text encoder": (
        lambda t: t.update({f"lora_te2_text_model_x{end}": torch.zeros(2, 2) for end in KOHYA[:2]}),
        "only text_encoder can be adapted",
    ),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], object], reason: str, tmp_path: Path
) -> None:
    path, store = save(spoilt(change), tmp_path / "x.safetensors"), Store(tmp_path / "store")
    with pytest.raises(ConfigError) as caught:
        foreign_lora.open_lora(str(path), model("sd"), store, "lora.path")
    assert any(reason in problem for problem in caught.value.problems), caught.value.problems
    assert all(problem.startswith(f"lora.path={path}: ") for problem in caught.value.problems)
    assert all("(" in problem and len(problem) < 600 for problem in caught.value.problems), "with its key"
    assert not list((tmp_path / "store" / "lora").glob("*/*/lora.safetensors"))


def test_all_problems_at_once(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for make, _ in (REFUSED[name] for name in ("DoRA", "an unknown key", "half of a pair", "another width")):
            make(tensors)

    with pytest.raises(ConfigError) as caught:
        foreign_reader.read(save(spoilt(change), tmp_path / "x.safetensors"), model("sd"), "lora")
    assert len(caught.value.problems) == 3, "the width is looked at where both halves are there"


@pytest.mark.parametrize("family", ["flux2_klein", "z_image"])
@pytest.mark.parametrize("key", ["text_encoder.model.layers.0.self_attn.q_proj", "lora_te_layers_0_self_attn_q_proj"])
def test_text_encoders_that_cannot_be_adapted(family: str, key: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors |= {f"{key}{end}": torch.zeros(2, 2) for end in KOHYA[:2]}

    path = save(spoilt(change, family), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"a text encoder's layer, where of .* none can be adapted"):
        foreign_reader.read(path, model(family), "lora")


def other_families() -> Iterator[tuple[str, str]]:
    yield from (
        (one, other)
        for one in FAMILIES
        for other in FAMILIES
        # what all have the same names for differs in widths and numbers of blocks that the small ones do not
        if one != other
        and {one, other}
        not in (
            {"sd", "sdxl"},
            {"flux2", "flux2_klein"},
            {"sd3", "qwen_image"},
            {"sd3", "flux"},
            {"flux", "qwen_image"},
        )
        if (one, other) not in (("flux2_klein", "qwen_image"), ("flux2", "qwen_image"))
    )


@pytest.mark.parametrize(("family", "other"), [*other_families()])
def test_a_file_of_another_family(family: str, other: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(Lora(other).tensors(flat(other), KOHYA), path, {"modelspec.architecture": "some-model/lora"})
    alike = {family, other} <= {
        "flux2_klein",
        "flux2",
        "sd3",
        "flux",
        "qwen_image",
        "krea2",
    }  # some layers are called the same
    says = "layers that x does not have" if alike else r"of another architecture than x, .*some-model/lora"
    with pytest.raises(ConfigError, match=f"{says}; choose the model"):
        foreign_reader.read(path, model(family), "lora")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no such file"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "is"),
    "cut": (
        lambda path: path.write_bytes(save(Lora("sd").tensors(flat("sd"), KOHYA), path).read_bytes()[:-9]),
        "bytes",
    ),
    "a pointer": (lambda path: path.write_bytes(checkpoints.POINTER), "Git"),
    "no safetensors": (lambda path: path.write_text("hello, world of models"), "is no safetensors file"),
    "nothing in it": (lambda path: save({}, path), "holds no tensors"),
    "a checkpoint": (lambda path: save({"conv_in.weight": torch.zeros(2)}, path), "holds no LoRA"),
    "odd metadata": (
        lambda path: save(Lora("sd").tensors(dotted("unet."), PEFT), path, {"lora_adapter_metadata": "["}),
        "lora_adapter_metadata cannot be read",
    ),
    "alpha of a text": (
        lambda path: save(
            Lora("sd").tensors(dotted("unet."), PEFT), path, {"lora_adapter_metadata": '{"unet.lora_alpha": "a"}'}
        ),
        "alpha of unet is a, which is no number",
    ),
}


@pytest.mark.parametrize("pattern", ["(a+)+b", "a*a*a*b", "x" * 300, "(", ".*[", "(?P<a>"])
def test_patterns_that_would_be_looked_for_without_end(pattern: str, tmp_path: Path) -> None:
    described = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 2}})
    path = tmp_path / "x.safetensors"
    save(Lora("sd").tensors(dotted("unet."), PEFT), path, {"lora_adapter_metadata": described})
    with pytest.raises(ConfigError, match=r"is damaged \(alpha_pattern: "):
        foreign_reader.read(path, model("sd"), "lora")


@pytest.mark.parametrize(("make", "reason"), FILES.values(), ids=FILES)
def test_files_that_are_none(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(ConfigError) as caught:
        foreign_lora.open_lora(str(path), model("sd"), Store(tmp_path / "store"), "lora")
    (problem,) = caught.value.problems
    assert problem.startswith(f"lora={path}: ") and reason in problem


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ConfigError, match="files of other kinds can run code"):
        foreign_lora.open_lora(str(path), model("sd"), Store(tmp_path / "store"), "lora")
