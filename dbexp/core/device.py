"""Where and in which precision a run computes, and the few collective operations it needs.

accelerate knows the machine: which device this process has, how many processes there are, how they talk.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import gather, parse_flag_from_env, reduce

from dbexp.core.environment import devices_hidden
from dbexp.core.errors import ConfigError, first_line

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _state() -> PartialState:
    """What accelerate knows. It joins several processes on CPUs only if it is told that CPUs are meant."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def pick_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: auto, or a torch device string.

    Raises:
        ConfigError: the device is not there.
    """
    hidden = devices_hidden()
    if name == "auto":
        device: torch.device = _state().device
        log.info("device: %s (%s)", device, hidden if hidden and device.type == "cpu" else "what accelerate found")
        return device
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error) + (f"; {hidden}" if hidden and name.startswith("cuda") else "")
        raise ConfigError(f"model.device={name}: not usable here ({reason}); use model.device=auto") from None
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The precision of the frozen weights.

    Args:
        precision: fp32, bf16, fp16 or auto.
        device: where the weights will live.
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        dtype, why = (torch.bfloat16, "this GPU has it") if native else (torch.float16, "this GPU has no bf16")
    else:
        dtype, why = torch.float32, f"half precision gains nothing certain on {device.type}"
    log.info("precision: %s (%s)", str(dtype).removeprefix("torch."), why)
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Mixed precision for a forward pass; does nothing in fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def processes() -> tuple[int, int]:
    """(rank of this process, number of processes)."""
    state = _state()
    return state.process_index, state.num_processes


def main_process_first() -> contextlib.AbstractContextManager[None]:
    """The main process runs the block alone; the others enter it when it is done, and find its results in the store."""
    context: contextlib.AbstractContextManager[None] = _state().main_process_first()
    return context


def wait_for_everyone() -> None:
    """Return when every process has come here."""
    _state().wait_for_everyone()


def largest_over_processes(value: int, device: torch.device) -> int:
    """The largest of the values that the processes call this with; all of them must call it."""
    if processes()[1] == 1:
        return value
    return int(gather(torch.tensor([value], device=device)).max())


def mean_of_numbers(values: list[float], device: torch.device) -> list[float]:
    """The mean of each number over all processes."""
    if processes()[1] == 1:
        return values
    means: list[float] = reduce(torch.tensor(values, device=device), reduction="mean").tolist()
    return means


def mean_over_processes(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place. One call per step, so they travel as one."""
    if processes()[1] == 1:
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    mean = reduce(flat, reduction="mean")
    for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
