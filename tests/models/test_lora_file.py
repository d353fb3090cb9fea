"""LoRA files: what other programs read, and what a base is with one merged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
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

from dbexp.core.errors import ConfigError
from dbexp.models import Model, lora_file
from dbexp.train.adapter import Adapter, AdapterSlots, save
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
    path = tmp_path_factory.mktemp("lora") / "lora_file.safetensors"
    save(path, adapter, builders.model(), {"inputs": INPUTS})
    return path


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
        read = lora_file.read(saved, base)
        assert read.alphas == ALPHAS and read.provenance == {"inputs": INPUTS}
        assert read.weights.keys() == adapter.down.keys()
        for name, (down, up) in read.weights.items():
            assert torch.equal(down, adapter.down[name]) and torch.equal(up, adapter.up[name].T)

    def test_same_bytes_of_tensors_every_time(self, saved: Path, adapter: Adapter, base: Model, tmp_path: Path) -> None:
        save(tmp_path / "again", adapter, base, {"inputs": INPUTS})
        again, before = builders.tensors(tmp_path / "again"), builders.tensors(saved)
        assert again.keys() == before.keys() and all(torch.equal(again[key], before[key]) for key in before)

    def test_a_missing_file(self, base: Model, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            lora_file.read(tmp_path / "missing", base)

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
                lora_file.read(tmp_path / name, base)


def changed(saved: Path, path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> Path:
    """A LoRA file with other tensors or other metadata."""
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    tensors, described = builders.tensors(saved), json.loads(metadata["lora_adapter_metadata"])
    change(tensors, described)
    safetensors.torch.save_file(tensors, path, metadata | {"lora_adapter_metadata": json.dumps(described)})
    return path


SITE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
A, B = f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight"
UNFIT: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "NaN": (lambda t, d: t[A][0].fill_(float("nan")), "NaN or infinite"),
    "infinite": (lambda t, d: t[B][0].fill_(float("inf")), "NaN or infinite"),
    "another rank": (lambda t, d: t.update({A: torch.ones(5, 16)}), "are not those of rank 4"),
    "another rank of both": (
        lambda t, d: t.update({A: torch.ones(5, 16), B: torch.ones(16, 5)}),
        "are not those of rank 4",
    ),
    "rank 0": (lambda t, d: t.update({A: torch.ones(0, 16), B: torch.ones(16, 0)}), "are not those of rank"),
    "rank 0 on record": (lambda t, d: d.update({"unet.r": 0}), "are not those of rank 0"),
    "a convolution": (lambda t, d: t.update({A: torch.ones(4, 16, 1, 1)}), "are not those of rank"),
    "a vector": (lambda t, d: t.update({A: torch.ones(4)}), "are not those of rank"),
    "whole numbers": (lambda t, d: t.update({A: torch.ones(4, 16, dtype=torch.int32)}), "is of torch.int32"),
    "complex numbers": (
        lambda t, d: t.update({B: torch.ones(16, 4, dtype=torch.complex64)}),
        "is of torch.float32 and",
    ),
    "alpha of NaN": (lambda t, d: d.update({"unet.lora_alpha": float("nan")}), "alpha is nan"),
    "alpha of a text": (lambda t, d: d.update({"unet.lora_alpha": "2"}), "alpha is '2'"),
    "alpha of a list": (lambda t, d: d.update({"unet.lora_alpha": [2]}), "alpha is"),
    "a huge alpha": (lambda t, d: d.update({"unet.lora_alpha": 10**400}), "int too large"),
    "no alpha": (lambda t, d: d.pop("unet.lora_alpha"), "of which its metadata know nothing"),
    "nothing on record": (lambda t, d: d.clear(), "of which its metadata know nothing"),
    "nothing at all": (lambda t, d: [each.popitem() for each in (d, t) for _ in [*each]], "it has nothing"),
    "no rank": (lambda t, d: d.pop("unet.r"), "it lacks 'unet.r'"),
    "one site less": (lambda t, d: d["unet.target_modules"].pop(), "of which its metadata know nothing"),
    "no list of sites": (lambda t, d: d.update({"unet.target_modules": 3}), "not iterable"),
    "odd sites": (lambda t, d: d.update({"unet.target_modules": [None, {}]}), ""),
    "a site twice": (lambda t, d: d["unet.target_modules"].append(d["unet.target_modules"][0]), "it lacks"),
}


@pytest.mark.parametrize(("change", "reason"), UNFIT.values(), ids=UNFIT)
def test_a_file_that_is_no_lora_is_one_message(
    saved: Path, base: Model, tmp_path: Path, change: Callable[..., object], reason: str
) -> None:
    path = changed(saved, tmp_path / "unfit", change)
    with pytest.raises(ConfigError, match="unfit: is damaged, or no LoRA file that dbexp wrote") as caught:
        lora_file.read(path, base)
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["lora_adapter_metadata", "dbexp"])
@pytest.mark.parametrize("text", ["", "[]", "null", "3", "[" * 100_000, '{"a":' * 100_000])
def test_odd_metadata_are_one_message(saved: Path, base: Model, tmp_path: Path, name: str, text: str) -> None:
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(builders.tensors(saved), tmp_path / "odd", metadata | {name: text})
    with pytest.raises(ConfigError, match="odd: is damaged, or no LoRA file that dbexp wrote"):
        lora_file.read(tmp_path / "odd", base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_read(saved: Path, base: Model, tmp_path: Path, dtype: torch.dtype) -> None:
    path = changed(saved, tmp_path / "half", lambda t, _: t.update({key: value.to(dtype) for key, value in t.items()}))
    whole, half = lora_file.read(saved, base), lora_file.read(path, base)
    for name, (down, up) in half.weights.items():
        assert down.dtype == up.dtype == torch.float32
        assert torch.equal(down, whole.weights[name][0].to(dtype).float())


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
    plain = builders.picture(base)
    with lora_file.merged(base, saved):
        merged = builders.picture(base)
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
        with lora_file.merged(base, saved, scale=0.4):
            weaker = builders.picture(base)
        pipe.load_lora_weights(saved, adapter_name="subject")
        pipe.set_adapters("subject", 0.4)
        assert np.abs(picture(pipe) - weaker).max() <= 1
        assert np.abs(weaker - ours).max() > 3

    def test_kohya(
        self, saved: Path, ours: NDArray[np.int64], base: Model, tmp_path: Path, loud: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "kohya.safetensors"
        lora_file.write(lora_file.read(saved, base), path, base, "kohya")
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

    def test_alpha_in_the_weights(
        self, saved: Path, ours: NDArray[np.int64], base: Model, tmp_path: Path, loud: pytest.LogCaptureFixture
    ) -> None:
        """For programs that read no metadata: the same picture, with alpha equal to the rank."""
        path = tmp_path / "baked.safetensors"
        file = lora_file.read(saved, base)
        lora_file.write(file.baked(), path, base)
        baked = lora_file.read(path, base)
        assert baked.alphas == {part: float(rank) for part, rank in BOTH.items()} != file.alphas
        pipe = stock()
        loud.clear()
        pipe.load_lora_weights(path)
        assert loud.messages == []
        assert np.abs(picture(pipe) - ours).max() <= 1

    def test_a_unet_alone(self, base: Model, tmp_path: Path, loud: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "unet.safetensors"
        save(path, builders.adapter(base, {"unet": 2}, {"unet": 2.0}), base, {})
        with lora_file.merged(base, path):
            ours = builders.picture(base)
        pipe = stock()
        loud.clear()
        pipe.load_lora_weights(path)
        (said,) = loud.messages
        assert said.startswith("No LoRA keys associated to CLIPTextModel"), "which is so, and meant"
        assert np.abs(picture(pipe) - ours).max() <= 1


class TestMerged:
    def weights(self, base: Model) -> dict[str, torch.Tensor]:
        return {f"{part}.{name}": p.clone() for part in BOTH for name, p in base.part(part).named_parameters()}

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("error", [None, RuntimeError("stop")])
    def test_restores_every_bit(self, saved: Path, precision: str, error: Exception | None) -> None:
        base = builders.model(precision=precision)
        before = self.weights(base)
        changed = {f"{part}.{site}.weight" for part in BOTH for site in base.sites(part, "attention")}
        try:
            with lora_file.merged(base, saved):
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
        with lora_file.merged(base, saved, scale=0.5):
            after = self.weights(base)[f"{name}.weight"]
        expected = before + 0.5 * 6.0 / 3 * adapter.up[name].T @ adapter.down[name]
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)

    def test_a_failure_half_way_restores_too(self, saved: Path, base: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        before, calls = self.weights(base), 0
        add = lora_file.add_update

        def fail_late(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            add(*arguments)
            if calls == 5:
                raise MemoryError

        monkeypatch.setattr(lora_file, "add_update", fail_late)
        with pytest.raises(MemoryError), lora_file.merged(base, saved):
            pytest.fail("the block must not run")
        after = self.weights(base)
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_some_parts(self, saved: Path, base: Model) -> None:
        before = self.weights(base)
        with lora_file.merged(base, saved, parts=["text_encoder"]):
            inside = self.weights(base)
        changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], inside[name])}
        assert changed == {"text_encoder"}

    def test_without_a_file(self, base: Model) -> None:
        before = self.weights(base)
        with lora_file.merged(base, None):
            inside = self.weights(base)
        assert all(torch.equal(before[name], inside[name]) for name in before)

    def test_a_merged_model_gives_what_lanes_give(self, saved: Path, base: Model, adapter: Adapter) -> None:
        """Training and sampling see the same function."""
        noisy, steps = torch.randn(2, 4, 16, 16), torch.tensor([5, 900])
        tokens = base.tokenize([builders.PROMPT, builders.CLASS_PROMPT])
        with torch.no_grad():
            with AdapterSlots(base, "attention", 1, BOTH) as lanes:
                lanes.open(0, BOTH, ALPHAS, seed=0).load_state(adapter.state())
                for rows in lanes.rows.values():
                    rows.set([2])
                lanes.refresh()
                expected = base.predict(noisy, steps, base.encode(tokens))
            with lora_file.merged(base, saved):
                torch.testing.assert_close(
                    base.predict(noisy, steps, base.encode(tokens)), expected, rtol=1e-4, atol=1e-4
                )


def test_the_same_lora_is_the_same_bytes(tmp_path: Path) -> None:
    base = builders.model()
    made = builders.adapter(base, {"unet": 2}, {"unet": 2.0})
    said = {f"key {number}": number for number in range(20)}
    for number in range(6):
        save(tmp_path / f"{number}.safetensors", made, base, said)
        file = lora_file.read(tmp_path / f"{number}.safetensors", base)
        lora_file.write(file, tmp_path / f"kohya{number}.safetensors", base, "kohya")
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(6)}) == 1
    assert len({(tmp_path / f"kohya{number}.safetensors").read_bytes() for number in range(6)}) == 1
