"""How long passes took on the GPUs of this machine: noted in the store, for estimates to be corrected by."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbexp.config.schema import Config, LoraConfig, TrainConfig
from dbexp.core.files import sweep_up, write_atomic
from dbexp.core.hashing import key_of
from dbexp.core.rates import Rates, device_name
from dbexp.core.store import Store

if TYPE_CHECKING:  # torch: seconds, which reading facts need not take
    from dbexp.models import Model
    from dbexp.train.data import Training
    from dbexp.train.lane import Lane

FILE = "measured.json"
_FEWEST = 50
"""Passes of which a mean tells something: the first ones are slow."""
_FEWEST_HERE = 20
"""The same for `Rates`, of whose notes the median counts."""
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
    """Note how long the passes inside the block take, if they are many; of lanes that are alike on a GPU, for
    estimates too."""
    before, begun = [lane.micro for lane in lanes], time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    done = [lane.micro - micro for lane, micro in zip(lanes, before, strict=True)]
    passes = {*done}
    if min(passes) >= _FEWEST_HERE:
        training = lanes[0].training
        work = _work(training.cfg, training.lora, len(training.prompts), training.resolution, len(lanes), model)
        Rates(store.root).note({**work, "device": device_name(model.device)}, sum(done), seconds)
    if model.device.type != "cuda" or len(passes) > 1 or min(passes) < _FEWEST:
        return
    keys = {key(lane.training, model) for lane in lanes}
    if len(keys) == 1:
        import torch

        card = torch.cuda.get_device_name(model.device)
        _add(store.root / FILE, Fact(card, keys.pop(), len(lanes), seconds / passes.pop()))


def work_of(config: Config, lanes: int, model: Model) -> dict[str, Any]:
    """The kind of work that a run's training is in a pack of so many lanes, as `Rates` has it: seconds for each pass
    of a lane."""
    return _work(config.train, config.lora, 2 if config.prior.weight else 1, config.model.resolution, lanes, model)


def _work(
    train: TrainConfig, lora: LoraConfig, kinds: int, resolution: int, lanes: int, model: Model
) -> dict[str, Any]:
    return {
        "work": "train",
        "model": model.identity,
        "dtype": str(model.dtype),
        "resolution": resolution,
        "rows": train.batch_size * kinds,
        "adapters": [lora.sites, lora.text_encoder],
        "checkpointing": train.gradient_checkpointing,
        "lanes": lanes,
    }


def facts(root: Path) -> list[Fact]:
    """What is noted in a store; nothing where that cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        return [Fact(**each) for each in json.loads((root / FILE).read_text(encoding="utf-8"))]
    return []


def _add(path: Path, fact: Fact) -> None:
    noted = [*facts(path.parent), fact][-_MOST:]
    sweep_up(path.parent, path.name)
    with suppress(OSError):  # a training is not lost for it
        write_atomic(path, json.dumps([asdict(each) for each in noted], indent=1))
