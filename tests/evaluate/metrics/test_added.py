"""Columns that a config adds: each by another computation, on tiny random networks of the genuine libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dbexp.config.fields import keyed
from dbexp.config.schema import ClipConfig, Config, DinoConfig, EvaluateConfig, LpipsConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.evaluate import cached, evaluate, objective
from dbexp.evaluate.added import added, columns_of
from dbexp.evaluate.columns import COLUMNS, column_of, in_order, is_column, terms
from dbexp.evaluate.evaluate import Backbones, find_or_evaluate, load_backbones
from dbexp.evaluate.metrics import kinds
from dbexp.evaluate.pictures import Pictures
from dbexp.evaluate.report import Report

CPU = torch.device("cpu")
VIT: dict[str, Any] = {
    "weights": "random",
    "kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "resize": 40,
    "crop": 32,
}
CLIP: dict[str, Any] = {
    "name": "tiny",
    "weights": "random",
    "kwargs": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}
OTHER_CLIP = {**CLIP, "kwargs": {**CLIP["kwargs"], "embed_dim": 24}}
SIX = {**VIT, "kwargs": {**VIT["kwargs"], "num_heads": 4}}
BASE = EvaluateConfig(
    dino=DinoConfig(**VIT),
    clip=ClipConfig(**CLIP),
    lpips=LpipsConfig(net="squeeze", trunk="random", size=32),
    resamples=50,
)
MORE: dict[str, Any] = {
    "wide": {"metric": "dino", **SIX},
    "large": {"metric": "clip", **OTHER_CLIP},
    "liked": {"metric": "preference", **CLIP},
    "beauty": {"metric": "aesthetic", **CLIP, "head": "random"},
}


def noise(path: Path, seed: int, size: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder = tmp_path_factory.mktemp("pictures")
    prompts = ("a sks dog in the snow", "a red sks dog")

    def sampled(name: str, start: int) -> dict[str, list[Path]]:
        return {
            prompt: [noise(folder / name / f"{p}-{k}.png", start + 2 * p + k) for k in (0, 1)]
            for p, prompt in enumerate(prompts)
        }

    return Pictures(
        real=tuple(noise(folder / f"real/{i}.png", i) for i in range(3)),
        samples=sampled("on", 100),
        base_samples=sampled("off", 200),
        class_images=tuple(noise(folder / f"c/{i}.png", 300 + i) for i in range(3)),
        class_images_base=tuple(noise(folder / f"b/{i}.png", 400 + i) for i in range(3)),
        token="sks",
        class_noun="dog",
        groups={},
    )


def backbones(more: Mapping[str, Any] | None = None) -> tuple[Backbones, EvaluateConfig]:
    cfg = replace(BASE, more=dict(more or {}))
    return load_backbones(cfg, CPU), cfg


@pytest.fixture(scope="module")
def report(pictures: Pictures) -> Report:
    return evaluate.evaluate(pictures, *backbones(MORE))


def unit(vectors: Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(nn.functional.normalize(vectors.double(), dim=1))


def test_several_columns_of_a_kind_stand_beside_each_other(report: Report, pictures: Pictures) -> None:
    plain = evaluate.evaluate(pictures, *backbones())
    names = ["dino@wide", "clip_i@large", "clip_t@large", "preference@liked", "aesthetic@beauty", "pres@wide"]
    assert list(report.rows["run"]) == [*plain.rows["run"], *names]
    assert {name: report.rows["run"][name] for name in plain.rows["run"]} == plain.rows["run"], (
        "others stay as they are"
    )
    assert set(report.backbones) == {"dino", "clip", "lpips", *MORE}
    assert report.backbones["wide"].startswith("timm/vit_small_patch16_224.dino+")
    assert "random" in str(report.label)


def test_each_column_by_hand(report: Report, pictures: Pictures) -> None:
    samples = [path for paths in pictures.samples.values() for path in paths]
    timm = load_backbones(replace(BASE, dino=DinoConfig(**SIX)), CPU).dino
    real = unit(timm.embed_images(pictures.real))
    run = {name: estimate.value for name, estimate in report.rows["run"].items()}
    assert run["dino@wide"] == pytest.approx((unit(timm.embed_images(samples)) @ real.T).mean(), abs=1e-6)
    assert run["pres@wide"] == pytest.approx((unit(timm.embed_images(pictures.class_images)) @ real.T).mean(), abs=1e-6)
    clip = load_backbones(replace(BASE, clip=ClipConfig(**OTHER_CLIP)), CPU).clip
    images = unit(clip.embed_images(samples))
    assert run["clip_i@large"] == pytest.approx((images @ unit(clip.embed_images(pictures.real)).T).mean(), abs=1e-6)
    texts = unit(clip.embed_texts(["a dog in the snow", "a red dog"]))
    by_hand = np.concatenate([images[:2] @ texts[0], images[2:] @ texts[1]]).mean()
    assert run["clip_t@large"] == pytest.approx(by_hand, abs=1e-6)
    assert run["preference@liked"] == pytest.approx(run["clip_t"], abs=1e-6), "it is the same network here"
    small = unit(load_backbones(BASE, CPU).clip.embed_images(samples))
    marks = small @ np.random.default_rng(0).normal(size=(1, 16)).T
    assert run["aesthetic@beauty"] == pytest.approx(marks.mean(), abs=1e-6)


def test_bases_real_images_pictures_and_prompts_have_them_too(report: Report) -> None:
    assert {"dino@wide", "clip_t@large", "pres@wide"} <= set(report.rows["base"])
    assert {"dino@wide", "clip_i@large"} <= set(report.rows["real"]) and "pres@wide" not in report.rows["real"]
    assert all("aesthetic@beauty" in image.values for image in report.images)
    assert all("pres@wide" in image.values for image in report.class_images)
    assert all("clip_t@large" in prompt.values for prompt in report.prompts)
    assert Report.from_json(report.to_json()) == report
    estimate = report.rows["run"]["dino@wide"]
    assert estimate.low < estimate.value < estimate.high and estimate.n == 2


def test_they_are_labelled_and_ordered_by_their_name() -> None:
    assert column_of("dino@dinov2_s14").title == "DINO dinov2_s14" and column_of("pres@x").better == "lower"
    assert column_of("dreamsim@d").sign == -1 and column_of("aesthetic@a").upper == 10
    assert is_column("dino@x") and not any(map(is_column, ("beauty@x", "dino@", "dino@a b", "@", "x", "div@x")))
    assert in_order(["dino@b", "clip_t", "x@y", "dino@a", "dino"]) == ["dino", "clip_t", "dino@b", "dino@a"]
    assert terms("0.5*dino@dinov2_s14-pres") == {"dino@dinov2_s14": 0.5, "pres": -1}
    for kind in kinds().values():
        assert set(kind.of_class) < set(kind.columns) or not kind.of_class


def test_they_may_be_objectives(report: Report) -> None:
    known = columns_of(MORE)
    assert {"dino@wide", "pres@wide", "aesthetic@beauty"} <= set(known)
    assert objective.problem("dino@wide", known) is None and objective.problem("1*dino@wide-pres", known) is None
    assert "choose one of" in str(objective.problem("dino@else", known))
    assert objective.value(report.rows, "1*dino@wide-1*pres@wide") == pytest.approx(
        report.rows["run"]["dino@wide"].value - report.rows["run"]["pres@wide"].value
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"x": {"metric": "beauty"}}, "evaluate.more.x.metric=beauty: choose one of aesthetic, clip, "),
        ({"x": {"name": "ViT"}}, "evaluate.more.x.metric=None: choose one of"),
        ({"x": 3}, "evaluate.more.x.metric=None: choose one of"),
        ({"a b": {"metric": "dino"}}, "evaluate.more.a b: a name is letters"),
        ({"dino": {"metric": "dino"}}, "evaluate.more.dino: a name is letters"),
        ({"x": {"metric": "dino", "size": 3}}, "evaluate.more.x.size: "),
        ({"x": {"metric": "dino", "crop": 0}}, "evaluate.more.x.crop=0: must be at least 1"),
        ({"x": {"metric": "dreamsim", "type": "mine"}}, "evaluate.more.x.type=mine: choose one of ensemble"),
    ],
)
def test_what_is_wrong_is_told_before_weights_are_loaded(more: dict[str, Any], says: str) -> None:
    problems: list[str] = []
    assert added(more, problems) == [] and len(problems) == 1
    assert problems[0].startswith(says), problems[0]


def test_what_is_wrong_with_networks_is_told_at_once(tmp_path: Path) -> None:
    more = {
        "a": {"metric": "dino", "name": "no_such"},
        "b": {"metric": "clip", "name": "no-such", "weights": "random"},
        "c": {"metric": "aesthetic", **CLIP},
        "d": {"metric": "masked", **VIT, "masks": str(tmp_path / "none")},
        "e": {"metric": "dreamsim"},
    }
    with pytest.raises(ConfigError) as caught:
        load_backbones(replace(BASE, more=more), CPU)
    assert [problem.partition("=")[0] for problem in caught.value.problems] == [
        "evaluate.more.a.name",
        "evaluate.more.b.name",
        "evaluate.more.c.head",
        "evaluate.more.d.masks",
        "evaluate.more.e.metric",
    ]


def test_without_more_keys_are_what_they_were(pictures: Pictures) -> None:
    assert "more" not in keyed(Config().evaluate)
    networks, cfg = backbones()
    plain = cached.inputs_of(pictures, networks.all[:3], cfg, networks.more)
    assert plain == cached.inputs_of(pictures, networks.all[:3], cfg) and "more" not in {*plain, *plain["settings"]}
    networks, cfg = backbones(MORE)
    with_more = cached.inputs_of(pictures, networks.all[:3], cfg, networks.more)
    assert {name: value for name, value in with_more.items() if name != "more"} == plain
    assert [name for name, *_ in with_more["more"]] == list(MORE)


def test_a_report_with_more_is_found_again(pictures: Pictures, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = find_or_evaluate(pictures, *backbones(MORE), store)
    again = find_or_evaluate(pictures, *backbones(MORE), store)
    assert again == first and again.cost == first.cost
    assert "dino@wide" not in find_or_evaluate(pictures, *backbones(), store).rows["run"]


def test_one_that_fails_costs_no_other_its_value(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    networks, cfg = backbones({"wide": MORE["wide"], "large": MORE["large"]})

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(networks.more[0].network, "embed_images", out_of_memory)
    report = evaluate.evaluate(pictures, networks, cfg)
    lost = {name: estimate.reason for name, estimate in report.rows["run"].items() if estimate.reason}
    assert set(lost) == {"dino@wide", "pres@wide"} and "out of memory" in str(lost["dino@wide"])
    assert not cached.is_sound(report)


# ------------------------------------------------------------------------------------------------ heads and masks


def test_heads_are_chains_of_linear_layers(pictures: Pictures, tmp_path: Path) -> None:
    chain = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.2), nn.Linear(8, 1)).double().eval()
    file = tmp_path / "head.pth"
    torch.save({f"layers.{name}": tensor for name, tensor in chain.state_dict().items()}, file)
    more = {"beauty": {"metric": "aesthetic", **CLIP, "head": str(file)}}
    report = evaluate.evaluate(pictures, *backbones(more))
    samples = [path for paths in pictures.samples.values() for path in paths]
    small = unit(load_backbones(BASE, CPU).clip.embed_images(samples))
    with torch.no_grad():
        marks = chain(torch.from_numpy(small)).mean()
    assert report.rows["run"]["aesthetic@beauty"].value == pytest.approx(float(marks), abs=1e-6)
    torch.save({"a.weight": torch.ones(2, 16), "a.bias": torch.ones(2)}, file)
    with pytest.raises(ConfigError, match="is no chain of linear layers"):
        backbones(more | {"wide": MORE["wide"]})  # others than before, or they would not be loaded anew


def test_masks_leave_the_subject_alone(pictures: Pictures, tmp_path: Path) -> None:
    for path in pictures.real:
        mask = Image.new("L", (48, 48), 0)
        mask.paste(255, (12, 12, 36, 36))
        mask.save(tmp_path / f"{path.stem}.png")
    more = {"cut": {"metric": "masked", **VIT, "masks": str(tmp_path)}}
    networks, cfg = backbones(more)
    report = evaluate.evaluate(pictures, networks, cfg)
    key = networks.more[0].depends_on(pictures.real)
    cut = []
    for path in pictures.real:
        grey = Image.new("RGB", (48, 48), (124, 116, 104))
        grey.paste(Image.open(path).crop((12, 12, 36, 36)), (12, 12))
        cut.append(tmp_path / f"cut-{path.name}")
        grey.save(cut[-1])
    timm = load_backbones(BASE, CPU).dino
    samples = [path for paths in pictures.samples.values() for path in paths]
    by_hand = (unit(timm.embed_images(samples)) @ unit(timm.embed_images(cut)).T).mean()
    assert report.rows["run"]["dino_masked@cut"].value == pytest.approx(by_hand, abs=1e-6)
    assert report.rows["run"]["dino_masked@cut"].value != pytest.approx(report.rows["run"]["dino"].value, abs=1e-4)
    Image.new("L", (48, 48), 255).save(tmp_path / f"{pictures.real[0].stem}.png")
    assert networks.more[0].depends_on(pictures.real) != key, "other masks make another report"
    (tmp_path / f"{pictures.real[0].stem}.png").unlink()
    lost = evaluate.evaluate(pictures, networks, cfg).rows["run"]["dino_masked@cut"]
    assert lost.reason == f"no mask of {pictures.real[0].name} in {tmp_path}"


class Perceptual(nn.Module):
    """What the package `dreamsim` gives: `embed`, which drops the batch of one picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(3 * 16 * 16, 12)

    def embed(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.layer(pixels.flatten(1))
        return embedding.squeeze()


def test_dreamsim_is_a_distance_to_the_real_images(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def dreamsim(**kwargs: Any) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
        asked.update(kwargs)

        def preprocess(image: Image.Image) -> Tensor:
            return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1).float()[None] / 255

        return Perceptual(), preprocess

    module = ModuleType("dreamsim")
    module.dreamsim = dreamsim  # type: ignore[attr-defined]  # a package that is not installed
    monkeypatch.setitem(sys.modules, "dreamsim", module)
    more = {"d": {"metric": "dreamsim", "weights": str(tmp_path / "weights")}}
    networks, cfg = backbones(more)
    assert asked == {
        "pretrained": True, "device": "cpu", "cache_dir": str(tmp_path / "weights"), "dreamsim_type": "ensemble"
    }  # fmt: skip
    report = evaluate.evaluate(pictures, networks, replace(cfg, batch_size=3))
    network = networks.more[0].network
    samples = [path for paths in pictures.samples.values() for path in paths]
    distances = [
        1 - float(nn.functional.cosine_similarity(network.embed_images([a]), network.embed_images([b])))
        for a in samples
        for b in pictures.real
    ]
    assert report.rows["run"]["dreamsim@d"].value == pytest.approx(np.mean(distances), abs=1e-6)
    assert column_of("dreamsim@d").better == "lower" and "dreamsim" not in COLUMNS
