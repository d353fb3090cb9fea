"""Text of families that read it with T5's encoder (Raffel et al., arXiv 1910.10683), padded and without a mask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dbexp.models import Cut
from dbexp.models.checkpoint import characters_read, read_tokenizer
from dbexp.models.known import WHOLE

if TYPE_CHECKING:
    from transformers import T5Tokenizer

KNOWN_ENCODER: dict[str, tuple[Any, ...]] = {"model_type": ("t5",), "d_model": (WHOLE,)}
"""What the file of such an encoder may say."""
_MARKS = 1  # of the end


class T5Text:
    """An encoder that reads longer texts than CLIP does, beside it."""

    t5_parts: ClassVar[tuple[str, str]]
    """The part, and the folder of its tokenizer."""
    t5_most: ClassVar[int]
    """Tokens that pipelines have it read of a prompt and its end mark."""
    device: torch.device
    _folder: Path

    @cached_property
    def t5_tokenizer(self) -> T5Tokenizer:
        """The tokenizer."""
        tokenizer: T5Tokenizer = read_tokenizer("T5TokenizerFast", self._folder / self.t5_parts[1])
        return tokenizer

    @property
    def t5_tokens(self) -> int:
        """Length that every prompt is padded to."""
        return min(self.t5_most, int(self.t5_tokenizer.model_max_length))

    def t5_ids(self, prompts: Sequence[str]) -> Tensor:
        """What the encoder reads of prompts, padded to one length: int64 [B, L], on the device."""
        ids: Tensor = self.t5_tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.t5_tokens, return_tensors="pt"
        ).input_ids
        return ids.to(self.device)

    def t5_cuts(self, text: str) -> tuple[Cut, ...]:
        """What the encoder reads of a text that is too long for it."""
        count, room = len(self.t5_tokenizer(text, add_special_tokens=False).input_ids), self.t5_tokens - _MARKS
        if count <= room:
            return ()
        return (Cut(self.t5_parts[0], count, room, characters_read(self.t5_tokenizer, text, self.t5_tokens)),)
