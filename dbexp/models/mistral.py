"""Text of families whose encoder is a Mistral Small 3 (Mistral AI, 2025), which could also see."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from dbexp.models import Cut
from dbexp.models.chat import ChatText
from dbexp.models.checkpoint import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN_ENCODER: dict[str, tuple[Any, ...]] = {"model_type": ("mistral3",)}
"""What the file of such an encoder may say."""
SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
"""What FLUX.2's pipeline tells the assistant before every prompt."""
_PICTURE = "[IMG]"
"""What stands for a picture in the text."""


class MistralText(ChatText):
    """The system's message and the prompt, without an answer. The tokenizer comes with what reads pictures."""

    @cached_property
    def _processor(self) -> Any:
        return read_tokenizer("AutoProcessor", self._folder / "tokenizer")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = self._processor.tokenizer
        return tokenizer

    def cuts(self, text: str) -> tuple[Cut, ...]:
        return super().cuts(text.replace(_PICTURE, ""))

    def _templated(self, prompt: str) -> str:
        said = (("system", SYSTEM_MESSAGE), ("user", prompt.replace(_PICTURE, "")))
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
        return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
