"""Text of families whose encoder is a language model: a prompt is what a user says to an assistant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dbexp.models import Conditioning, Cut
from dbexp.models.checkpoint import characters_read, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT_TOKENS = 512
"""What pipelines read of a prompt and its template at most."""


class ChatText(ABC):
    """Tokens: `ids` and `mask` [B, L], padded to the same L whatever the prompts, so that none depends on others."""

    chats = True
    device: torch.device
    _folder: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which has the encoder's chat template."""
        tokenizer: PreTrainedTokenizerBase = read_tokenizer("AutoTokenizer", self._folder / "tokenizer")
        return tokenizer

    @property
    def text_tokens(self) -> int:
        """L."""
        return min(_TEXT_TOKENS, int(self.tokenizer.model_max_length))

    @property
    def room(self) -> int:
        return self.text_tokens - self.token_count(self._templated(""))

    def token_count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def cuts(self, text: str) -> tuple[Cut, ...]:
        templated = self._templated(text)
        if self.token_count(templated) <= self.text_tokens:
            return ()
        start = max(templated.find(text.strip()), 0) - (len(text) - len(text.lstrip()))
        read = characters_read(self.tokenizer, templated, self.text_tokens, add_special_tokens=False) - start
        return (Cut("text_encoder", self.token_count(text), self.room, min(max(read, 0), len(text))),)

    @abstractmethod
    def _templated(self, prompt: str) -> str:
        """A conversation as the encoder reads it, with its marks."""

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        read = self.tokenizer(
            [self._templated(prompt) for prompt in prompts],
            add_special_tokens=False,  # the template has them
            padding="max_length",
            truncation=True,
            max_length=self.text_tokens,
            return_tensors="pt",
        )
        return {"ids": read.input_ids.to(self.device), "mask": read.attention_mask.to(self.device)}
