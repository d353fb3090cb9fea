"""LoRAs that a run brings along: one that training starts from, one that stands in place of training."""

from __future__ import annotations

from collections.abc import Mapping

from dbexp.config.schema import LoraConfig
from dbexp.core.errors import count, listed
from dbexp.models import Model, lora_file
from dbexp.models.foreign_lora import ForeignLora
from dbexp.train.data import ranks_of
from dbexp.train.result import Trained

_SHOWN = 2
"""Layers that a message names."""


def problems(cfg: LoraConfig, lora: ForeignLora, model: Model) -> list[str]:
    """What keeps training from starting at a LoRA: layers that are not trained, a rank that has no room.

    Args:
        cfg: of the run; `init` names the file.
        lora: the file.
        model: the frozen base, of which no weight is read.
    """
    family, messages = model.family, list[str]()
    ranks, found = ranks_of(cfg, family), lora_file.read(lora.path, model).updates()
    for part in dict.fromkeys(name.partition(".")[0] for name in found):
        if part not in ranks:
            messages.append(f"lora.init={cfg.init}: adapts the {part}; give lora.text_encoder=true")
            continue
        members = {
            name.partition(".")[2]: len(down) for name, (down, _) in found.items() if name.startswith(f"{part}.")
        }
        outside = sorted(members.keys() - set(model.sites(part, cfg.sites)))
        if outside:
            wider = [preset for preset in family.sites if members.keys() <= set(model.sites(part, preset))]
            remedy = (
                f"give lora.sites={wider[0]}" if wider else "no lora.sites has all of them, so it can only be drawn"
            )
            messages.append(
                f"lora.init={cfg.init}: adapts {count(len(outside), 'layer')} that lora.sites={cfg.sites} does not "
                f"({listed(outside, _SHOWN)}); {remedy}"
            )
        rank, field = max(members.values()), "lora.rank" if part == family.denoiser else "lora.text_encoder_rank"
        if rank > ranks[part]:
            messages.append(
                f"lora.init={cfg.init}: has rank {rank} in the {part}, more than {field}={ranks[part]}; give "
                f"{field}={rank}"
            )
    return messages


def untrained(lora: ForeignLora, model: Model) -> Trained:
    """A LoRA in place of one that the run trains."""
    numbers: dict[str, int] = {}
    for name, (down, up) in lora_file.read(lora.path, model).updates().items():
        part = name.partition(".")[0]
        numbers[part] = numbers.get(part, 0) + down.numel() + up.numel()
    record: Mapping[str, object] = {"steps": 0, "source": lora.sha256, "parameters": numbers}
    return Trained(lora.path.parent, lora.path, (), dict(record))
