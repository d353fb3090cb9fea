"""Which runs can train together."""

from __future__ import annotations

from typing import Any

import pytest

from dbexp.config.schema import Config
from dbexp.train import packing
from tests import builders

OTHER: dict[str, Any] = {
    "model.family": "other",
    "model.path": "elsewhere",
    "model.revision": "main",
    "model.variant": "fp16",
    "model.vae": "elsewhere",
    "model.single_file_config": "elsewhere",
    "model.precision": "bf16",
    "model.quantize": "fp8",
    "model.training_lora": "elsewhere",
    "model.device": "cuda:1",
    "model.deterministic": True,
    "model.resolution": 64,
    "lora.sites": "linear",
    "train.gradient_checkpointing": True,
    "train.compile": "blocks",
    "train.graphs": "auto",
    "store": "elsewhere",
}


def changed(path: str, value: Any) -> Config:
    config = builders.config()
    set_to(config, path, value)
    return config


def set_to(config: Config, path: str, value: Any) -> None:
    group, _, name = path.rpartition(".")
    node = getattr(config, group) if group else config
    assert getattr(node, name) != value
    setattr(node, name, value)


def test_every_rule_is_tested() -> None:
    assert set(OTHER) == set(packing.shared(builders.config()))


@pytest.mark.parametrize(("path", "value"), OTHER.items())
def test_what_must_agree(path: str, value: Any) -> None:
    before, after = packing.shared(builders.config()), packing.shared(changed(path, value))
    assert {name for name in before if before[name] != after[name]} == {path}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lora.rank", 8),
        ("lora.alpha", 1.0),
        ("lora.text_encoder", True),
        ("lr_schedule.name", "cosine"),
        ("prior.weight", 0.0),
        ("train.steps", 3),
        ("train.lr", 1e-5),
        ("train.batch_size", 2),
        ("train.grad_accum", 2),
        ("train.optimizer", "prodigy"),
        ("train.min_snr_gamma", 5.0),
        ("train.crop", "random"),
        ("dataset.name", "other"),
        ("seeds.noise", 7),
        ("model.name", "other name"),
        ("model.sample_path", "elsewhere"),
        ("lora.init", "theirs.safetensors"),
    ],
)
def test_what_may_differ(path: str, value: Any) -> None:
    assert packing.shared(changed(path, value)) == packing.shared(builders.config())


def _trajectory(config: Config) -> str:
    return packing.trajectory(packing.planned(config))


def config(**settings: Any) -> Config:
    """The config of `builders.config`, with `group__name=value` changes."""
    made = builders.config()
    for name, value in settings.items():
        set_to(made, name.replace("__", "."), value)
    return made


def test_packs_hold_every_run_once_and_no_more_lanes_than_allowed() -> None:
    configs = [config(lora__rank=rank) for rank in range(5, 12)]
    packs = packing.packs(configs, 3)
    assert [len(members) for members in packs] == [3, 3, 1]
    assert sorted(index for members in packs for index in members) == list(range(7))
    assert packing.packs([], 3) == []


def test_only_runs_that_agree_share_a_pack() -> None:
    configs = [config(), config(model__precision="bf16"), config(lora__rank=8), config(model__precision="bf16", seed=1)]
    assert packing.packs(configs, 8) == [[0, 2], [1, 3]]


def test_runs_of_like_length_go_together_longest_first() -> None:
    lengths = [10, 300, 20, 400]
    configs = [config(train__steps=steps, lora__rank=rank) for rank, steps in enumerate(lengths, start=10)]
    assert packing.packs(configs, 2) == [[1, 3], [0, 2]]


def test_finish_lines_of_one_training_share_a_lane() -> None:
    lengths = [100, 300, 800]
    configs = [config(train__steps=steps, lora__rank=rank) for rank in (8, 16) for steps in lengths]
    assert packing.packs(configs, 1) == [[0, 1, 2], [3, 4, 5]]


def test_a_decay_over_the_steps_is_a_training_of_its_own() -> None:
    def courses(**schedule: Any) -> int:
        settings = {f"lr_schedule__{name}": value for name, value in schedule.items()}
        return len({_trajectory(config(train__steps=steps, **settings)) for steps in (100, 300)})

    assert courses() == 1
    assert courses(name="constant_with_warmup") == 1
    assert courses(name="cosine") == 2
    assert courses(name="cosine", horizon=300) == 1


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("sample.steps", 3, True),
        ("seeds.sample", 3, True),
        ("tracking.mode", "online", True),
        ("objective", ["pres"], True),
        ("seeds.noise", 3, False),
        ("prior.count", 3, False),
        ("train.lr", 3.0, False),
        ("dataset.path", "elsewhere", False),
        ("store", "elsewhere", False),
    ],
)
def test_what_decides_a_training(path: str, value: Any, same: bool) -> None:
    assert (_trajectory(changed(path, value)) == _trajectory(builders.config())) is same


@pytest.mark.parametrize(
    ("free", "fixed", "lane", "lanes"),
    [(100, 20, 10, 8), (100, 21, 10, 7), (1000, 0, 10, 16), (5, 0, 10, 1), (5, 50, 10, 1), (100, 0, 0, 16)],
)
def test_lanes_that_fit(free: float, fixed: float, lane: float, lanes: int) -> None:
    assert packing.lanes_that_fit(free, fixed, lane, 16) == lanes


class TestSeats:
    @pytest.mark.parametrize(
        ("running", "expected"),
        [
            ("11111111", "11111111"),
            ("11111000", "11111111"),
            ("11110000", "11110000"),
            ("11100000", "11110000"),
            ("11000000", "11000000"),
            ("10000000", "10000000"),
            ("01010000", "01010000"),
            ("01010100", "11010100"),
            ("110", "110"),
            ("100", "100"),
            ("00001", "00001"),
            ("1", "1"),
        ],
    )
    def test_of_lanes_that_go_on(self, running: str, expected: str) -> None:
        seats = packing.seats([letter == "1" for letter in running])
        assert seats == [slot for slot, letter in enumerate(expected) if letter == "1"]

    @pytest.mark.parametrize(("lanes", "shapes"), [(1, 1), (2, 2), (8, 4), (12, 5), (16, 5)])
    def test_few_shapes_in_the_life_of_a_pack(self, lanes: int, shapes: int) -> None:
        """Lanes end one after the other: each shape has a place for all, and at most as many again and one are idle."""
        seen = set()
        for count in range(lanes, 0, -1):
            seats = packing.seats([slot < count for slot in range(lanes)])
            assert set(range(count)) <= set(seats) and len(seats) <= 2 * count
            seen.add(len(seats))
        assert len(seen) == shapes


def test_who_draws_is_no_part_of_a_trajectory() -> None:
    assert _trajectory(changed("model.sample_path", "elsewhere")) == _trajectory(builders.config())
    for path in ("model.training_lora", "lora.init"):
        assert _trajectory(changed(path, "theirs.safetensors")) != _trajectory(builders.config())
