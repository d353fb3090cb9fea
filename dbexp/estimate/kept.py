"""What was worked out for an estimate, and how it is found again: a second question is answered without torch.

An answer is an entry of the store. Its key has everything that it depends on: settings, the configuration of the base
model, the libraries, and the code that ran, of which every edit counts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.files import locate, write_atomic
from dbexp.core.hashing import file_hash
from dbexp.core.provenance import code_hash, package_versions
from dbexp.core.store import Store
from dbexp.estimate.published import PUBLISHED

STAGE = "estimate"
FILE = "count.json"
_VERSION = 1
_CODE = ("core", "config", "models", "train", "sample", "evaluate", "estimate", "pipeline/requests.py")

Value = TypeVar("Value")


def _same(value: Any) -> Any:
    return value


def recall(
    store: Store | None,
    question: Mapping[str, Any],
    work: Callable[[], Value],
    write: Callable[[Value], Any] = _same,
    read: Callable[[Any], Value] = _same,
) -> Value:
    """What was worked out before, or what is now, and kept for the next time if that can be.

    Args:
        store: None: nothing is kept.
        question: JSON-like; all that the answer depends on, code and libraries aside.
        work: finds the answer.
        write: makes JSON of it.
        read: the opposite.
    """
    if store is None:
        return work()
    inputs = {"version": _VERSION, "code": _code(), "packages": _packages(), **question}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        folder = store.find(STAGE, inputs)
        if folder is not None:
            return read(json.loads((folder / FILE).read_text(encoding="utf-8")))
    answer = work()
    text = json.dumps(write(answer))
    with contextlib.suppress(ConfigError, OSError):  # an estimate is not lost where nothing can be written
        store.get(STAGE, inputs, lambda folder: write_atomic(folder / FILE, text))
    return answer


def base_files(models: Iterable[ModelConfig]) -> dict[str, dict[str, str]]:
    """The configuration of base models, where they are folders of this machine: hashes of their files of settings."""
    paths = {path for model in models for path in (model.path, model.sample_path, model.vae, model.single_file_config)}
    folders = {path: locate(path) for path in paths if path is not None and path not in PUBLISHED}
    return {
        path: {file.relative_to(folder).as_posix(): file_hash(file) for file in sorted(folder.rglob("*.json"))}
        for path, folder in folders.items()
        if folder.is_dir()
    }


@cache
def _packages() -> dict[str, str | None]:
    return package_versions()


@cache
def _code() -> str:
    return code_hash(*_CODE)
