"""Samplers of diffusers on a GPU, without waiting for it: what they decide by stays on the host.

A scheduler keeps its times where latents are and looks its numbers up by them. So each step reads some back from the
GPU, up to ten times, and sends noise and coefficients from ordinary memory, for which the host waits too. Here the
times exist twice: pipelines and denoiser see those on the GPU, the scheduler those on the host, where all its other
numbers are. Only public methods of a scheduler are replaced, and only those of one object.

Checked with diffusers 0.42.1; `tests/models/test_host_schedule.py` holds for every sampler that no step waits, and that
the images stay what they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def keep_on_host(scheduler: Any, device: torch.device) -> None:
    """Let a scheduler decide on the host from now on.

    Args:
        scheduler: of diffusers, with no times yet.
        device: of the latents.
    """
    times = _Times(scheduler, device)
    set_timesteps, step = scheduler.set_timesteps, scheduler.step

    @functools.wraps(set_timesteps)  # pipelines look at the names of its parameters, and of those of `step`
    def set_on_host(*args: Any, device: object = None, **kwargs: Any) -> None:
        set_timesteps(*args, device="cpu", **kwargs)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # or it would look for the first time among all
        times.note()

    @functools.wraps(step)
    def step_on_host(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        with times.on_host(), _Unwaiting(device):
            return step(model_output, times.number(timestep), sample, *args, **kwargs)

    scheduler.set_timesteps, scheduler.step = set_on_host, step_on_host
    if hasattr(scheduler, "scale_model_input"):  # samplers of flow matching have nothing to scale
        scale = scheduler.scale_model_input

        @functools.wraps(scale)
        def scale_on_host(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            with times.on_host():
                return scale(sample, *map(times.number, args), **kwargs)

        scheduler.scale_model_input = scale_on_host


class _Times:
    """The times of a scheduler, on the host and on a device."""

    def __init__(self, scheduler: Any, device: torch.device) -> None:
        self._scheduler, self._device = scheduler, device
        self._host = self._there = torch.empty(0)

    def note(self) -> None:
        """It has new ones, on the host."""
        self._host = self._scheduler.timesteps
        self._there = self._scheduler.timesteps = _sent(self._host, self._device)

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Inside the block the scheduler sees those on the host."""
        self._scheduler.timesteps = self._host
        try:
            yield
        finally:
            self._scheduler.timesteps = self._there

    def number(self, value: Any) -> Any:
        """The same on the host, of a time that a pipeline took from those on the device; anything else as it is."""
        if not isinstance(value, Tensor) or value.dim():
            return value
        if value.untyped_storage().data_ptr() == self._there.untyped_storage().data_ptr():
            return self._host[value.storage_offset()]
        return value.to(self._host.device)


class _Unwaiting(TorchFunctionMode):
    """Inside the block, the few small tensors that a sampler sends to a device or solves there do not stop the host."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to and args[0].device.type == "cpu" and any(map(self._is_there, args[1:])):
            return func(_pinned(args[0]), *args[1:], **{**kwargs, "non_blocking": True})
        if func is torch.tensor and self._is_there(kwargs.get("device")):
            return _sent(func(*args, **{**kwargs, "device": "cpu"}), self._device)
        if func is torch.linalg.solve:  # which would read back whether it succeeded
            return torch.linalg.solve_ex(*args, **kwargs).result
        return func(*args, **kwargs)

    def _is_there(self, value: Any) -> bool:
        return isinstance(value, str | torch.device) and torch.device(value).type == self._device.type


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return _pinned(tensor).to(device, non_blocking=True)


def _pinned(tensor: Tensor) -> Tensor:
    """In memory that a GPU fetches from on its own."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
