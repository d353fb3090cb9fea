"""Text first: prompts are encoded, the encoders leave memory where it is short, and images are drawn from embeddings.

Every prompt is encoded alone, so that what is read of it does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from dbexp.models import VAE, Conditioning, Model
from dbexp.models.lora_file import merged, read
from dbexp.sample.shots import Shot

_Text: TypeAlias = tuple[str, bool]
"""A prompt, and whether it is what to steer away from."""

_MOST_REMEMBERED = 2 << 30
"""Bytes of conditioning that are kept where memory is short: to encode again, denoiser and encoders would have to
change places."""
_remembered: dict[tuple[str, str], dict[_Text, Conditioning]] = {}
"""(identity of the base, precision) -> what was encoded, on the CPU."""


@dataclass(frozen=True)
class Texts:
    """What the denoiser reads of some prompts.

    Attributes:
        model: the base.
        encoded: one row of each; the row to steer away from where guidance asks for it.
        negative: its prompt.
    """

    model: Model
    encoded: Mapping[_Text, Conditioning]
    negative: str | None

    def rows(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of a batch, a row for each prompt."""
        return self._on_device([(self.encoded[prompt, False], [1]) for prompt in prompts])

    def negative_rows(self, count: int) -> Conditioning | None:
        """What to steer a batch away from; None: guidance asks for nothing."""
        return None if self.negative is None else self._on_device([(self.encoded[self.negative, True], [count])])

    def of(self, shots: Sequence[Shot]) -> tuple[Conditioning, Conditioning | None]:
        """What is read for a batch of images, and what to steer it away from."""
        return self.rows([shot.prompt for shot in shots]), self.negative_rows(len(shots))

    def _on_device(self, parts: Sequence[tuple[Conditioning, Sequence[int]]]) -> Conditioning:
        return {name: value.to(self.model.device) for name, value in self.model.collate(parts).items()}


def encode(
    model: Model,
    prompts: Sequence[str],
    negative: str | None,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    ahead: Sequence[str] = (),
) -> Texts:
    """Encode prompts. Where memory is short, other parts leave it first and the encoders afterwards.

    Args:
        model: the base.
        prompts: what will be drawn.
        negative: what to steer away from; None: guidance asks for nothing.
        lora, lora_scale: a LoRA file that is merged into the encoders meanwhile, and its strength.
        ahead: prompts that will be drawn later: where memory is short they are encoded now.
    """
    texts = [(prompt, False) for prompt in dict.fromkeys(prompts)]
    if negative is not None:
        texts.append((negative, True))
    if not model.crowded:
        return Texts(model, _encode(model, texts, lora, lora_scale), negative)
    adapted = lora is not None and not set(model.family.encoders).isdisjoint(read(lora, model).alphas)
    memory = {} if adapted else _remembered.setdefault((model.identity, str(model.dtype)), {})
    missing = [text for text in texts if text not in memory]
    if missing:
        missing += [(prompt, False) for prompt in dict.fromkeys(ahead) if (prompt, False) not in {*memory, *missing}]
        model.release(model.family.denoiser, VAE)
        encoded = _encode(model, missing, lora, lora_scale)
        model.release(*model.family.encoders)
        memory |= {
            text: {name: value.cpu() for name, value in conditioning.items()} for text, conditioning in encoded.items()
        }
    chosen = {text: memory[text] for text in texts}
    if sum(value.nbytes for conditioning in memory.values() for value in conditioning.values()) > _MOST_REMEMBERED:
        memory.clear()
    return Texts(model, chosen, negative)


def _encode(model: Model, texts: Sequence[_Text], lora: Path | None, lora_scale: float) -> dict[_Text, Conditioning]:
    with merged(model, lora, lora_scale, model.family.encoders), torch.no_grad():
        return {
            (text, negative): model.unconditional(text) if negative else model.encode(model.tokenize([text]))
            for text, negative in texts
        }
