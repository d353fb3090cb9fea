"""Variables that overrule a config."""

from __future__ import annotations

import pytest

from dbexp.core import device
from dbexp.core.environment import devices_hidden, hub_switched_off
from dbexp.core.errors import ConfigError


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for (
        name
    ) in "HF_HUB_OFFLINE TRANSFORMERS_OFFLINE CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES".split():
        monkeypatch.delenv(name, raising=False)


def test_nothing_set() -> None:
    assert hub_switched_off() == devices_hidden() == ""


@pytest.mark.parametrize(("value", "off"), [("1", True), ("on", True), ("TRUE", True), ("0", False), ("", False)])
def test_offline(monkeypatch: pytest.MonkeyPatch, value: str, off: bool) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub_switched_off().startswith(f"HF_HUB_OFFLINE={value} forbids") == off


@pytest.mark.parametrize("value", ["", " ", "-1"])
def test_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert devices_hidden() == f"CUDA_VISIBLE_DEVICES={value} hides every GPU"


@pytest.mark.parametrize("value", ["", "0"])
def test_a_device_that_is_not_there_because_of_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(
        ConfigError, match=rf"model.device=cuda:99: not usable .*; CUDA_VISIBLE_DEVICES={value} .*use model"
    ):
        device.pick_device("cuda:99")
    with pytest.raises(ConfigError) as caught:
        device.pick_device("nonsense")
    assert "CUDA_VISIBLE" not in str(caught.value)
