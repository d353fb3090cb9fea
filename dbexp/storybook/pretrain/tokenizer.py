"""The tokenizer: byte-pair merges built from the world's own words, so that each of them is one token."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer

from dbexp.storybook.pretrain.architecture import TEXT_LENGTH
from dbexp.storybook.pretrain.corpus import NAMES
from dbexp.storybook.world.contexts import CONTEXTS
from dbexp.storybook.world.identity import CLASS_NOUNS
from dbexp.storybook.world.outfits import OUTFITS
from dbexp.storybook.world.pen import COLOURS, FURS
from dbexp.storybook.world.world import PROPERTIES

RARE_TOKEN = "sks"
"""The prompts' identifier: one token that no caption of pre-training contains."""

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


@cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges.

    The end-of-text token has the highest id, because CLIP pools at the argmax of the ids.
    """
    merges: list[tuple[str, str]] = []
    for word in _words():
        while len(symbols := _encode(word, merges)) > 1:
            merges.append((symbols[0], symbols[1]))
    alphabet = list(_byte_alphabet())
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def build_tokenizer() -> CLIPTokenizer:
    """A `CLIPTokenizer` of the world's words: lower case, at most `TEXT_LENGTH` tokens."""
    vocab, merges = vocabulary()
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=TEXT_LENGTH,
    )


def save_tokenizer(folder: Path) -> None:
    """Write what both old and new readers want: vocab.json and merges.txt beside tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary()
    build_tokenizer().save_pretrained(str(folder))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _words() -> list[str]:
    """Every word that a caption or a prompt can contain, in a fixed order."""
    phrases = [place.phrase for place in CONTEXTS.values()] + [outfit.phrase for outfit in OUTFITS.values()]
    words = ["a", "an", "photo", "of", *CLASS_NOUNS, RARE_TOKEN, *PROPERTIES, *COLOURS, *FURS, *phrases, *NAMES]
    return list(dict.fromkeys(" ".join(words).lower().split()))


def _encode(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding by the merges so far, earliest first (Sennrich et al. 2016, arXiv 1508.07909, algorithm 1).

    A merge added later never changes a word that the earlier ones already make whole, which is why one pass suffices.
    """
    rank = {pair: i for i, pair in enumerate(merges)}
    symbols = [*word[:-1], word[-1] + WORD_END]
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        merged, i = [], 0
        while i < len(symbols):
            if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == best:
                merged.append(symbols[i] + symbols[i + 1])
                i += 2
            else:
                merged.append(symbols[i])
                i += 1
        symbols = merged
    return symbols


def _byte_alphabet() -> tuple[str, ...]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order of the printable ones, then the rest."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return tuple([chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))])
