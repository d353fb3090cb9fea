"""A lane's randomness, which is its own, and its way through steps."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from dbexp.train import adapter as lora
from dbexp.train import loss, step
from dbexp.train.data import TrainingData
from dbexp.train.lane import Draw, Lane, schedule_of_pictures
from dbexp.train.latents import Bank
from tests import builders


def bank(pictures: int, views: int = 1) -> Bank:
    """Posteriors that tell the picture by their value."""
    rows = pictures * views
    mean = torch.arange(float(rows)).reshape(-1, 1, 1, 1).expand(rows, 4, 2, 2)
    return Bank(mean, torch.ones_like(mean), torch.zeros(rows, 6), tuple(range(0, rows, views)))


def lane(
    *, instances: int = 4, priors: int = 6, views: int = 1, process: int = 0, processes: int = 1, **settings: Any
) -> Lane:
    training = builders.training(weight=1.0 if priors else 0.0, **settings)
    data = TrainingData(training, bank(instances, views), bank(priors) if priors else None, {})
    ranks = {"unet": 4}
    with lora.AdapterSlots(builders.model(), "attention", 1, ranks) as slots:
        adapter = slots.open(0, ranks, {"unet": 4.0}, seed=0)
    return Lane(data, adapter, builders.model(), process, processes)


def draw(lane: Lane, micro: int) -> Draw:
    lane.micro = micro
    return lane.draw()


def same(a: Draw, b: Draw) -> bool:
    equal = torch.equal
    return (
        (a.instance, a.prior) == (b.instance, b.prior)
        and equal(a.times, b.times)
        and equal(a.noise, b.noise)
        and equal(a.latent_noise, b.latent_noise)
    )


class TestPairing:
    @pytest.mark.parametrize(
        ("instances", "priors", "batch_size"), [(4, 0, 1), (4, 6, 1), (4, 6, 4), (5, 3, 2), (1, 1, 3), (4, 200, 3)]
    )
    def test_an_epoch(self, instances: int, priors: int, batch_size: int) -> None:
        """Item i is picture i % instances with class picture i % priors, each item once, in ceil(items / B) batches."""
        items = max(instances, priors)
        batches = [
            schedule_of_pictures(m, instances, priors, batch_size, 0) for m in range(math.ceil(items / batch_size))
        ]
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        pairs = [pair for batch in batches for pair in batch]
        assert Counter(pairs) == Counter((i % instances, i % priors if priors else 0) for i in range(items))

    def test_epochs_differ_and_repeat(self) -> None:
        def epoch(number: int, seed: int) -> list[tuple[int, int]]:
            return [pair for micro in range(20) for pair in schedule_of_pictures(20 * number + micro, 20, 0, 1, seed)]

        assert epoch(0, seed=0) == epoch(0, seed=0)
        orders = [epoch(0, seed=0), epoch(1, seed=0), epoch(0, seed=1)]
        assert len({tuple(order) for order in orders}) == 3
        assert all(sorted(order) == sorted(orders[0]) for order in orders)


class TestDraws:
    def test_a_pure_function_of_the_microbatch(self) -> None:
        """So a resumed run needs no generator states, and nothing drawn elsewhere shifts it."""
        running, resumed = lane(batch_size=2, noise_offset=0.1), lane(batch_size=2, noise_offset=0.1)
        expected = [draw(running, micro) for micro in range(7)]
        torch.manual_seed(99)
        for micro in (5, 0, 3):
            assert same(draw(resumed, micro), expected[micro])
        assert not same(expected[0], expected[1])

    def test_shapes(self) -> None:
        drawn = draw(lane(batch_size=3), 0)
        assert len(drawn.instance) == len(drawn.prior) == 3
        assert drawn.times.shape == (6,) and drawn.times.dtype == torch.int64
        assert drawn.noise.shape == drawn.latent_noise.shape == (6, 4, 2, 2)
        assert drawn.noise.dtype == torch.float32
        assert not torch.equal(drawn.noise, drawn.latent_noise)

    def test_instance_draws_are_shared_with_and_without_prior(self) -> None:
        """Prior preservation changes which picture comes when, as epochs are longer, but no noise and no timestep."""
        with_prior, without = lane(), lane(priors=0)
        for micro in range(8):
            a, b = draw(with_prior, micro), draw(without, micro)
            assert torch.equal(a.times[:1], b.times)
            assert torch.equal(a.noise[:1], b.noise)
            assert torch.equal(a.latent_noise[:1], b.latent_noise)
            assert not torch.equal(a.noise[0], a.noise[1])

    def test_a_view_offset_changes_only_the_view(self) -> None:
        plain, viewed = lane(), lane(views=5)
        drawn = [(draw(plain, micro), draw(viewed, micro)) for micro in range(40)]
        assert all(a.instance[0] == b.instance[0] // 5 and torch.equal(a.noise, b.noise) for a, b in drawn)
        assert {b.instance[0] % 5 for _, b in drawn} == set(range(5))

    def test_seeds_are_independent(self) -> None:
        def with_seed(**seeds: int) -> list[Draw]:
            made = lane()
            made.training = replace(made.training, seeds=replace(made.training.seeds, **seeds))
            return [draw(made, micro) for micro in range(6)]

        def order(draws: list[Draw]) -> list[tuple[int, int]]:
            return [(one.instance[0], one.prior[0]) for one in draws]

        before, data, noise, init = with_seed(), with_seed(data=7), with_seed(noise=7), with_seed(init=7)
        assert order(data) != order(before) == order(noise)
        assert torch.equal(data[0].noise, before[0].noise) and torch.equal(data[0].times, before[0].times)
        assert not torch.equal(noise[0].noise, before[0].noise)
        assert all(same(a, b) for a, b in zip(init, before, strict=True))

    def test_timesteps_are_uniform(self) -> None:
        made = lane(batch_size=4, priors=0)
        timesteps = torch.cat([draw(made, micro).times for micro in range(1000)]).float()
        # mean and standard deviation of U{0..999}: 499.5 and 288.7; 4000 draws stray from the mean by 4.6
        assert timesteps.mean() == pytest.approx(499.5, abs=5 * 4.6)
        assert timesteps.std() == pytest.approx(288.7, rel=0.03)
        assert timesteps.min() < 5 and timesteps.max() > 994

    def test_noise_offset_moves_whole_channels(self) -> None:
        plain, offset = draw(lane(), 3), draw(lane(noise_offset=0.5), 3)
        assert torch.equal(plain.latent_noise, offset.latent_noise)
        difference = offset.noise - plain.noise
        means = difference.mean((2, 3), keepdim=True)
        torch.testing.assert_close(difference, means.expand_as(difference), rtol=0, atol=1e-6)
        assert means.abs().min() > 1e-3 and means.flatten().unique().numel() == 8

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_two_processes_see_what_two_accumulated_passes_see(self, batch_size: int) -> None:
        alone = lane(batch_size=batch_size, grad_accum=2)
        both = [lane(batch_size=batch_size, process=rank, processes=2) for rank in range(2)]
        for turn in range(5):
            for rank in range(2):
                assert same(draw(both[rank], turn), draw(alone, 2 * turn + rank))


class TestCoefficients:
    def test_the_loss_is_mean_plus_weighted_mean(self) -> None:
        made = lane(batch_size=2, grad_accum=4)
        made.training = replace(made.training, prior_weight=0.6)
        assert loss.coefficients(made, draw(made, 0)) == pytest.approx([0.125, 0.125, 0.075, 0.075])

    def test_a_short_last_batch_is_a_mean_too(self) -> None:
        made = lane(batch_size=4, instances=5, priors=0)
        assert loss.coefficients(made, draw(made, 0)) == [0.25] * 4
        assert loss.coefficients(made, draw(made, 1)) == [1.0]


class TestSteps:
    @pytest.fixture
    def begun(self) -> Lane:
        return lane(priors=0, grad_accum=2, steps=3)

    def passed(self, begun: Lane, value: float = 0.1) -> list[float]:
        """A microbatch with this gradient; the norm of a step's, if it made one."""
        for parameter in begun.parameters:
            assert parameter.grad is not None
            parameter.grad.fill_(value)
        norms = step.of_lanes([begun], torch.tensor([begun.rates])).tolist() if begun.due else []
        begun.micro += 1
        return norms

    def test_a_step_every_grad_accum_passes(self, begun: Lane) -> None:
        seen = []
        while begun.running:
            seen.append((len(self.passed(begun)), begun.step))
        assert seen == [(0, 0), (1, 1), (0, 1), (1, 2), (0, 2), (1, 3)]
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in begun.parameters)

    def test_rows(self, begun: Lane) -> None:
        norms = [norm for _ in range(4) for norm in self.passed(begun)]
        assert begun.absorb([(1.0, 0.0)], norms[:1]) == []
        (first,) = begun.absorb([(3.0, 0.0)], [])
        norm = 0.1 * math.sqrt(sum(parameter.numel() for parameter in begun.parameters))
        assert first == {
            "step": 1,
            "loss": 2,
            "loss_instance": 2,
            "lr": 1e-3,
            "grad_norm": pytest.approx(norm, rel=1e-5),
        }
        (second,) = begun.absorb([(1.0, 0.0), (1.0, 0.0)], norms[1:])
        assert begun.history == [first, second]

    @pytest.mark.parametrize("loss", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, begun: Lane, loss: float) -> None:
        norms = [norm for _ in range(4) for norm in self.passed(begun)]
        rows = begun.absorb([(1.0, 0.0), (1.0, 0.0), (loss, 0.0), (1.0, 0.0)], norms)
        assert [row["step"] for row in rows] == [1]
        assert begun.diverged_at == 2 and not begun.running

    def test_a_gradient_that_is_not_finite(self, begun: Lane) -> None:
        """The loss is still good, but the weights no longer are: no checkpoint may call this step good."""
        norms = [norm for _ in range(2) for norm in self.passed(begun, math.nan)]
        assert begun.absorb([(1.0, 0.0), (1.0, 0.0)], norms) == []
        assert begun.diverged_at == 1
