"""What things are known by: hashes of files, keys of entries, seeds of streams of randomness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 20


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def key_of(inputs: Mapping[str, Any]) -> str:
    """sha256 of JSON-like inputs, independent of the order of their keys.

    Raises:
        TypeError: a value is not JSON-like (a path or a tensor, say); give its hash instead.
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(seed: int, *names: str | int) -> int:
    """A 60-bit seed for one named stream of randomness: different names never share a sequence."""
    return int(key_of({"seed": seed, "names": list(names)})[:15], 16)
