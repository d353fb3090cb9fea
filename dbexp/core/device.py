"""Where and in which precision a run computes, what memory there is, and the few collective operations it needs.

accelerate knows the machine: which device this process has, how many processes there are, how they talk.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather, parse_flag_from_env, reduce
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from dbexp.core.environment import devices_hidden
from dbexp.core.errors import ConfigError, causes, first_line, lacks_memory, memory_message
from dbexp.core.limits import left_of_cgroups, left_of_limits

log = logging.getLogger(__name__)

Result = TypeVar("Result")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_RANKS = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""By these accelerate knows that a launcher started several processes."""
_PATIENCE = timedelta(days=1)
"""How long processes wait for each other: while the first draws class images, say, the others have nothing to do. By
default those on GPUs would give up after ten minutes. Launchers end all when one has died, so nothing waits in vain."""


def _state() -> PartialState:
    """What accelerate knows. It joins several processes on CPUs only if it is told that CPUs are meant."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=_PATIENCE)


@contextlib.contextmanager
def temporary_state() -> Iterator[None]:
    """What accelerate learns inside the block is forgotten after it; it asks but once in a process what there is."""
    before = dict(PartialState._shared_state)
    try:
        yield
    finally:
        PartialState._shared_state.clear()
        PartialState._shared_state.update(before)


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


def device_type(name: str) -> str:
    """cpu, cuda, ...: of `auto` or of a torch device string, without a look at whether that device is there."""
    return _state().device.type if name == "auto" else name.partition(":")[0]


def pick_dtype(precision: str, device: torch.device, *, fp16: bool = True) -> torch.dtype:
    """The precision of the frozen weights. Where it is fp32, a GPU computes in it from here on: torch would have it
    round what convolutions multiply to TF32, whose 10 bits are fewer than results promise.

    Args:
        precision: fp32, bf16, fp16 or auto.
        device: where the weights will live.
        fp16: whether the model bears it; the check refuses fp16 by name where not.
    """
    dtype = DTYPES[precision] if precision != "auto" else _auto(device, fp16)
    if dtype == torch.float32 and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return dtype


def _auto(device: torch.device, fp16: bool) -> torch.dtype:
    """What `precision=auto` is on a device."""
    if device.type == "cuda":
        precision, why = auto_precision(torch.cuda.get_device_capability(device), fp16)
    else:
        precision, why = "fp32", f"half precision gains nothing certain on {device.type}"
    log.info("precision: %s (%s)", precision, why)
    return DTYPES[precision]


def auto_precision(capability: tuple[int, int], fp16: bool) -> tuple[str, str]:
    """What `precision=auto` is on a GPU of a compute capability, and why.

    Args:
        fp16: whether the model bears it.
    """
    if capability >= (8, 0):
        return "bf16", "this GPU has it"
    if fp16:
        return "fp16", "this GPU has no bf16"
    return "fp32", "this GPU has no bf16, and the model overflows in fp16"


@dataclass(frozen=True)
class Gpu:
    """A card, as CUDA tells it.

    Attributes:
        memory: bytes.
        capability: of compute.
    """

    name: str
    memory: int
    capability: tuple[int, int]


def gpus() -> tuple[Gpu, ...]:
    """Those that this process sees. Whoever asks holds memory of each from then on, and its process must not fork."""
    if not torch.cuda.is_available():
        return ()
    known = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return tuple(Gpu(each.name, each.total_memory, (each.major, each.minor)) for each in known)


def compute_deterministically(chosen: bool, device: torch.device) -> None:
    """From here on operations on a GPU give the same bits each time on one card, or are errors; or no longer so.

    A CPU needs no choice for that.
    """
    global _is_deterministic
    chosen = chosen and device.type not in ("cpu", "meta")
    if chosen == _is_deterministic:
        return
    if chosen:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(chosen)
    torch.backends.cudnn.deterministic = chosen
    _is_deterministic = chosen


_is_deterministic = False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, says that memory did not suffice."""
    runtime = (cause for cause in causes(error) if isinstance(cause, RuntimeError))
    return lacks_memory(error) or any(map(should_reduce_batch_size, runtime))


@contextlib.contextmanager
def memory_errors(remedy: str, *, loading: bool = False) -> Iterator[None]:
    """Whatever says in the block that memory did not suffice becomes one message.

    Args:
        remedy: what would need less.
        loading: the block loads networks, whose libraries wrap what they meet: a message that it gave rise to says
            that a file cannot be read, or that a network refuses its settings, and is replaced.

    Raises:
        ConfigError: in place of it.
    """
    try:
        yield
    except Exception as error:
        first = error.__context__ if loading and isinstance(error, ConfigError) else error
        if first is None or not is_out_of_memory(first):
            raise
        raise ConfigError(memory_message(first, remedy)) from error


def release_memory() -> None:
    """Give memory that nothing refers to back to the device."""
    clear_device_cache(garbage_collection=True)


def in_halves(work: Callable[[int], Result], size: int, setting: str) -> Result:
    """Do some work in batches, with half as many at once whenever memory does not suffice, down to one.

    Args:
        work: is given the size of its batches.
        size: to begin with.
        setting: name of the user's setting for it.

    Raises:
        Whatever the work raises, also for a lack of memory with one at once.
    """
    while True:
        try:
            return work(size)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        release_memory()  # beyond the handler nothing refers to what the work had computed
        log.warning("memory did not suffice for %d pictures at once: going on with %d (%s)", size, size // 2, setting)
        size //= 2


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still use, among them what it holds on a GPU and does not use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    groups = left_of_cgroups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return max(0, min([int(psutil.virtual_memory().available), *left_of_limits().values(), *groups]))


def unused_memory(device: torch.device) -> int:
    """Of a GPU, the bytes that no tensor takes."""
    return free_memory(device) - torch.cuda.memory_allocated(device)


def host_buffer(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory of the host [count] that a GPU copies to and from while both go on; ordinary memory for other devices."""
    return torch.empty(count, dtype=dtype, pin_memory=device.type == "cuda" and torch.cuda.is_available())


def processes() -> tuple[int, int]:
    """(rank of this process, number of processes). A process that nobody started beside others touches no device for
    it, as accelerate would."""
    if not any(os.environ.get(name) for name in _RANKS):
        return 0, 1
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
