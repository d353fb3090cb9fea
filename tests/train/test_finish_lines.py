"""Runs that share their first steps share their training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dbexp.core.store import Store
from dbexp.train.lane import Row
from dbexp.train.loop import Loop
from dbexp.train.result import Trained, iterate_checkpoints
from dbexp.train.train import train
from tests import builders


class TestFinishLines:
    """Runs that differ only in their number of steps are one training."""

    @pytest.mark.parametrize("schedule", [{"name": "constant"}, {"name": "polynomial", "horizon": 12}])
    def test_each_equals_its_solo_run(
        self, schedule: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainings = [builders.training(steps=steps, schedule=schedule, checkpoint_every=2) for steps in (7, 3, 6)]
        model = builders.model()
        alone = [train([training], model, Store(tmp_path / "alone"))[0] for training in trainings]
        counted: list[int] = []
        microbatch = Loop.microbatch

        def count(loop: Loop, *arguments: Any) -> bool:
            counted.append(sum(lane.running for lane in loop.lanes))
            return microbatch(loop, *arguments)

        monkeypatch.setattr(Loop, "microbatch", count)
        together = train(trainings, model, Store(tmp_path / "together"))
        assert sum(counted) == 7
        for one, other in zip(alone, together, strict=True):
            assert isinstance(one, Trained) and isinstance(other, Trained)
            assert one.history == other.history
            assert builders.tensors(one.lora).keys() == builders.tensors(other.lora).keys()
            for name, tensor in builders.tensors(one.lora).items():
                assert torch.equal(tensor, builders.tensors(other.lora)[name])
            assert [step for step, _ in iterate_checkpoints(one.folder)] == [
                step for step, _ in iterate_checkpoints(other.folder)
            ]

    def test_a_decay_over_the_steps_is_not_shared(self, tmp_path: Path) -> None:
        trainings = [builders.training(steps=steps, schedule={"name": "polynomial"}) for steps in (4, 2)]
        long, short = train(trainings, builders.model(), Store(tmp_path))
        assert isinstance(long, Trained) and isinstance(short, Trained)
        assert long.history[1]["lr"] != short.history[1]["lr"]

    def test_a_checkpoint_behind_a_new_finish_line_is_no_start_for_it(self, tmp_path: Path) -> None:
        store, model = Store(tmp_path), builders.model()
        long, short = (builders.training(steps=steps, checkpoint_every=4, log_every=1) for steps in (6, 2))

        def stop(number: int, rows: Sequence[Row]) -> None:
            if rows and rows[-1]["step"] >= 5:
                raise RuntimeError("stopped")

        with pytest.raises(RuntimeError, match="stopped"):
            train([long], model, store, stop)
        results = train([long, short], model, store)
        assert [len(result.history) for result in results if isinstance(result, Trained)] == [6, 2]
