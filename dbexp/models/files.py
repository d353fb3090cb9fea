"""Files of a checkpoint: which of them are loaded, and whether they are whole, as far as their heads tell."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMES = {
    "diffusers": (
        "diffusion_pytorch_model.safetensors.index{}.json",
        "diffusion_pytorch_model{}.safetensors",
        "diffusion_pytorch_model{}.bin",
    ),
    "transformers": (
        "model{}.safetensors",
        "model.safetensors.index{}.json",
        "pytorch_model{}.bin",
        "pytorch_model.bin.index{}.json",
    ),
}
"""Library -> what it looks for in the folder of a part, in this order; a variant stands where the braces are."""
_WEIGHTS = re.compile(r"\.(safetensors|bin)(\.index(\.[^.]+)?\.json)?$")
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""What a tokenizer is read from: one of these."""
_LFS = b"version https://git-lfs"
_MOST_HEAD = 100_000_000
"""Bytes of the head of a safetensors file; the library refuses more."""


@dataclass(frozen=True)
class Weights:
    """The files that a part's weights are read from.

    Attributes:
        variant: of these files; None: the plain ones.
        files: the index first, where there are several.
    """

    variant: str | None
    files: tuple[Path, ...]

    def problems(self) -> list[str]:
        """What is wrong with them, each with its path."""
        return [f"{path} {wrong}" for path in self.files if (wrong := damage(path)) is not None]


def weights(folder: Path, library: str, variant: str | None) -> Weights | None:
    """What a library reads a part from; None if it has no weights in this variant or plain.

    Args:
        folder: of the part.
        library: diffusers or transformers.
        variant: that is wanted; a part that lacks it takes its plain files.
    """
    for each in dict.fromkeys((variant, None)):
        for name in _NAMES[library]:
            path = folder / name.format(f".{each}" if each else "")
            if path.is_symlink() or path.exists():
                return Weights(each, (path, *_shards(path)))
    return None


def variants(folder: Path, library: str) -> list[str | None]:
    """The variants that a part has weights in; None stands for the plain ones."""
    patterns = [re.compile(re.escape(name).replace(r"\{\}", r"(?:\.([^.]+))?")) for name in _NAMES[library]]
    found = {match[1] for path in folder.glob("*") for pattern in patterns if (match := pattern.fullmatch(path.name))}
    return sorted(found, key=lambda name: name or "")


def is_weights(path: Path) -> bool:
    """Whether a file holds weights, or is the index of such files."""
    return _WEIGHTS.search(path.name) is not None


def _shards(index: Path) -> list[Path]:
    """The files that an index names; none where it is damaged, or no index."""
    if index.suffix != ".json":
        return []
    entries = (settings(index) or {}).get("weight_map")
    names = set(entries.values()) if isinstance(entries, dict) and _strings(entries.values()) else set()
    return [index.parent / Path(name).name for name in sorted(names)]  # none elsewhere


def _strings(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def settings(path: Path) -> dict[str, Any] | None:
    """What a JSON file says; None where it is missing, damaged or no table."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def head(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors.

    Raises:
        ValueError: it is no such file, or not all of it is there.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEAD):
            raise ValueError("is no safetensors file, or a part of one")
        try:
            entries = json.loads(file.read(length))
            most = max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise ValueError("is damaged: its head cannot be read") from None
    if size != 8 + length + most:
        raise ValueError(f"is damaged: it has {size:,} bytes of {8 + length + most:,}")
    if not isinstance(entries, dict) or not entries.keys() - {"__metadata__"}:
        raise ValueError("holds no tensors")
    return entries


def damage(path: Path) -> str | None:
    """What keeps a file from being read, to stand behind its name; None where nothing is seen."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
            if start == _LFS:
                return "is a pointer of Git LFS, not the file itself; `git lfs pull` brings it"
            if not start:
                return "is empty"
            if path.suffix == ".safetensors":
                head(path)
            elif path.suffix == ".json":
                return _json_damage(path)
            elif path.suffix == ".bin" and not (zipfile.is_zipfile(path) or start[:1] == b"\x80"):
                return "is damaged: torch wrote no such file, or more of it"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return None


def _json_damage(path: Path) -> str | None:
    if not path.name.endswith(".json") or settings(path) is None:
        return "is missing or damaged"
    if ".index" in path.name and not _shards(path):
        return "is damaged: it names no files of weights"
    return None


def tokenizer_problems(folder: Path, *, chats: bool) -> list[str]:
    """What is wrong with a tokenizer's files.

    Args:
        folder: of the tokenizer.
        chats: whether it must know how a chat is written.
    """
    present = next((names for names in _TOKENIZERS if all((folder / name).exists() for name in names)), None)
    if present is None:
        wanted = " or ".join(" and ".join(names) for names in _TOKENIZERS)
        return [f"{folder} holds no tokenizer; expected {wanted}"]
    names = [*present, *(["tokenizer_config.json"] if (folder / "tokenizer_config.json").exists() else [])]
    problems = [f"{folder / name} {wrong}" for name in names if (wrong := damage(folder / name)) is not None]
    templates = (folder / "chat_template.jinja", folder / "chat_template.json")
    inside = (settings(folder / "tokenizer_config.json") or {}).get("chat_template")
    if chats and not problems and not inside and not any(path.exists() for path in templates):
        problems.append(f"{folder} has no chat template; expected {templates[0].name}")
    return problems
