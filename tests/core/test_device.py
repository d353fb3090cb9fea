"""Device and precision, and the collective operations of one process."""

from __future__ import annotations

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

    @pytest.mark.parametrize("wanted", ["cuda:99", "nonsense", "meta:x"])
    def test_not_usable_here(self, wanted: str) -> None:
        with pytest.raises(ConfigError, match=f"^model.device={wanted}: not usable here .*use model.device=auto$"):
            device.pick_device(wanted)


class TestPrecision:
    @pytest.mark.parametrize(("wanted", "dtype"), device.DTYPES.items())
    def test_named(self, wanted: str, dtype: torch.dtype) -> None:
        assert device.pick_dtype(wanted, CPU) == dtype

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

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype: torch.dtype) -> None:
        product = torch.ones(2, 2)
        with device.autocast(CPU, dtype):
            assert (product @ product).dtype == dtype
        with device.autocast(CPU, torch.float32):
            assert (product @ product).dtype == torch.float32


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
