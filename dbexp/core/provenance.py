"""What a number was made with: code, libraries, machine. Part of every metrics.json and of every LoRA's metadata.

Nothing here tells who ran it or where: no host name, no user name, no path.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "accelerate",
    "diffusers",
    "hydra-core",
    "lpips",
    "numpy",
    "omegaconf",
    "open_clip_torch",
    "peft",
    "pillow",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "wandb",
)
"""Libraries whose version can move a result, by their name on PyPI."""

CODE = ("dbexp", "conf", "hydra_plugins")
"""Folders of the checkout that a result depends on; a change anywhere else does not make it dirty."""

_PACKAGE = Path(__file__).resolve().parents[1]
_MIB = 1 << 20
_PLACES = re.compile(r"(?:^|(?<=:))(?:~|/|[A-Za-z]:[\\/]).*[\\/](?=.)")


def collect(device: torch.device) -> dict[str, Any]:
    """The record of one run's surroundings, ready for JSON.

    Args:
        device: where the run computes.

    Returns:
        dbexp (version, null where it runs without being installed), git (commit, dirty; null outside a checkout),
        packages (name -> version, null when absent), python, platform, device (see `device_record`), threads (of
        torch), cpus (usable by this process), time (UTC, ISO 8601, to the second).
    """
    import torch  # seconds, which `code_hash` and `package_versions` need not take

    return {
        "dbexp": _installed("dbexp"),
        "git": git_state(_PACKAGE.parent),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_record(device),
        "threads": torch.get_num_threads(),
        "cpus": _usable_cpus(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@cache
def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of a checkout and whether its code differs from it; None where `root` is no checkout of its own.

    Asked once per process: what was imported is what the state was then.

    Args:
        root: folder that holds the package. A repository further up (the one whose virtual environment dbexp is
            installed in, say) is somebody else's and does not count.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return None
    changes = _git(root, "status", "--porcelain", "--", *CODE)
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


@cache
def package_versions() -> dict[str, str | None]:
    """Installed version of every library in `PACKAGES`, None for one that is not installed."""
    return {name: _installed(name) for name in PACKAGES}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def code_hash(*names: str) -> str:
    """sha256 over source files of this package, hexadecimal: what they compute may change with any of them.

    Args:
        names: of files, or of folders for every module in them.
    """
    digest = hashlib.sha256()
    for name in names:
        module = _PACKAGE / name
        for path in sorted(module.rglob("*.py")) if module.is_dir() else [module]:
            digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def device_record(device: torch.device) -> dict[str, Any]:
    """Type and name of a device; of a CUDA device also memory in MiB, compute capability, CUDA and cuDNN versions."""
    if device.type != "cuda":
        return {"type": device.type, "name": _processor()}
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "memory_mib": properties.total_memory // _MIB,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """The most memory this process has held since it started, in MiB.

    Returns:
        resident_mib: of the process in main memory; None where the system does not tell (Windows).
        cuda_mib: of torch's tensors on the device, as `torch.cuda.max_memory_allocated`; None without CUDA.
    """
    import torch

    cuda = torch.cuda.max_memory_allocated(device) // _MIB if device.type == "cuda" else None
    return {"resident_mib": _peak_resident_mib(), "cuda_mib": cuda}


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in `root`; None when it fails or there is no git."""
    # A hook or an outer git command may point these at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _usable_cpus() -> int:
    """Cores this process may use, which under a scheduler are fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """Model of the CPU as Linux names it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


_peaks_before: list[int] = []
"""MiB that were held at most before somebody made the system count anew."""


def remember_peak() -> None:
    """Keep what `peak_memory` says now, for the system is about to begin its count anew."""
    _peaks_before[:] = [peak for peak in [_peak_resident_mib()] if peak is not None]


def _peak_resident_mib() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mib = peak // _MIB if sys.platform == "darwin" else peak // 1024  # bytes on macOS, KiB elsewhere
    return max([mib, *_peaks_before])


def public(value: Any) -> Any:
    """Plain settings without the places of this machine: of an absolute path, only its last name stays."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    return _PLACES.sub("", value) if isinstance(value, str) else value
