"""Device and precision, and the collective operations of one process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch

from dbexp.core import device
from dbexp.core.errors import ConfigError

CPU = torch.device("cpu")


class TestDevice:
    def test_named(self) -> None:
        assert device.pick_device("cpu") == CPU

    def test_auto_is_what_accelerate_finds(self) -> None:
        from accelerate import PartialState

        assert device.pick_device("auto") == PartialState().device

    @pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta:x"])
    def test_not_usable_here(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"^model.device={name}: not usable here .*use model.device=auto$"):
            device.pick_device(name)


class TestPrecision:
    @pytest.mark.parametrize(("name", "dtype"), device.DTYPES.items())
    def test_named(self, name: str, dtype: torch.dtype) -> None:
        assert device.pick_dtype(name, CPU) == dtype

    def test_auto_on_the_cpu(self) -> None:
        assert device.pick_dtype("auto", CPU) == torch.float32

    @pytest.mark.parametrize(
        ("capability", "dtype"), [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)]
    )
    def test_auto_on_a_gpu(
        self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        assert device.pick_dtype("auto", torch.device("cuda")) == dtype

    @pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("bf16", True)])
    def test_fp32_is_not_tf32(self, precision: str, rounded: bool) -> None:
        switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = True
            device.pick_dtype(precision, torch.device("cuda"))
            assert [switch.allow_tf32 for switch in switches] == [rounded, rounded]
        finally:
            for switch, allowed in zip(switches, before, strict=True):
                switch.allow_tf32 = allowed

    def test_auto_where_fp16_overflows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        assert device.pick_dtype("auto", torch.device("cuda"), fp16=False) == torch.float32


class TestDeterminism:
    @pytest.fixture(autouse=True)
    def _as_before(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        yield
        device.compute_deterministically(False, CPU)
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.deterministic

    def test_on_a_gpu(self) -> None:
        device.compute_deterministically(True, torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        device.compute_deterministically(False, torch.device("cuda"))
        assert not torch.are_deterministic_algorithms_enabled()

    def test_a_cpu_needs_none(self) -> None:
        device.compute_deterministically(True, CPU)
        assert not torch.are_deterministic_algorithms_enabled()

    def test_what_somebody_else_chose_stays(self) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            device.compute_deterministically(False, CPU)
            assert torch.are_deterministic_algorithms_enabled()
        finally:
            torch.use_deterministic_algorithms(False)


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            RuntimeError("could not create a primitive"),
            RuntimeError("std::bad_alloc"),
            RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
            OSError(errno.ENOMEM, "Cannot allocate memory"),
        ],
        ids=str,
    )
    def test_it_did_not_suffice(self, error: BaseException) -> None:
        assert device.is_out_of_memory(error)

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
            RuntimeError("shapes differ"),
            RuntimeError(),
            ValueError("can't allocate memory"),
            OSError(errno.ENOSPC, "No space left on device"),
            ConfigError("CUDA out of memory."),
        ],
        ids=str,
    )
    def test_something_else(self, error: BaseException) -> None:
        assert not device.is_out_of_memory(error)

    def test_one_message(self) -> None:
        message = r"^memory did not suffice \(MemoryError\); buy more$"
        with pytest.raises(ConfigError, match=message), device.memory_errors("buy more"):
            raise MemoryError
        for error in (RuntimeError("shapes differ"), ConfigError("lora.rank=0: no")):
            with pytest.raises(type(error)) as caught, device.memory_errors("buy more"):
                raise error
            assert caught.value is error

    @pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
    def test_what_a_small_address_space_raises_is_known(self) -> None:
        """A network grows until it does not fit: whatever torch and oneDNN raise then is a lack of memory."""
        outcome = run_limited(
            """
for size in (64, 128, 256, 512, 1024):
    try:
        convolution = torch.nn.Conv2d(64, 64, 3)
        convolution(torch.randn(2, 64, size, size).requires_grad_()).sum().backward()
    except Exception as error:
        print(device.is_out_of_memory(error), type(error).__name__, error)
""",
            extra=64 << 20,
        )
        assert outcome and all(line.startswith("True") for line in outcome), outcome

    @pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
    @pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
    def test_ulimit_is_seen(self, limit: str) -> None:
        (line,) = run_limited('print(device.free_memory(torch.device("cpu")))', extra=300 << 20, limit=limit)
        assert 200 << 20 < int(line) <= 300 << 20

    def test_no_more_than_the_machine_has(self) -> None:
        assert 0 < device.free_memory(CPU) <= psutil.virtual_memory().total


def run_limited(code: str, extra: int, limit: str = "RLIMIT_AS") -> list[str]:
    """What code prints in a process that may use so many bytes more than it has once torch is loaded."""
    field = "vms" if limit == "RLIMIT_AS" else "data"
    before = f"""
import psutil, resource, torch
from dbexp.core import device
torch.set_num_threads(1)
torch.nn.Conv2d(4, 4, 3)(torch.ones(1, 4, 8, 8).requires_grad_()).sum().backward()
used = psutil.Process().memory_info().{field}
resource.setrlimit(resource.{limit}, (used + {extra}, resource.getrlimit(resource.{limit})[1]))
"""
    done = subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


class TestOneProcess:
    """Alone every collective operation is the identity; test_train has two processes."""

    def test_alone(self) -> None:
        assert device.processes() == (0, 1)

    def test_collectives(self) -> None:
        tensor = torch.tensor([1.0, 2.0])
        device.mean_over_processes([tensor])
        assert tensor.tolist() == [1.0, 2.0]
        assert device.mean_of_numbers([0.1, 0.2], CPU) == [0.1, 0.2]
        assert device.largest_over_processes(15, CPU) == 15
        device.wait_for_everyone()
        with device.main_process_first():
            pass
