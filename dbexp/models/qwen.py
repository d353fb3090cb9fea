"""Text of families whose encoder is a Qwen3 (arXiv 2505.09388)."""

from __future__ import annotations

from typing import Any, ClassVar

from dbexp.models.chat import ChatText
from dbexp.models.known import WHOLE

KNOWN_ENCODER: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3",),
    "hidden_size": (WHOLE,),
    "num_hidden_layers": (WHOLE,),
}
"""What the file of such an encoder may say."""


class QwenText(ChatText):
    """The prompt alone, and the beginning of an answer."""

    thinks: ClassVar[bool]
    """Whether the assistant may think before it answers; if not, an empty thought stands before the answer."""

    def _templated(self, prompt: str) -> str:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinks,
        )
        return str(text)
