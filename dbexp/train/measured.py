"""How long passes took on the GPUs of this machine: noted in the store, for estimates to be corrected by."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dbexp.core.files import write_atomic
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.train.data import Training
from dbexp.train.lane import Lane

FILE = "measured.json"
_FEWEST = 50
"""Passes of which a mean tells something: the first ones are slow."""
_MOST = 200
"""Facts that are kept, the latest."""


@dataclass(frozen=True)
class Fact:
    """A pack that trained.

    Attributes:
        card: its name.
        key: of what was trained, see `key`.
        lanes: at once.
        seconds: of a forward and backward pass of all of them, with its share of optimizer steps.
    """

    card: str
    key: str
    lanes: int
    seconds: float


def key(training: Training, model: Model) -> str:
    """The same for lanes that take equally long, on whichever machine."""
    cfg, denoiser = training.cfg, model.part(model.family.denoiser)
    return key_of(
        {
            "weights": sum(weight.numel() for weight in denoiser.parameters()),
            "precision": [str(model.dtype), model.quantize],
            "resolution": training.resolution,
            "rows": cfg.batch_size * len(training.prompts),
            "adapters": [training.lora.sites, training.lora.text_encoder],
            "checkpointing": cfg.gradient_checkpointing,
            **({"compile": cfg.compile} if cfg.compile != "none" else {}),
            **({"graphs": cfg.graphs} if cfg.graphs != "off" else {}),
        }
    )


@contextmanager
def noting(lanes: Sequence[Lane], model: Model, store: Store) -> Iterator[None]:
    """Note how long the passes inside the block take, if they are many, on a GPU, and of lanes that are alike."""
    before, begun = [lane.micro for lane in lanes], time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    passes = {lane.micro - micro for lane, micro in zip(lanes, before, strict=True)}
    if model.device.type != "cuda" or len(passes) > 1 or min(passes) < _FEWEST:
        return
    keys = {key(lane.training, model) for lane in lanes}
    if len(keys) == 1:
        card = torch.cuda.get_device_name(model.device)
        _add(store.root / FILE, Fact(card, keys.pop(), len(lanes), seconds / passes.pop()))


def facts(root: Path) -> list[Fact]:
    """What is noted in a store; nothing where that cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        return [Fact(**each) for each in json.loads((root / FILE).read_text(encoding="utf-8"))]
    return []


def _add(path: Path, fact: Fact) -> None:
    noted = [*facts(path.parent), fact][-_MOST:]
    with suppress(OSError):  # a training is not lost for it
        write_atomic(path, json.dumps([asdict(each) for each in noted], indent=1))
