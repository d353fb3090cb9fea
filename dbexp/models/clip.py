"""Text of families that read it with CLIP (Radford et al., arXiv 2103.00020): what tokenizers count, cut and pad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dbexp.models import Cut
from dbexp.models.checkpoint import characters_read, read_tokenizer
from dbexp.models.known import WHOLE

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

KNOWN_ENCODER: dict[str, tuple[Any, ...]] = {
    "model_type": ("clip_text_model", "clip"),
    "hidden_size": (WHOLE,),
    "projection_dim": (WHOLE,),
}
"""What the file of such an encoder may say."""
SITES = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
"""How the names of its layers end that get an adapter."""
_POSITIONS = 77
_MARKS = 2  # of start and end


def sites(encoder: nn.Module) -> tuple[str, ...]:
    """Names of the layers of an encoder that get an adapter."""
    modules = encoder.named_modules()
    return tuple(name for name, layer in modules if isinstance(layer, nn.Linear) and name.endswith(SITES))


def saved_name(site: str) -> str:
    """The name of a layer in LoRA files: transformers 5 dropped the inner module `text_model` of encoders without a
    projection, which files everywhere still carry."""
    return site if site.startswith("text_model.") else f"text_model.{site}"


class ClipText:
    """Encoders of which each has its tokenizer, and all the same length of text."""

    tokenizers: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer"}
    """Encoder -> folder of its tokenizer; the first one counts tokens."""
    device: torch.device
    _folder: Path
    _settings: Callable[..., dict[str, Any]]

    @cached_property
    def _tokenizers(self) -> dict[str, CLIPTokenizer]:
        """Encoder -> its tokenizer."""
        return {name: read_tokenizer("CLIPTokenizer", self._folder / path) for name, path in self.tokenizers.items()}

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first encoder's tokenizer."""
        return next(iter(self._tokenizers.values()))

    @cached_property
    def room(self) -> int:
        limits = [int(tokenizer.model_max_length) for tokenizer in self._tokenizers.values()]
        for encoder in self.tokenizers:  # tokenizers may know of no limit
            settings = self._settings(encoder, "config.json")
            limits.append(int(settings.get("max_position_embeddings", _POSITIONS)))
        return min(limits) - _MARKS

    def token_count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def cuts(self, text: str) -> tuple[Cut, ...]:
        found = []
        for encoder, tokenizer in self._tokenizers.items():
            count = len(tokenizer(text, add_special_tokens=False).input_ids)
            if count > self.room:
                found.append(Cut(encoder, count, self.room, characters_read(tokenizer, text, self.room + _MARKS)))
        return tuple(found)

    def token_ids(self, encoder: str, prompts: Sequence[str]) -> Tensor:
        """What an encoder reads of prompts, padded to one length: int64 [B, L], on the device."""
        ids: Tensor = self._tokenizers[encoder](
            list(prompts), padding="max_length", truncation=True, max_length=self.room + _MARKS, return_tensors="pt"
        ).input_ids
        return ids.to(self.device)
