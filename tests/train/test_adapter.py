"""Adapters: sites, sizes, start and arithmetic; and files that other programs read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from dbexp.core.errors import ConfigError
from dbexp.models import Model, random_weights
from dbexp.models.sd import StableDiffusion
from dbexp.train import adapter as lora
from dbexp.train.adapter import Adapter, AdapterSlots, Rows, SlotLinear
from tests import builders

BOTH = {"unet": 4, "text_encoder": 3}
ALPHAS = {"unet": 2.0, "text_encoder": 6.0}
INPUTS = {"rank": 4, "images": ["a", "b"]}


@pytest.fixture
def base() -> Model:
    return builders.model()


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    """Of both parts, with alpha unlike the rank, and strong enough to change pictures."""
    return builders.adapter(builders.model(), BOTH, ALPHAS)


@pytest.fixture(scope="module")
def saved(adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    lora.save(path, adapter, builders.model(), {"inputs": INPUTS})
    return path


class TestRows:
    @pytest.mark.parametrize(
        ("counts", "segments", "total"),
        [
            ([2], [(0, 1, 0, 2)], 2),
            ([2, 2, 2], [(0, 3, 0, 6)], 6),
            ([2, 1, 1, 4], [(0, 1, 0, 2), (1, 3, 2, 4), (3, 4, 4, 8)], 8),
            ([0, 2, 0, 0, 2], [(1, 2, 0, 2), (4, 5, 2, 4)], 4),
            ([0, 0], [], 0),
        ],
    )
    def test_segments(self, counts: list[int], segments: list[tuple[int, int, int, int]], total: int) -> None:
        rows = Rows()
        rows.set([9, 9, 9])
        rows.set(counts)
        assert (rows.segments, rows.total) == (segments, total)


class TestLaneLinear:
    """y = base(x) + scale (x A^T) B for the rows of each slot, checked slot by slot."""

    COUNTS = (2, 1, 0, 1)

    @pytest.fixture
    def layer(self) -> SlotLinear:
        torch.manual_seed(0)
        layer = SlotLinear(nn.Linear(6, 5).requires_grad_(False), slots=4, rank=3, rows=Rows())
        with torch.no_grad():
            layer.down.normal_()
            layer.up.normal_()
            layer.scale.copy_(torch.tensor([1.0, 0.5, 2.0, 3.0]).reshape(4, 1, 1))
        layer.rows.set(self.COUNTS)
        return layer

    @pytest.mark.parametrize("between", [(), (7,), (2, 3)])
    def test_forward_and_backward(self, layer: SlotLinear, between: tuple[int, ...]) -> None:
        x = torch.randn(4, *between, 6, requires_grad=True)
        y = layer(x)
        owners = [slot for slot, count in enumerate(self.COUNTS) for _ in range(count)]
        for row, slot in enumerate(owners):
            expected = layer.base(x[row]) + layer.scale[slot, 0, 0] * (x[row] @ layer.down[slot].T @ layer.up[slot])
            torch.testing.assert_close(y[row], expected)
        weights = torch.randn_like(y)
        (y * weights).sum().backward()
        assert layer.up.grad is not None and layer.down.grad is not None
        for slot in range(4):
            mine = [row for row, owner in enumerate(owners) if owner == slot]
            rows, sent = x[mine].detach().reshape(-1, 6), weights[mine].reshape(-1, 5) * layer.scale[slot, 0, 0]
            torch.testing.assert_close(layer.up.grad[slot], (rows @ layer.down[slot].T).T @ sent, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.down.grad[slot], (sent @ layer.up[slot].T).T @ rows, rtol=1e-4, atol=1e-5)

    def test_rows_must_match(self, layer: SlotLinear) -> None:
        with pytest.raises(RuntimeError, match="3 rows came, but lanes own 4"):
            layer(torch.zeros(3, 6))


class TestLanes:
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
            for part in ("unet", "text_encoder"):
                for layer in (m for m in base.part(part).modules() if isinstance(m, SlotLinear)):
                    used = 3 if part == "unet" else 0
                    assert not layer.up.any() and not layer.down[0].any() and not layer.down[1, used:].any()
                    assert bool(layer.down[1, :used].any()) == (part == "unet")
                    assert layer.down.grad is not None and not layer.down.grad.any()
                    assert layer.up.grad is not None and not layer.up.grad.any()
                    if used:
                        assert layer.scale[1].item() == 2.0
        assert lora.parameter_count(adapter).keys() == {"unet"}
        assert adapter.parameters("text_encoder") == []

    def test_views_share_memory(self, base: Model) -> None:
        site = base.sites("unet", "attention")[0]
        with AdapterSlots(base, "attention", 2, {"unet": 4}) as lanes:
            adapter = lanes.open(1, {"unet": 2}, {"unet": 2.0}, seed=0)
            layer = base.part("unet").get_submodule(site)
            assert isinstance(layer, SlotLinear) and layer.down.grad is not None
            view = adapter.down[f"unet.{site}"]
            with torch.no_grad():
                view.add_(1)
            layer.down.grad[1] = 7
            assert torch.equal(layer.down[1, :2], view)
            assert view.is_leaf and view.grad is not None and (view.grad == 7).all()

    def test_state_round_trip(self, base: Model, adapter: Adapter) -> None:
        state = adapter.state()
        fresh = builders.adapter(base, BOTH, ALPHAS, strength=0.1)
        fresh.load_state(state)
        assert all(torch.equal(value, state[name]) for name, value in fresh.state().items())
        with torch.no_grad():
            next(iter(fresh.down.values())).zero_()
        assert all(torch.equal(value, state[name]) for name, value in adapter.state().items()), "a state is a copy"


def test_named_streams_never_share_a_seed() -> None:
    names: list[tuple[str | int, ...]] = [(), ("a",), ("b",), ("a", 1), ("a", "1"), ("a1",), ("a", 1, 2), ("a", 12)]
    seeds = {lora.seed_of(seed, *name) for seed in (0, 1, 2**40) for name in names}
    assert len(seeds) == 3 * len(names)
    assert all(0 <= seed < 2**60 for seed in seeds)


@pytest.fixture(scope="module")
def sd15() -> Model:
    """Stable Diffusion 1.5's own architecture, without memory for its weights."""
    size = random_weights.SD15
    here = torch.device("meta")
    model = StableDiffusion(
        "sd15", Path("unused"), Path("unused"), variant=None, device=here, dtype=torch.float32, identity="none"
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(builders.checkpoint() / "tokenizer")
    with here:
        model.__dict__["unet"] = random_weights._unet(size)
        model.__dict__["text_encoder"] = random_weights._text_encoder(size, tokenizer)
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
        assert lora.parameter_count(adapter) == {part: parameters}

    def test_linear_has_every_layer_of_the_transformer_blocks(self, sd15: Model) -> None:
        # 16 blocks of 2 attentions with 4 layers each, and 2 layers of the feed-forward network
        assert len(sd15.sites("unet", "linear")) == 16 * (2 * 4 + 2)

    def test_frozen_weights(self, sd15: Model) -> None:
        """The architecture is the published one: 859.5 and 123.1 million parameters."""
        counts = {part: sum(p.numel() for p in sd15.part(part).parameters()) for part in lora.PARTS}
        assert counts == {"unet": 859_520_964, "text_encoder": 123_060_480}


class TestFile:
    def test_keys_are_those_that_diffusers_writes(self, saved: Path) -> None:
        tensors = builders.tensors(saved)
        assert len(tensors) == 2 * len(
            [*builders.model().sites("unet", "attention"), *builders.model().sites("text_encoder", "")]
        )
        query = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        assert tensors[f"{query}.lora_A.weight"].shape == (4, 16)
        assert tensors[f"{query}.lora_B.weight"].shape == (16, 4)
        text = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
        assert tensors[f"{text}.lora_A.weight"].shape == (3, 16)
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())

    def test_metadata(self, saved: Path, base: Model) -> None:
        with safe_open(saved, "pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["dbexp"]) == {"inputs": INPUTS}
        described = json.loads(metadata["lora_adapter_metadata"])
        assert {part: (described[f"{part}.r"], described[f"{part}.lora_alpha"]) for part in BOTH} == {
            part: (BOTH[part], ALPHAS[part]) for part in BOTH
        }
        assert described["unet.target_modules"] == sorted(base.sites("unet", "attention"))

    def test_round_trip(self, saved: Path, adapter: Adapter, base: Model) -> None:
        read = lora.read(saved, base)
        assert read.alphas == ALPHAS and read.provenance == {"inputs": INPUTS}
        assert read.weights.keys() == adapter.down.keys()
        for name, (down, up) in read.weights.items():
            assert torch.equal(down, adapter.down[name]) and torch.equal(up, adapter.up[name].T)

    def test_same_bytes_of_tensors_every_time(self, saved: Path, adapter: Adapter, base: Model, tmp_path: Path) -> None:
        lora.save(tmp_path / "again", adapter, base, {"inputs": INPUTS})
        again, before = builders.tensors(tmp_path / "again"), builders.tensors(saved)
        assert again.keys() == before.keys() and all(torch.equal(again[key], before[key]) for key in before)

    def test_a_missing_file(self, base: Model, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            lora.read(tmp_path / "missing", base)

    def test_what_read_refuses(self, base: Model, tmp_path: Path, saved: Path) -> None:
        (tmp_path / "cut").write_bytes(saved.read_bytes()[:-10])
        (tmp_path / "empty").write_bytes(b"")
        safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
        with safe_open(saved, "pt") as file:
            metadata = file.metadata()
        lacking = builders.tensors(saved)
        lacking.popitem()
        safetensors.torch.save_file(lacking, tmp_path / "lacking", metadata)
        for name in ("cut", "empty", "foreign", "lacking"):
            with pytest.raises(ConfigError, match=f"{name}: is damaged, or no LoRA file that dbexp wrote"):
                lora.read(tmp_path / name, base)


@pytest.fixture
def loud(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Warnings of diffusers and transformers reach the log that the test reads."""
    for library in (diffusers, transformers):
        library.utils.logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    for library in (diffusers, transformers):
        library.utils.logging.disable_propagation()


def picture(pipe: Any, **kwargs: Any) -> NDArray[np.int64]:
    """Pixels 0..255 of one picture from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    (image,) = pipe(
        builders.PROMPT, num_inference_steps=3, guidance_scale=3.0, height=32, width=32, generator=generator, **kwargs
    ).images
    return np.asarray(image).astype(np.int64)


def stock() -> StableDiffusionPipeline:
    """What somebody else would load: diffusers alone."""
    pipe = StableDiffusionPipeline.from_pretrained(
        builders.checkpoint(), safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(saved: Path) -> NDArray[np.int64]:
    """The picture that this package draws with the LoRA merged in."""
    base = builders.model()
    plain = picture(base.pipeline(None))
    with lora.merged(base, saved):
        merged = picture(base.pipeline(None))
    assert np.abs(merged - plain).max() > 12, "the LoRA of these tests must change the picture"
    return merged


class TestOtherPrograms:
    def test_diffusers(self, saved: Path, ours: NDArray[np.int64], loud: pytest.LogCaptureFixture) -> None:
        pipe = stock()
        loud.clear()
        pipe.load_lora_weights(saved)
        assert loud.messages == []
        assert set(pipe.get_list_adapters()) == {"unet", "text_encoder"}
        assert np.abs(picture(pipe) - ours).max() <= 1
        pipe.unload_lora_weights()
        assert np.abs(picture(pipe) - ours).max() > 12

    def test_diffusers_scale(self, saved: Path, ours: NDArray[np.int64]) -> None:
        base, pipe = builders.model(), stock()
        with lora.merged(base, saved, scale=0.4):
            weaker = picture(base.pipeline(None))
        pipe.load_lora_weights(saved, adapter_name="subject")
        pipe.set_adapters("subject", 0.4)
        assert np.abs(picture(pipe) - weaker).max() <= 1
        assert np.abs(weaker - ours).max() > 3

    def test_kohya(
        self, saved: Path, ours: NDArray[np.int64], base: Model, tmp_path: Path, loud: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "kohya.safetensors"
        lora.export_kohya(lora.read(saved, base), path, base)
        tensors = builders.tensors(path)
        site = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
        assert tensors[f"{site}.lora_down.weight"].shape == (4, 16)
        assert tensors[f"{site}.alpha"].item() == 2.0
        assert tensors["lora_te_text_model_encoder_layers_0_self_attn_out_proj.alpha"].item() == 6.0
        assert {key.rpartition(".")[2] for key in tensors} == {"weight", "alpha"}
        pipe = stock()
        loud.clear()
        pipe.load_lora_weights(path)
        assert loud.messages == []
        assert np.abs(picture(pipe) - ours).max() <= 1

    def test_a_unet_alone(self, base: Model, tmp_path: Path, loud: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "unet.safetensors"
        lora.save(path, builders.adapter(base, {"unet": 2}, {"unet": 2.0}), base, {})
        with lora.merged(base, path):
            ours = picture(base.pipeline(None))
        pipe = stock()
        loud.clear()
        pipe.load_lora_weights(path)
        (said,) = loud.messages
        assert said.startswith("No LoRA keys associated to CLIPTextModel"), "which is so, and meant"
        assert np.abs(picture(pipe) - ours).max() <= 1


class TestMerged:
    def weights(self, base: Model) -> dict[str, torch.Tensor]:
        return {f"{part}.{name}": p.clone() for part in lora.PARTS for name, p in base.part(part).named_parameters()}

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("error", [None, RuntimeError("stop")])
    def test_restores_every_bit(self, saved: Path, precision: str, error: Exception | None) -> None:
        base = builders.model(precision=precision)
        before = self.weights(base)
        changed = {f"{part}.{site}.weight" for part in lora.PARTS for site in base.sites(part, "attention")}
        try:
            with lora.merged(base, saved):
                inside = self.weights(base)
                if error is not None:
                    raise error
        except RuntimeError:
            assert error is not None
        after = self.weights(base)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert {name for name in before if not torch.equal(before[name], inside[name])} == changed
        assert all(inside[name].dtype == before[name].dtype for name in before)

    def test_is_the_formula(self, saved: Path, base: Model, adapter: Adapter) -> None:
        site = base.sites("text_encoder", "attention")[2]
        name = f"text_encoder.{site}"
        before = self.weights(base)[f"{name}.weight"]
        with lora.merged(base, saved, scale=0.5):
            after = self.weights(base)[f"{name}.weight"]
        expected = before + 0.5 * 6.0 / 3 * adapter.up[name].T @ adapter.down[name]
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)

    def test_a_failure_half_way_restores_too(self, saved: Path, base: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        before, calls = self.weights(base), 0
        find = lora._linear

        def fail_late(module: nn.Module, site: str) -> nn.Linear:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise MemoryError
            return find(module, site)

        monkeypatch.setattr(lora, "_linear", fail_late)
        with pytest.raises(MemoryError), lora.merged(base, saved):
            pytest.fail("the block must not run")
        after = self.weights(base)
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_without_a_file(self, base: Model) -> None:
        before = self.weights(base)
        with lora.merged(base, None):
            inside = self.weights(base)
        assert all(torch.equal(before[name], inside[name]) for name in before)

    def test_a_merged_model_gives_what_lanes_give(self, saved: Path, base: Model, adapter: Adapter) -> None:
        """Training and sampling see the same function."""
        noisy, steps = torch.randn(2, 4, 16, 16), torch.tensor([5, 900])
        ids = base.tokenize([builders.PROMPT, builders.CLASS_PROMPT])
        with torch.no_grad():
            with AdapterSlots(base, "attention", 1, BOTH) as lanes:
                lanes.open(0, BOTH, ALPHAS, seed=0).load_state(adapter.state())
                for rows in lanes.rows.values():
                    rows.set([2])
                expected = base.predict(noisy, steps, base.encode_tokens(ids))
            with lora.merged(base, saved):
                torch.testing.assert_close(
                    base.predict(noisy, steps, base.encode_tokens(ids)), expected, rtol=1e-4, atol=1e-4
                )


def test_the_same_lora_is_the_same_bytes(tmp_path: Path) -> None:
    base = builders.model()
    made = builders.adapter(base, {"unet": 2}, {"unet": 2.0})
    said = {f"key {number}": number for number in range(20)}
    for number in range(6):
        lora.save(tmp_path / f"{number}.safetensors", made, base, said)
        file = lora.read(tmp_path / f"{number}.safetensors", base)
        lora.export_kohya(file, tmp_path / f"kohya{number}.safetensors", base)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(6)}) == 1
    assert len({(tmp_path / f"kohya{number}.safetensors").read_bytes() for number in range(6)}) == 1
