"""What a stretch of work takes: seconds, and the most memory that was held meanwhile."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dbexp.core import provenance

_MIB = 1024**2
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Cost:
    """Of a stretch of work.

    Attributes:
        seconds: on the clock.
        memory_mib: the most that was held; None where the system does not tell.
        memory_of: cuda, torch's tensors on the device; resident, the process in main memory, with all that was there
            before; since_start, the same, but the most since the process began, where the system tells no better.
    """

    seconds: float
    memory_mib: int | None
    memory_of: str

    def plain(self) -> dict[str, Any]:
        """As records have it."""
        return {"seconds": round(self.seconds, 3), "memory_mib": self.memory_mib, "memory_of": self.memory_of}


class Peak:
    """The most bytes of torch's tensors on a GPU since it was made. Any number of them count at a time, though CUDA
    counts once.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._highest = device, 0
        for peak in _peaks:
            peak._note()
        torch.cuda.reset_peak_memory_stats(device)
        _peaks.add(self)

    @property
    def bytes(self) -> int:
        """So far."""
        self._note()
        return self._highest

    def _note(self) -> None:
        self._highest = max(self._highest, torch.cuda.max_memory_allocated(self._device))


_peaks: weakref.WeakSet[Peak] = weakref.WeakSet()
"""Those that are asked yet, perhaps."""


class Meter:
    """Runs from when it is made. One at a time on a CPU: a new one forgets what was held at most before.

    Args:
        device: whose memory counts; that of a CPU is the process's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._started = device, time.perf_counter()
        self._peak = Peak(device) if device.type == "cuda" else None
        if self._peak is not None:
            self._memory_of = "cuda"
        else:
            provenance.remember_peak()
            self._memory_of = "resident" if _forget_peak() else "since_start"

    def cost(self) -> Cost:
        """Until now."""
        seconds = time.perf_counter() - self._started
        if self._peak is not None:
            return Cost(seconds, self._peak.bytes // _MIB, "cuda")
        resident = _peak() if self._memory_of == "resident" else provenance.peak_memory(self._device)["resident_mib"]
        return Cost(seconds, resident, self._memory_of)


def _forget_peak() -> bool:
    """Begin Linux's count of the most resident memory anew; False where that cannot be done."""
    try:
        _CLEAR.write_text("5")  # proc_pid_clear_refs(5)
        return _peak() is not None
    except OSError:
        return False


def _peak() -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return None
