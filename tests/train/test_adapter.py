"""Adapters: sites, sizes, start and arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from dbexp.models import Model, random_weights
from dbexp.models.sd import StableDiffusion
from dbexp.train.adapter import Adapter, AdapterSlots, parameter_count
from dbexp.train.site import SlotLinear
from tests import builders

BOTH = {"unet": 4, "text_encoder": 3}
ALPHAS = {"unet": 2.0, "text_encoder": 6.0}


@pytest.fixture
def base() -> Model:
    return builders.model()


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    """Of both parts, with alpha unlike the rank, and strong enough to change pictures."""
    return builders.adapter(builders.model(), BOTH, ALPHAS)


class TestAdapterSlots:
    def test_put_in_and_taken_out(self, base: Model) -> None:
        before = dict(base.part("unet").named_modules())
        sites = base.sites("unet", "attention")
        with pytest.raises(RuntimeError, match="stop"), AdapterSlots(base, "attention", 2, {"unet": 4}):
            wrapped = [m for m in base.part("unet").modules() if isinstance(m, SlotLinear)]
            assert len(wrapped) == len(sites) > 0
            assert not any(isinstance(m, SlotLinear) for m in base.part("text_encoder").modules())
            raise RuntimeError("stop")
        after = dict(base.part("unet").named_modules())
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)

    def test_start(self, base: Model) -> None:
        with AdapterSlots(base, "attention", 2, {"unet": 64}) as lanes:
            adapter = lanes.open(1, {"unet": 64}, {"unet": 64.0}, seed=0)
        values = torch.cat([down.flatten() for down in adapter.down.values()]).detach()
        assert values.std().item() == pytest.approx(1 / 64, rel=0.02)
        assert values.mean().item() == pytest.approx(0, abs=5 / 64 / len(values) ** 0.5)
        assert not any(up.any() for up in adapter.up.values())

    def test_start_depends_on_seed_and_site_alone(self, base: Model) -> None:
        def start(preset: str, slots: int, slot: int, ranks: dict[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
            with AdapterSlots(base, preset, slots, {part: rank + 1 for part, rank in ranks.items()}) as lanes:
                lanes.open(0, ranks, dict.fromkeys(ranks, 1.0), seed=123)
                return lanes.open(slot, ranks, dict.fromkeys(ranks, 1.0), seed=seed).state()

        first = start("attention", 1, 0, {"unet": 4})
        torch.manual_seed(9)
        again = start("linear", 3, 2, {"unet": 4, "text_encoder": 2})
        assert set(first) < set(again)
        assert all(torch.equal(first[name], again[name]) for name in first)
        other = start("attention", 1, 0, {"unet": 4}, seed=1)
        assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith(".down"))

    def test_padding_and_a_former_lane_are_zero(self, base: Model) -> None:
        with AdapterSlots(base, "attention", 2, {"unet": 8, "text_encoder": 8}) as lanes:
            former = lanes.open(1, {"unet": 8, "text_encoder": 8}, {"unet": 1.0, "text_encoder": 1.0}, seed=0)
            with torch.no_grad():
                for views in (former.down, former.up):
                    for parameter in views.values():
                        parameter.fill_(torch.nan)
                        assert parameter.grad is not None
                        parameter.grad.fill_(torch.nan)
            adapter = lanes.open(1, {"unet": 3}, {"unet": 6.0}, seed=0)
            lanes.refresh()
            for part, stack in lanes.stacks.items():
                used = 3 if part == "unet" else 0
                for down, up in stack.sites(stack.weights).values():
                    assert not up.any() and not down[0].any() and not down[1, used:].any()
                    assert bool(down[1, :used].any()) == (part == "unet")
                assert not stack.gradients.any() and not stack.arriving.any()
                assert stack.working.isfinite().all()
                if used:
                    assert stack.scale[1].item() == 2.0
        assert parameter_count(adapter).keys() == {"unet"}
        assert adapter.parameters("text_encoder") == []

    def test_views_share_memory(self, base: Model) -> None:
        site = base.sites("unet", "attention")[0]
        with AdapterSlots(base, "attention", 2, {"unet": 4}) as lanes:
            adapter, stack = lanes.open(1, {"unet": 2}, {"unet": 4.0}, seed=0), lanes.stacks["unet"]
            layer = base.part("unet").get_submodule(site)
            assert isinstance(layer, SlotLinear)
            down, up = adapter.down[f"unet.{site}"], adapter.up[f"unet.{site}"]
            with torch.no_grad():
                down.add_(1)
                up.add_(1)
            lanes.refresh()
            assert torch.equal(layer.down[1, :2], down) and torch.equal(layer.up[1, :2], 2 * up)
            layer.up_gradient[1] = 7
            lanes.gather()
            assert up.is_leaf and up.grad is not None and (up.grad == 14).all()
            row = adapter.rows["unet"]
            assert row.grad is not None and torch.equal(row, stack.weights[1]) and (row.grad == 14).sum() >= up.numel()
            for view, parameter in zip(adapter.views("unet", row), adapter.parameters("unet"), strict=True):
                assert torch.equal(view, parameter)

    def test_state_round_trip(self, base: Model, adapter: Adapter) -> None:
        state = adapter.state()
        fresh = builders.adapter(base, BOTH, ALPHAS, strength=0.1)
        fresh.load_state(state)
        assert all(torch.equal(value, state[name]) for name, value in fresh.state().items())
        with torch.no_grad():
            next(iter(fresh.down.values())).zero_()
        assert all(torch.equal(value, state[name]) for name, value in adapter.state().items()), "a state is a copy"


@pytest.fixture(scope="module")
def sd15() -> Model:
    """Stable Diffusion 1.5's own architecture, without memory for its weights."""
    size = random_weights.SD15
    here = torch.device("meta")
    model = StableDiffusion(
        "sd15", Path("unused"), Path("unused"), variants={}, device=here, dtype=torch.float32, identity="none"
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(builders.checkpoint() / "tokenizer")
    with here:
        model.parts["unet"] = random_weights._unet(size)
        model.parts["text_encoder"] = random_weights._text_encoder(size, tokenizer)
    return model


class TestTrueSize:
    @pytest.mark.parametrize(
        ("part", "preset", "rank", "sites", "parameters"),
        [
            ("unet", "attention", 16, 128, 3_188_736),
            ("unet", "attention", 32, 128, 6_377_472),
            ("unet", "attention+geglu", 16, 144, 4_985_856),
            ("text_encoder", "attention", 16, 48, 1_179_648),
            ("text_encoder", "attention+geglu", 32, 48, 2_359_296),
        ],
    )
    def test_counts(self, sd15: Model, part: str, preset: str, rank: int, sites: int, parameters: int) -> None:
        assert len(sd15.sites(part, preset)) == sites
        with AdapterSlots(sd15, preset, 1, {part: rank}) as lanes:
            adapter = lanes.open(0, {part: rank}, {part: float(rank)}, seed=0)
        assert parameter_count(adapter) == {part: parameters}

    def test_linear_has_every_layer_of_the_transformer_blocks(self, sd15: Model) -> None:
        # 16 blocks of 2 attentions with 4 layers each, and 2 layers of the feed-forward network
        assert len(sd15.sites("unet", "linear")) == 16 * (2 * 4 + 2)

    def test_frozen_weights(self, sd15: Model) -> None:
        """The architecture is the published one: 859.5 and 123.1 million parameters."""
        counts = {part: sum(p.numel() for p in sd15.part(part).parameters()) for part in BOTH}
        assert counts == {"unet": 859_520_964, "text_encoder": 123_060_480}
