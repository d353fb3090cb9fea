"""Text that stands in a frame, where one of Qwen's models that see reads it: the pipelines' words before and behind a
prompt, which the denoisers were taught with.

Shapes: B rows; L tokens behind the frame's beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from dbexp.models import Conditioning, Cut, collate
from dbexp.models.checkpoint import characters_read, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 34
"""Tokens of `BEFORE`, whose states no denoiser reads."""
_TEXT_TOKENS = 512
"""Tokens behind them that a denoiser reads at most."""
_BLOCK = 64
"""Texts are padded to multiples of so many tokens."""


class FramedText:
    """Conditioning has a `mask` [B, L], bool, of what is no padding, and whatever else has L as its second dimension.

    Texts take whole blocks of tokens, so that most are equally long whatever stands beside them; padding is masked.
    """

    keeps_end: ClassVar[bool]
    """Whether `AFTER` stands behind a prompt that is too long, too; else it is cut off first."""
    device: torch.device
    _folder: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        tokenizer: PreTrainedTokenizerBase = read_tokenizer("AutoTokenizer", self._folder / "tokenizer")
        return tokenizer

    @property
    def _most(self) -> int:
        """Tokens of a prompt and its frame that are encoded at most."""
        return min(_TEXT_TOKENS + DROPPED, int(self.tokenizer.model_max_length))

    @property
    def text_tokens(self) -> int:
        """Largest L."""
        return self._most - DROPPED

    @property
    def room(self) -> int:
        return self._most - self.token_count(BEFORE + AFTER)

    def token_count(self, text: str) -> int:
        return len(self.tokenizer(text).input_ids)

    def cuts(self, text: str) -> tuple[Cut, ...]:
        if self.token_count(BEFORE + text) + self.token_count(AFTER) <= self._most:
            return ()
        most = self._most - (self.token_count(AFTER) if self.keeps_end else 0)
        read = characters_read(self.tokenizer, BEFORE + text + AFTER, most) - len(BEFORE)
        return (Cut("text_encoder", self.token_count(text), self.room, min(max(read, 0), len(text))),)

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        end = self.tokenizer(AFTER).input_ids
        ids = []
        for prompt in prompts:
            framed = self.tokenizer(BEFORE + prompt).input_ids
            ids.append((framed[: self._most - len(end)] + end) if self.keeps_end else (framed + end)[: self._most])
        read = self.tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=self._most, return_tensors="pt")
        return {"ids": read.input_ids.to(self.device), "mask": read.attention_mask.to(self.device)}

    def in_blocks(self, tokens: Conditioning) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, DROPPED + L] without padding beyond the last block that a row needs."""
        needed = max(int(tokens["mask"].sum(1).max()) - DROPPED, 1)
        length = DROPPED + -(-needed // _BLOCK) * _BLOCK
        return tokens["ids"][:, :length], tokens["mask"][:, :length]

    def collate(self, parts: Sequence[tuple[Conditioning, Sequence[int]]]) -> Conditioning:
        longest = max(conditioning["mask"].shape[1] for conditioning, _ in parts)
        return collate([(padded(conditioning, longest), counts) for conditioning, counts in parts])


def padded(conditioning: Conditioning, length: int) -> Conditioning:
    """The same texts, with padding behind them up to a length."""
    return {
        name: nn.functional.pad(value, (*(0, 0) * (value.dim() - 2), 0, length - value.shape[1]))
        for name, value in conditioning.items()
    }
