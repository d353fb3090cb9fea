"""The names in LoRA files of other trainers: what a key is, and which layers of a model it means.

| written by | of the denoiser | of a text encoder |
|---|---|---|
| diffusers, PEFT | `unet.NAME`, `transformer.NAME`, `NAME`, `base_model.model.NAME` | `text_encoder.NAME` |
| diffusers before PEFT | `NAME.processor.to_q_lora` | `text_encoder.NAME.lora_linear_layer` |
| kohya's trainers | `lora_unet_NAME` with underscores | `lora_te_NAME`, `lora_te1_NAME` |
| ComfyUI, ai-toolkit | `diffusion_model.NAME` | |
| OneTrainer, SimpleTuner | `lora_transformer_NAME`, `lycoris_NAME` with underscores | as kohya's |

NAME is that of diffusers or that of the original checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from dbexp.models import Model

DOWN, UP, ALPHA = "down", "up", "alpha"
"""What a tensor may be: A, B, or the number that the update is scaled by, over the rank."""

_TENSOR = re.compile(
    r"(?P<name>.+?)(?:\.lora_(?P<matrix>A|B)(?:\.[\w-]+)?\.weight"
    r"|(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<way>down|up)\.weight"
    r"|\.alpha)"
)
_OTHERS = {
    "DoRA": re.compile(r"dora_scale|magnitude_vector"),
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "LoCon with a core (lora_mid)": re.compile(r"\.lora_mid\."),
    "OFT or BOFT": re.compile(r"\.(b?oft_|oft\.)"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "(IA)^3": re.compile(r"\.on_input$"),
    "differences of whole weights": re.compile(r"\.(diff|diff_b|set_weight|w_norm|b_norm)$"),
    "LoRA with biases": re.compile(r"\.lora_(B|up)(\.[\w-]+)?\.bias$"),
    "an embedding": re.compile(r"^(bundle_)?emb"),
}
"""What is no LoRA of two matrices a layer -> how its keys are told."""
_OF_DENOISER = ("diffusion_model.", "model.diffusion_model.", "")
_OF_DENOISER_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_OF_TEXT = re.compile(r"(text_encoder|text_encoders|clip_[lg]|t5xxl|te[123]?)[._]|lora_(prior_)?te\d?_")
_FIRST_RELEASE = re.compile(r"\.processor\.(?=to_(q|k|v|out)$)")
_TEXT_MODEL = "text_model."


@dataclass(frozen=True)
class Key:
    """What a name of a tensor says.

    Attributes:
        name: of the layer, as the file has it.
        kind: down, up or alpha.
    """

    name: str
    kind: str


def parse(key: str) -> Key | None:
    """What a name of a tensor says; None: it is no part of a LoRA, as far as is known."""
    match = _TENSOR.fullmatch(key)
    if match is None:
        return None
    kind = {"A": DOWN, "B": UP}.get(match["matrix"] or "", match["way"] or ALPHA)
    return Key(match["name"], kind)


def other_method(key: str) -> str | None:
    """What a key that `parse` does not know belongs to, where that can be told."""
    return next((name for name, pattern in _OTHERS.items() if pattern.search(key)), None)


def of_text_encoder(name: str) -> bool:
    """Whether a layer that a model does not have is one of a text encoder."""
    return _OF_TEXT.match(name) is not None


class Layers:
    """The layers of a model by every name that files have for them."""

    def __init__(self, model: Model) -> None:
        self._model, self._family = model, model.family

    def of(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """(part, its layers, in the order of outputs) that a name means; None where the model has no such layer."""
        name = _FIRST_RELEASE.sub(".", name.removeprefix("base_model.model."))
        denoiser = self._family.denoiser
        for prefix in (f"{denoiser}.", *_OF_DENOISER):
            if name.startswith(prefix) and (sites := _look(self._dotted, name.removeprefix(prefix), ".0")):
                return denoiser, sites
        for prefix in _OF_DENOISER_FLAT:
            if name.startswith(prefix) and (sites := _look(self._flat, name.removeprefix(prefix), "_0")):
                return denoiser, sites
        for part, prefixes in self._text_prefixes():
            for prefix, separator in prefixes:
                if name.startswith(prefix):
                    short = name.removeprefix(prefix).replace(f"text_model{separator}", "", 1)
                    sites = self._text[part].get(short if separator == "." else f"_{short}", ())
                    return (part, sites) if sites else None
        return None

    @cached_property
    def _dotted(self) -> Mapping[str, tuple[str, ...]]:
        own = {site: (site,) for site in self._model.layers(self._family.denoiser)}
        return {**self._model.native_layers(), **own}

    @cached_property
    def _flat(self) -> Mapping[str, tuple[str, ...]]:
        return {name.replace(".", "_"): sites for name, sites in self._dotted.items()}

    def _text_prefixes(self) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
        """Text encoder that can be adapted -> what its names begin with, and what stands between their words."""
        for part in self._family.text_parts:
            number = self._family.encoders.index(part) + 1
            alone = (("lora_te_", "_"),) if len(self._family.encoders) == 1 else ()
            yield part, ((f"{part}.", "."), (f"lora_te{number}_", "_"), *alone)

    @cached_property
    def _text(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Text encoder -> its layers without `text_model.`, which not all have; with underscores where one leads."""
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for part in self._family.text_parts:
            short = {site.removeprefix(_TEXT_MODEL): (site,) for site in self._model.layers(part)}
            found[part] = {**short, **{f"_{name.replace('.', '_')}": sites for name, sites in short.items()}}
        return found


def _look(names: Mapping[str, tuple[str, ...]], name: str, first: str) -> tuple[str, ...]:
    """The layers of a name, which may leave out that a layer is the first of several (`to_out` for `to_out.0`)."""
    return names.get(name) or names.get(name + first) or ()
