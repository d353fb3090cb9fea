"""The loop: killed and resumed equals uninterrupted; checkpoints are whole; averages and schedules keep their word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dbexp.core.errors import ConfigError
from dbexp.storybook.pretrain.training import Recipe, Trainer, atomic_save, averaged_weights, generator, lr_factor

CPU = torch.device("cpu")


class LineTask:
    """Fit y = 2 x + 1 from noisy batches."""

    name = "line"

    def __init__(self, width: int = 1) -> None:
        torch.manual_seed(0)
        self.modules: dict[str, nn.Module] = {"line": nn.Linear(width, 1)}

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        x = torch.randn((count, 1), generator=generator(CPU, "line", first))
        return {"loss": (self.modules["line"](x) - 2 * x - 1).square().mean()}

    def evaluate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        weight = modules["line"].get_parameter("weight")
        return {"slope": weight.item()}


RECIPE = Recipe(samples=4000, batch=8, lr=2e-2, ema_samples=200)


def trainer(folder: Path, recipe: Recipe = RECIPE) -> Trainer:
    return Trainer(LineTask(), recipe, folder, CPU, autocast=False)


def test_it_learns_and_logs(tmp_path: Path) -> None:
    assert trainer(tmp_path).run()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["eval/slope"] == pytest.approx(2.0, abs=0.05)
    assert records[-1]["seen"] == RECIPE.samples
    assert averaged_weights(tmp_path, "line")["weight"].item() == pytest.approx(records[-1]["eval/slope"], abs=1e-5)


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight")
    straight.run(until=800)

    stopped = trainer(tmp_path / "stopped")
    assert not stopped.run(until=400)
    for _ in range(3):
        stopped.step()  # steps after the last checkpoint are lost with the process
    resumed = trainer(tmp_path / "stopped")
    assert resumed.seen == 400
    resumed.run(until=800)

    for ours, theirs in ((straight.task.modules, resumed.task.modules), (straight.average, resumed.average)):
        for a, b in zip(ours["line"].parameters(), theirs["line"].parameters(), strict=True):
            assert torch.equal(a, b)


def test_peers_meet_halfway_once_for_every_checkpoint(tmp_path: Path) -> None:
    peer = trainer(tmp_path / "peer")
    for _ in range(5):
        peer.step()
    peer.save()
    running = Trainer(LineTask(), RECIPE, tmp_path / "running", CPU, autocast=False, peer=peer.checkpoint)
    before = weights(running)
    assert running.meet()
    for key, now in weights(running).items():
        assert torch.allclose(now, (before[key] + weights(peer)[key]) / 2)
    assert not running.meet()  # it saw nothing since
    peer.step()
    peer.save()
    assert running.meet()
    alone = Trainer(
        LineTask(), RECIPE, tmp_path / "alone", CPU, autocast=False, peer=tmp_path / "none" / "checkpoint.pt"
    )
    assert not alone.meet()


def weights(of: Trainer) -> dict[str, Tensor]:
    """A copy of the weights and of their averages."""
    both = {"now": of.task.modules["line"], "average": of.average["line"]}
    return {f"{kind} {key}": v.clone() for kind, m in both.items() for key, v in m.state_dict().items()}


def test_a_deadline_stops_between_steps(tmp_path: Path) -> None:
    late = trainer(tmp_path)
    assert not late.run(deadline=0.0)
    assert late.seen == 0
    assert late.checkpoint.exists()


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    atomic_save({"value": torch.ones(3)}, path)

    def die(value: object, stream: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(OSError, match="disk full"):
        atomic_save({"value": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["value"], torch.ones(3))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).save()
    with pytest.raises(ConfigError, match="another architecture"):
        Trainer(LineTask(width=2), RECIPE, tmp_path, CPU, autocast=False)


def test_missing_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--stage vae"):
        averaged_weights(tmp_path / "vae", "vae")


def test_the_learning_rate_warms_up_and_cools_down() -> None:
    recipe = Recipe(samples=100_000, batch=10, lr=1.0)
    factors = [lr_factor(seen, recipe) for seen in (0, 500, 1000, 50_000, 80_000, 100_000)]
    assert factors == pytest.approx([0.01, 0.51, 1.0, 1.0, 0.5, 0.02])


def test_the_average_lags_and_is_not_the_weights(tmp_path: Path) -> None:
    running = trainer(tmp_path)
    start = running.average["line"].get_parameter("weight").item()
    for _ in range(20):
        running.step()
    now = running.task.modules["line"].get_parameter("weight").item()
    average = running.average["line"].get_parameter("weight").item()
    assert min(start, now) < average < max(start, now)


def test_streams_of_noise_depend_on_every_part() -> None:
    draws = [
        torch.rand(1, generator=generator(CPU, *parts)).item() for parts in ((0, "a", 1), (0, "a", 2), (1, "a", 1))
    ]
    assert len(set(draws)) == 3
    assert draws[0] == torch.rand(1, generator=generator(CPU, 0, "a", 1)).item()
