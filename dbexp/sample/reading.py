"""What text encoders read of a run's texts: a text that is too long for one is cut, and may lose its subject.

It is noted in the store, for importing a tokenizer takes seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from dbexp.core.errors import ConfigError, listed
from dbexp.core.files import write_atomic
from dbexp.core.store import Store
from dbexp.models import Cut, Model

_NOTES = "notes.json"
_NOTES_VERSION = 2
PROMPTS = "sample.prompts"
"""The setting whose texts should name the subject."""


@dataclass(frozen=True)
class Text:
    """A text that is encoded, filled in, and the setting that it comes from."""

    field: str
    text: str


@dataclass(frozen=True)
class Reading:
    """What is to be told of texts.

    Attributes:
        problems: what cannot be meant: a token that is cut off, or of which nothing is read.
        cuts: other texts that are too long.
        notes: what else is allowed but rarely meant, as sentences for the log.
    """

    problems: tuple[str, ...]
    cuts: tuple[str, ...]
    notes: tuple[str, ...]


def look(texts: Iterable[Text], token: str | None, model: Model, store: Store) -> Reading:
    """Hold texts against what a model's encoders read. A token is lost where none of them reads it.

    Args:
        texts: of a run.
        token: of its subject; None: nobody knows it.
        model: its tokenizers count; no weights are loaded.
        store: where it is noted.
    """
    texts = list(dict.fromkeys(texts))
    inputs = {
        "version": _NOTES_VERSION,
        "transformers": version("transformers"),
        "model": model.identity,
        "token": token,
        "texts": [[text.field, text.text] for text in texts],
    }

    def make(folder: Path) -> None:
        write_atomic(folder / _NOTES, json.dumps(asdict(_look(texts, token, model)), ensure_ascii=False))

    try:
        noted = json.loads((store.get("tokens", inputs, make) / _NOTES).read_text(encoding="utf-8"))
    except ConfigError:  # a store that may only be read, say, of which this is no part that counts
        return _look(texts, token, model)
    return Reading(**{name: tuple(sentences) for name, sentences in noted.items()})


def require(reading: Reading) -> None:
    """Raises:
    ConfigError: with every text that loses its token.
    """
    if reading.problems:
        raise ConfigError(reading.problems)


def _look(texts: Sequence[Text], token: str | None, model: Model) -> Reading:
    problems, too_long, notes = list[str](), list[str](), list[str]()
    word = None if token is None else re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")
    for each in texts:
        place = None if word is None else word.search(each.text)
        if place is None and word is not None and each.field == PROMPTS:
            notes.append(f"{each.text!r} does not contain the token {token!r}, so it asks for no subject")
        cuts = model.cuts(each.text)
        losing = [cut for cut in cuts if place is not None and place.end() > cut.read]
        if losing and len(losing) == len(model.family.encoders):
            problems.append(
                f"{each.field}={each.text!r}: {_sentence(losing, model)}, which cuts off the token {token!r}; put it "
                "further to the front, or shorten the text"
            )
        elif cuts:
            too_long.append(f"{each.field}={each.text!r}: {_sentence(cuts, model)}")
    if token is None:
        return Reading((), tuple(too_long), ())
    count, rare = model.token_count(token), model.family.rare_token
    if count == 0:
        problems.append(f"dataset.token={token!r}: the text encoder reads nothing of it; choose another word")
    lower = token.lower()
    if token != lower and _ids(model, token) == _ids(model, lower):
        notes.append(f"dataset.token={token}: this text encoder knows no capitals, and reads it as {lower}")
    if count > 1 and rare:
        notes.append(
            f"dataset.token={token} is {count} tokens of this text encoder; a rare word of one token, such as {rare}, "
            "binds faster"
        )
    return Reading(tuple(problems), tuple(too_long), tuple(notes))


def _sentence(cuts: Sequence[Cut], model: Model) -> str:
    """`it has 90 tokens: the text encoder reads only the first 75`"""
    names = listed([cut.encoder for cut in cuts]) if len(model.family.encoders) > 1 else "the text encoder"
    verb = "reads" if len(cuts) == 1 else "read"
    tokens, room = max(cut.tokens for cut in cuts), min(cut.room for cut in cuts)
    return f"it has {tokens} tokens: {names} {verb} only the first {room}"


def _ids(model: Model, text: str) -> list[int]:
    ids: list[int] = model.tokenize([text])["ids"].flatten().tolist()
    return ids
