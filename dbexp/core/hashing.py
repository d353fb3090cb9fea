"""What things are known by: hashes of files, keys of entries, seeds of streams of randomness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 20
_MARK = b"sha256:"
_DIGEST = hashlib.sha256().digest_size
_TAIL = len(_MARK) + _DIGEST


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def with_hash(data: bytes) -> bytes:
    """Bytes with their sha256 behind them, for files that nothing else vouches for."""
    return data + _MARK + hashlib.sha256(data).digest()


def without_hash(data: bytes) -> bytes:
    """What `with_hash` was given. Bytes without a hash, of older versions, are believed.

    Raises:
        ValueError: the hash is that of other bytes.
    """
    content, mark, digest = data[:-_TAIL], data[-_TAIL:-_DIGEST], data[-_DIGEST:]
    if mark != _MARK:
        return data
    if digest != hashlib.sha256(content).digest():
        raise ValueError("its bytes are not those that were saved")
    return content


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
