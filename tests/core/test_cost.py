"""What work takes: seconds, and the most memory held meanwhile."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from dbexp.core import provenance
from dbexp.core.cost import Meter, Peak
from dbexp.estimate.card import PretendedCard

CPU = torch.device("cpu")


def test_seconds_are_those_since_it_began() -> None:
    meter = Meter(CPU)
    time.sleep(0.02)
    first, second = meter.cost(), meter.cost()
    assert 0.02 <= first.seconds <= second.seconds < 10
    assert set(first.plain()) == {"seconds", "memory_mib", "memory_of"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux begins its count anew")
def test_memory_is_the_most_that_was_held_meanwhile() -> None:
    Meter(CPU)
    before = provenance.peak_memory(CPU)["resident_mib"]
    held = np.ones((256, 1 << 17))  # 256 MiB
    during = Meter(CPU).cost()
    most = provenance.peak_memory(CPU)["resident_mib"]
    if during.memory_of != "resident":
        pytest.skip("this system does not let a process begin its count anew")
    assert during.memory_mib is not None and before is not None and most is not None
    # two countings, each rounded down, a moment apart
    assert most + 2 >= during.memory_mib >= 256
    del held
    after = Meter(CPU).cost()
    assert after.memory_mib is not None and after.memory_mib <= during.memory_mib - 200
    now = provenance.peak_memory(CPU)["resident_mib"]
    assert now is not None and now >= most, "the process as a whole forgets nothing"


@pytest.mark.gpu
def test_on_a_gpu_it_is_that_of_tensors() -> None:
    device = torch.device("cuda")
    held = torch.ones(64 << 18, device=device)
    meter = Meter(device)
    del held
    more = torch.ones(128 << 18, device=device)
    cost = meter.cost()
    assert cost.memory_of == "cuda" and cost.memory_mib is not None and 128 <= cost.memory_mib < 1024
    assert more.sum() == 128 << 18


def test_peaks_of_a_card_are_counted_side_by_side() -> None:
    cuda, mib = torch.device("cuda"), 1 << 20

    def hold(count: int) -> None:
        torch.empty(count * mib, dtype=torch.uint8, device=cuda)

    with PretendedCard():
        hold(50)
        meter, outer = Meter(cuda), Peak(cuda)
        hold(30)
        inner = Peak(cuda)
        hold(10)
        assert (outer.bytes, inner.bytes) == (30 * mib, 10 * mib)
        Peak(cuda)
        hold(20)
        assert (outer.bytes, inner.bytes) == (30 * mib, 20 * mib)
        assert meter.cost().memory_mib == 30
