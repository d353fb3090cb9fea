"""The evaluate stage: every column and every edge case on stub backbones, then the whole on real ones."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dbexp.config.schema import ClipConfig, DinoConfig, EvaluateConfig, LpipsConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.evaluate import cached
from dbexp.evaluate.columns import COLUMNS
from dbexp.evaluate.evaluate import Backbones, evaluate, find_or_evaluate, load_backbones
from dbexp.evaluate.feature_cache import DiskCache
from dbexp.evaluate.functional import FloatArray
from dbexp.evaluate.pictures import Pictures
from dbexp.evaluate.report import Report, summary

Colour = tuple[int, int, int]
PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared/data/dreambooth"
CFG = EvaluateConfig(resamples=200)


def paint(path: Path, colour: Colour, size: tuple[int, int] = (8, 8), note: str = "") -> Path:
    """A picture of one colour; another note makes another file of the same picture."""
    info = PngInfo()
    info.add_text("note", note)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, pnginfo=info)
    return path


def colour_of(path: Path) -> FloatArray:
    with Image.open(path) as image:
        pixel: Any = image.convert("RGB").getpixel((0, 0))
    return np.array(pixel, dtype=np.float64)


@dataclass
class StubEncoder:
    """Embeds a picture as its colour and a text as it is told; remembers what it was requests."""

    id: str = "stub"
    transform: str = "1"
    random: bool = False
    context_length: int = 77
    texts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    error: Exception | None = None

    def embed_images(self, paths: Sequence[Path], batch_size: int = 32) -> Tensor:
        if self.error:
            raise self.error
        self.requests += [path.name for path in paths]
        return torch.tensor(np.array([colour_of(path) for path in paths]), dtype=torch.float32)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.texts.get(text, (1, 1, 1)) for text in texts], dtype=torch.float32)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [len(text.split()) > 75 for text in texts]


@dataclass
class StubDistance:
    """The distance of two pictures is the difference of their red values."""

    id: str = "stub"
    transform: str = "1"
    random: bool = False
    error: Exception | None = None

    def mean_distances(self, paths: Sequence[Path], batch_size: int = 32) -> FloatArray:
        if self.error:
            raise self.error
        red = np.array([colour_of(path)[0] for path in paths])
        return np.asarray(np.abs(red[:, None] - red).sum(axis=1) / (len(red) - 1))


@pytest.fixture
def stubs() -> Backbones:
    return Backbones(StubEncoder(id="dino"), StubEncoder(id="clip"), StubDistance())


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Two real images, two prompts of two samples, two class images, and the same again with the adapter off."""

    def sampled(folder: str, shift: int) -> dict[str, list[Path]]:
        return {
            "a sks dog in the snow": [
                paint(tmp_path / folder / f"0-{k}.png", (10 + k, 20, 90 - shift)) for k in (0, 1)
            ],
            "a red sks dog": [paint(tmp_path / folder / f"1-{k}.png", (90, 10 * (k + 1), shift)) for k in (0, 1)],
        }

    return Pictures(
        real=(paint(tmp_path / "real/0.png", (255, 0, 0)), paint(tmp_path / "real/1.png", (153, 204, 0))),
        samples=sampled("on", 7),
        base_samples=sampled("off", 90),
        class_images=tuple(paint(tmp_path / f"class/{k}.png", (50 + k, 9 * k, 40)) for k in (1, 2)),
        class_images_base=tuple(paint(tmp_path / f"class_base/{k}.png", (40, 9 * k, 90)) for k in (1, 2)),
        token="sks",
        class_noun="dog",
        groups={"a sks dog in the snow": "recontextualisation", "a red sks dog": "property"},
    )


def cosine(a: Path, b: Path) -> float:
    x, y = colour_of(a), colour_of(b)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def nan_columns(report: Report, row: str = "run") -> dict[str, str]:
    return {name: str(e.reason) for name, e in report.rows[row].items() if math.isnan(e.value)}


# --------------------------------------------------------------------------------------------------- the columns


def test_every_column_is_its_definition_pair_by_pair(pictures: Pictures, stubs: Backbones) -> None:
    texts = {"a dog in the snow": (1, 2, 0), "a red dog": (5, 0, 1), "a sks dog in the snow": (0, 1, 1)}
    backbones = replace(stubs, clip=StubEncoder(id="clip", texts=texts))
    values = summary(evaluate(pictures, backbones, CFG))
    assert list(values) == list(COLUMNS)

    g = [path for paths in pictures.samples.values() for path in paths]
    to_real = [[cosine(path, real) for real in pictures.real] for path in g]
    between_real = cosine(*pictures.real)

    def to_text(path: Path, text: str) -> float:
        x, y = colour_of(path), np.array(texts.get(text, (1, 1, 1)))
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    clip_t = [to_text(p, prompt.replace("sks ", "")) for prompt, paths in pictures.samples.items() for p in paths]
    clip_t_token = [to_text(p, prompt) for prompt, paths in pictures.samples.items() for p in paths]
    pres = np.mean([cosine(c, r) for c in pictures.class_images for r in pictures.real])
    pres_base = np.mean([cosine(c, r) for c in pictures.class_images_base for r in pictures.real])
    expected = {
        "dino": np.mean(to_real),
        "clip_i": np.mean(to_real),
        "clip_t": np.mean(clip_t),
        "clip_t_token": np.mean(clip_t_token),
        "pres": pres,
        "pres_base": pres_base,
        "pres_delta": pres - pres_base,
        "div": np.mean([1.0, 0.0]),
        "div_prior": 1.0,
        "dino_real": between_real,
        "clip_i_real": between_real,
        "dino_max": np.mean(np.max(to_real, axis=1)),
        "copy_rate": np.mean(np.max(to_real, axis=1) > between_real),
        "n_missing": 0,
        "n_blank": 0,
    }
    assert values == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 6) for value in values.values()}) >= 10, "the columns must be told apart"
    assert 0 < values["copy_rate"] < 1


def test_base_and_real_rows_stand_beside_the_run(pictures: Pictures, stubs: Backbones) -> None:
    rows = evaluate(pictures, stubs, CFG).rows
    g = [path for paths in (pictures.base_samples or {}).values() for path in paths]
    assert rows["base"]["dino"].value == pytest.approx(np.mean([cosine(a, r) for a in g for r in pictures.real]))
    assert rows["base"]["pres"].value == rows["run"]["pres_base"].value
    among = {"dino": rows["run"]["dino_real"], "clip_i": rows["run"]["clip_i_real"]}
    assert {name: rows["real"][name] for name in among} == among and set(rows["real"]) == {*among, "clip_t"}

    assert "pres_delta" not in rows["base"]
    without = evaluate(replace(pictures, base_samples=None, class_images_base=()), stubs, CFG)
    assert "base" not in without.rows
    assert nan_columns(without) == dict.fromkeys(("pres_base", "pres_delta"), "no class images of the base model")


def test_the_oracle_is_a_row_and_nothing_else_changes(pictures: Pictures, stubs: Backbones) -> None:
    plain = evaluate(pictures, stubs, CFG)
    report = evaluate(replace(pictures, oracle_samples=pictures.base_samples), stubs, CFG)
    assert "oracle" not in plain.rows
    for column in ("dino", "clip_i", "clip_t", "div"):
        assert report.rows["oracle"][column] == report.rows["base"][column]
    assert "pres" not in report.rows["oracle"]
    assert {name: row for name, row in report.rows.items() if name != "oracle"} == plain.rows
    assert (report.images, report.prompts) == (plain.images, plain.prompts), "the run's pictures alone"


def test_real_images_score_under_prompts_as_samples_would_that_are_copies_of_them(
    pictures: Pictures, stubs: Backbones
) -> None:
    stubs = replace(stubs, clip=StubEncoder(texts={"a dog in the snow": (1, 2, 0), "a red dog": (5, 0, 1)}))
    of_real = evaluate(pictures, stubs, CFG).rows["real"]["clip_t"]
    copies = {
        prompt: [
            paint(path.parent / f"{len(prompt)}-{path.name}", tuple(int(c) for c in colour_of(path)), note=prompt)  # type: ignore[arg-type]  # three of them
            for path in pictures.real
        ]
        for prompt in pictures.samples
    }
    shown = evaluate(replace(pictures, samples=copies), stubs, CFG).rows["run"]["clip_t"]
    assert of_real.value == pytest.approx(shown.value, abs=1e-6) and of_real.n == shown.n == len(copies)
    assert (of_real.low, of_real.high) == pytest.approx((shown.low, shown.high), abs=1e-6)
    without = evaluate(replace(pictures, real=()), stubs, CFG).rows["real"]["clip_t"]
    assert math.isnan(without.value) and without.reason == "no real images"


def test_a_sample_equal_to_the_one_real_image_scores_one(tmp_path: Path, stubs: Backbones, pictures: Pictures) -> None:
    same = [paint(tmp_path / f"g{k}.png", (255, 0, 0), note=str(k)) for k in (0, 1)]
    report = evaluate(replace(pictures, real=pictures.real[:1], samples={"a sks dog": same}), stubs, CFG)
    values = summary(report)
    assert values["dino"] == values["clip_i"] == values["dino_max"] == pytest.approx(1)
    assert values["div"] == 0
    few = dict.fromkeys(("copy_rate", "dino_real", "clip_i_real"), "fewer than two real images")
    assert nan_columns(report) == few and values["pres"] > 0


def test_diversity_is_a_mean_over_prompts_not_over_pooled_pairs(
    tmp_path: Path, stubs: Backbones, pictures: Pictures
) -> None:
    red = {"p": (0, 1, 3), "q": (5, 5)}
    samples = {p: [paint(tmp_path / p / f"{i}.png", (x, 9, 9)) for i, x in enumerate(xs)] for p, xs in red.items()}
    report = evaluate(replace(pictures, samples=samples), stubs, CFG)
    assert summary(report)["div"] == pytest.approx(1.0)
    pooled = [abs(x - y) for xs in red.values() for x, y in combinations(xs, 2)]
    assert np.mean(pooled) == 1.5, "what a mean over pooled pairs would say"


def test_prompts_images_groups_and_copies_are_recorded(pictures: Pictures, stubs: Backbones) -> None:
    report = evaluate(pictures, stubs, CFG)
    prompt = next(score for score in report.prompts if score.row == "run" and score.prompt == "a red sks dog")
    images = [image for image in report.images if image.row == "run" and image.prompt == "a red sks dog"]
    assert [(image.index, Path(image.path).name) for image in images] == [(0, "1-0.png"), (1, "1-1.png")]
    assert prompt.group == "property" and prompt.n == 2 and prompt.values["div"] == 0
    assert prompt.values["dino"] == pytest.approx(np.mean([image.values["dino"] for image in images]))
    assert report.groups["property"]["dino"].value == pytest.approx(prompt.values["dino"])
    assert set(report.groups) == {"recontextualisation", "property"}
    for image in images:
        nearest = max(pictures.real, key=lambda real: cosine(Path(image.path), real))
        assert image.nearest == str(nearest)
        assert image.values["dino_max"] == pytest.approx(cosine(Path(image.path), nearest))
    assert report.copy_threshold == pytest.approx(cosine(*pictures.real))
    nearer = {i.path for i in report.images if i.row == "run" and i.values["dino_max"] > report.copy_threshold}
    assert {copy.path for copy in report.copies} == nearer == set(map(str, pictures.samples["a red sks dog"]))
    similarities = [copy.similarity for copy in report.copies]
    assert similarities == sorted(similarities, reverse=True)
    assert report.rows["run"]["copy_rate"].value == len(report.copies) / 4
    assert (report.token, report.class_noun, report.metric_version) == ("sks", "dog", 1)
    assert report.backbones == {"dino": "dino", "clip": "clip", "lpips": "stub"}


def test_intervals_hold_their_values_and_repeat(pictures: Pictures, stubs: Backbones) -> None:
    first, again = evaluate(pictures, stubs, CFG), evaluate(pictures, stubs, CFG)
    assert first.to_json() == again.to_json()
    for column in ("dino", "clip_i", "clip_t", "div", "pres", "pres_delta"):
        estimate = first.rows["run"][column]
        assert estimate.low <= estimate.value <= estimate.high and estimate.n == 2, column


def test_every_picture_has_its_values(pictures: Pictures, stubs: Backbones) -> None:
    report = evaluate(pictures, stubs, CFG)
    for row in ("run", "base"):
        values = [image.values["dino"] for image in report.images if image.row == row]
        assert len(values) == 4 and sum(values) / 4 == pytest.approx(report.rows[row]["dino"].value)
        of_class = [image.values for image in report.class_images if image.row == row]
        assert len(of_class) == 2
        for column in ("pres", "div_prior"):
            mean = sum(values[column] for values in of_class) / 2
            assert mean == pytest.approx(report.rows[row][column].value), "its part of the mean"
    assert {scores.prompt: scores.values["div"] for scores in report.prompts if scores.row == "run"} == {
        "a sks dog in the snow": pytest.approx(1),
        "a red sks dog": 0,
    }
    assert Report.from_json(report.to_json()).class_images == report.class_images


def test_nothing_depends_on_the_order_of_anything(tmp_path: Path, pictures: Pictures, stubs: Backbones) -> None:
    more = {f"a sks dog, {p}": [paint(tmp_path / f"{p}{k}.png", (40 * p, 50, k)) for k in (1, 3)] for p in range(5)}
    pictures = replace(pictures, samples={**pictures.samples, **more})
    turned = replace(
        pictures,
        real=pictures.real[::-1],
        samples={prompt: pictures.samples[prompt][::-1] for prompt in reversed(list(pictures.samples))},
        class_images=pictures.class_images[::-1],
        class_images_base=pictures.class_images_base[::-1],
    )
    for column, estimate in evaluate(pictures, stubs, CFG).rows["run"].items():
        other = evaluate(turned, stubs, CFG).rows["run"][column]
        assert other.value == pytest.approx(estimate.value, abs=1e-9), column
        if not column.startswith(("pres", "div_prior")):  # these resample class images by position, as their seeds
            assert (other.low, other.high) == pytest.approx((estimate.low, estimate.high), abs=1e-9, nan_ok=True)


def test_the_record_survives_json(pictures: Pictures, stubs: Backbones) -> None:
    report = evaluate(replace(pictures, real=pictures.real[:1]), stubs, CFG)
    text = report.to_json()
    back = Report.from_json(text)
    assert back.to_json() == text
    assert json.loads(text)["rows"]["run"]["copy_rate"]["value"] is None
    assert math.isnan(back.rows["run"]["copy_rate"].value) and back.rows["run"]["copy_rate"].reason
    assert back.rows["run"]["dino"] == report.rows["run"]["dino"] and back.images[0] == report.images[0]
    with pytest.raises(ValueError, match="metric_version 0 is not 1"):
        Report.from_json(text.replace('"metric_version": 1', '"metric_version": 0'))


# ------------------------------------------------------------------------------------------------------ edge cases


def test_without_real_images_only_their_columns_are_lost(pictures: Pictures, stubs: Backbones) -> None:
    lost = nan_columns(evaluate(replace(pictures, real=()), stubs, CFG))
    needing = ("dino", "dino_max", "copy_rate", "clip_i", "pres", "pres_base", "pres_delta", "dino_real", "clip_i_real")
    assert lost == dict.fromkeys(needing, "no real images")


def test_without_class_images_only_their_columns_are_lost(pictures: Pictures, stubs: Backbones) -> None:
    lost = nan_columns(evaluate(replace(pictures, class_images=()), stubs, CFG))
    assert lost == {
        "pres": "no class images",
        "pres_delta": "no class images",
        "div_prior": "fewer than two class images",
    }


def test_one_sample_a_prompt_has_no_diversity(pictures: Pictures, stubs: Backbones) -> None:
    single = {prompt: paths[:1] for prompt, paths in pictures.samples.items()}
    assert nan_columns(evaluate(replace(pictures, samples=single), stubs, CFG)) == {"div": "no prompt has two samples"}


def test_without_samples_the_class_columns_remain(pictures: Pictures, stubs: Backbones) -> None:
    lost = nan_columns(evaluate(replace(pictures, samples={}, base_samples=None), stubs, CFG))
    assert lost == dict.fromkeys(
        ("dino", "clip_i", "clip_t", "clip_t_token", "dino_max", "copy_rate", "div"), "no samples"
    )


def test_missing_samples_are_counted_and_too_many_are_an_error(pictures: Pictures, stubs: Backbones) -> None:
    gone = pictures.samples["a red sks dog"][0]
    rest = [path for paths in pictures.samples.values() for path in paths if path != gone]
    gone.unlink()
    with pytest.raises(ConfigError, match=rf"1 of 4 run samples are missing \({gone}\).*evaluate\.allow_partial=true"):
        evaluate(pictures, stubs, CFG)
    for cfg in (replace(CFG, allow_partial=True), replace(CFG, max_missing=0.25)):
        row = evaluate(pictures, stubs, cfg).rows["run"]
        assert row["n_missing"].value == 1 and row["n_missing"].n == 6
        assert row["dino"].value == pytest.approx(np.mean([cosine(a, r) for a in rest for r in pictures.real]))
        assert row["div"].value == pytest.approx(1) and row["div"].n == 1


def test_the_seed_of_a_picture_is_its_place_even_if_one_before_it_is_missing(
    pictures: Pictures, stubs: Backbones
) -> None:
    pictures.samples["a red sks dog"][0].unlink()
    report = evaluate(pictures, stubs, replace(CFG, allow_partial=True))
    indices = [image.index for image in report.images if (image.row, image.prompt) == ("run", "a red sks dog")]
    assert indices == [1]


def test_drift_is_taken_over_the_class_images_that_are_there(pictures: Pictures, stubs: Backbones) -> None:
    pictures.class_images[0].unlink()
    row = evaluate(pictures, stubs, replace(CFG, allow_partial=True)).rows["run"]
    assert row["pres"].n == 1 and row["pres_base"].n == 2
    assert row["pres_delta"].value == pytest.approx(row["pres"].value - row["pres_base"].value)


def test_black_pictures_are_excluded_and_counted(pictures: Pictures, stubs: Backbones) -> None:
    for path in (pictures.samples["a red sks dog"][1], pictures.class_images[0]):
        paint(path, (0, 0, 0))
    report = evaluate(pictures, stubs, CFG)
    row = report.rows["run"]
    assert row["n_blank"].value == 2 and row["n_missing"].value == 0
    assert row["div"].n == 1 and row["pres"].n == 1
    assert len([image for image in report.images if image.row == "run"]) == 3
    assert report.rows["base"]["n_blank"].value == 0


@pytest.mark.parametrize("victim", ["samples", "base_samples", "class_images"])
def test_a_generated_file_that_is_a_real_one_is_an_error(pictures: Pictures, stubs: Backbones, victim: str) -> None:
    files = getattr(pictures, victim)
    path: Path = files[0] if victim == "class_images" else files["a red sks dog"][0]
    path.write_bytes(pictures.real[0].read_bytes())
    with pytest.raises(ConfigError, match=rf"{path}: .* byte-identical to the real image {pictures.real[0]}"):
        evaluate(pictures, stubs, CFG)


def test_damaged_files_are_named_all_at_once(pictures: Pictures, stubs: Backbones) -> None:
    broken = [pictures.samples["a red sks dog"][0], pictures.class_images[1]]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ConfigError) as caught:
        evaluate(pictures, stubs, CFG)
    assert all(any(str(path) in problem for problem in caught.value.problems) for path in broken)


def test_a_missing_real_image_is_an_error(pictures: Pictures, stubs: Backbones) -> None:
    pictures.real[0].unlink()
    with pytest.raises(ConfigError, match=f"{pictures.real[0]}: this real image does not exist"):
        evaluate(pictures, stubs, CFG)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_broken_embedding_is_an_error_naming_the_image(pictures: Pictures, stubs: Backbones, value: float) -> None:
    class Broken(StubEncoder):
        def embed_images(self, paths: Sequence[Path], batch_size: int = 32) -> Tensor:
            rows = super().embed_images(paths)
            rows[[path.name == "1-1.png" and path.parent.name == "on" for path in paths]] = value
            return rows

    with pytest.raises(ConfigError, match=r"on/1-1\.png: its embedding is"):
        evaluate(pictures, replace(stubs, dino=Broken(id="dino")), CFG)


@pytest.mark.parametrize(
    ("backbone", "columns"),
    [
        ("dino", "dino dino_max copy_rate pres pres_base pres_delta dino_real"),
        ("clip", "clip_i clip_t clip_t_token clip_i_real"),
        ("lpips", "div div_prior"),
    ],
)
def test_a_backbone_fails_alone(
    pictures: Pictures, stubs: Backbones, backbone: str, columns: str, caplog: pytest.LogCaptureFixture
) -> None:
    getattr(stubs, backbone).error = torch.OutOfMemoryError("12 GiB wanted")
    report = evaluate(pictures, stubs, CFG)
    reason = f"{backbone} failed: OutOfMemoryError: 12 GiB wanted"
    assert nan_columns(report) == dict.fromkeys(columns.split(), reason)
    assert f"{backbone} failed" in caplog.text
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


def test_a_backbone_that_fails_halfway_leaves_no_mean_over_the_first_half(pictures: Pictures, stubs: Backbones) -> None:
    class Fading(StubDistance):
        calls = 0

        def mean_distances(self, paths: Sequence[Path], batch_size: int = 32) -> FloatArray:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of breath")
            return super().mean_distances(paths)

    report = evaluate(pictures, replace(stubs, lpips=Fading()), CFG)
    assert nan_columns(report) == dict.fromkeys(("div", "div_prior"), "lpips failed: RuntimeError: out of breath")
    assert report.prompts[0].values["div"] == 1.0, "what was measured is kept beside its prompt"


def test_oblong_pictures_and_long_prompts_get_one_warning_each(
    tmp_path: Path, pictures: Pictures, stubs: Backbones, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a sks dog " + "and a cat " * 30
    wide = [paint(tmp_path / f"wide{k}.png", (9, 9, k), size=(12, 8)) for k in range(2)]
    with caplog.at_level(logging.WARNING):
        report = evaluate(replace(pictures, samples={long: wide}), stubs, CFG)
    assert len(report.notes) == len(caplog.records) == 2
    assert report.notes[0].startswith("2 pictures are not square") and "exceed 77 tokens" in report.notes[1]


def test_random_weights_always_show(pictures: Pictures, stubs: Backbones) -> None:
    random = replace(stubs, lpips=StubDistance(random=True))
    assert evaluate(pictures, stubs, CFG).label is None
    assert evaluate(pictures, stubs, replace(CFG, label="storybook")).label == "storybook"
    assert evaluate(pictures, random, CFG).label == "random weights"
    assert evaluate(pictures, random, replace(CFG, label="storybook")).label == "storybook, random weights"


# ------------------------------------------------------------------------------------------------- features, cache


def test_features_are_computed_once_by_content_and_kept(tmp_path: Path, pictures: Pictures, stubs: Backbones) -> None:
    cache = DiskCache(tmp_path / "cache")
    first = evaluate(pictures, stubs, CFG, cache)
    assert isinstance(stubs.dino, StubEncoder) and len(stubs.dino.requests) == 2 + 8 + 4
    stubs.dino.requests.clear()
    paint(pictures.samples["a red sks dog"][0], (200, 100, 50))
    changed = evaluate(pictures, stubs, CFG, cache)
    assert stubs.dino.requests == ["1-0.png"], "one file has new content"
    assert changed.rows["run"]["dino"].value != first.rows["run"]["dino"].value
    assert changed.to_json() == evaluate(pictures, stubs, CFG).to_json()
    other = replace(stubs, dino=StubEncoder(id="another"))
    evaluate(pictures, other, CFG, cache)
    assert isinstance(other.dino, StubEncoder) and len(other.dino.requests) == 14, "another backbone shares nothing"


class TestAReportIsFoundAgain:
    """By the content of its pictures, whatever they are called now."""

    BROKEN = Backbones(
        StubEncoder(id="dino", error=AssertionError("computed again")),
        StubEncoder(id="clip", error=AssertionError("computed again")),
        StubDistance(error=AssertionError("computed again")),
    )

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "store")

    def test_in_another_folder(self, tmp_path: Path, pictures: Pictures, stubs: Backbones, store: Store) -> None:
        first = find_or_evaluate(pictures, stubs, CFG, store)
        assert first.copies and any(image.nearest for image in first.images)

        def moved(path: Path) -> Path:
            target = tmp_path / "elsewhere" / path.relative_to(tmp_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            return target

        def all_moved(samples: Mapping[str, Sequence[Path]] | None) -> dict[str, list[Path]]:
            return {prompt: [moved(path) for path in paths] for prompt, paths in (samples or {}).items()}

        elsewhere = replace(
            pictures,
            real=tuple(map(moved, pictures.real)),
            samples=all_moved(pictures.samples),
            base_samples=all_moved(pictures.base_samples),
            class_images=tuple(map(moved, pictures.class_images)),
            class_images_base=tuple(map(moved, pictures.class_images_base)),
        )
        report = find_or_evaluate(elsewhere, self.BROKEN, CFG, store)
        assert report.to_json() == first.to_json().replace(str(tmp_path), str(tmp_path / "elsewhere"))
        assert replace(report, cost={}).to_json() == evaluate(elsewhere, stubs, CFG).to_json()
        assert report.cost["seconds"] and report.cost == first.cost, "what is found cost what it did when it was made"

    @pytest.mark.parametrize("change", ["picture", "order", "seed", "label", "backbone", "library", "code", "group"])
    def test_not_when_anything_else_changed(
        self, pictures: Pictures, stubs: Backbones, store: Store, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        find_or_evaluate(pictures, stubs, CFG, store)
        other, cfg = pictures, CFG
        if change == "picture":
            paint(pictures.samples["a red sks dog"][0], (1, 2, 3))
        elif change == "order":
            other = replace(pictures, class_images=pictures.class_images[::-1])
        elif change == "seed":
            cfg = replace(CFG, seed=1)
        elif change == "label":
            cfg = replace(CFG, label="another")
        elif change == "backbone":
            stubs = replace(stubs, dino=StubEncoder(id="other weights"))
        elif change == "library":
            monkeypatch.setattr("dbexp.core.provenance.package_versions", lambda: {"numpy": "0"})
        elif change == "group":
            other = replace(pictures, groups={})
        else:
            monkeypatch.setattr(cached, "_CODE", "other formulas")
        report = find_or_evaluate(other, stubs, cfg, store)
        assert len(list((store.root / "evaluate").glob("??/*/report.json"))) == 2
        assert replace(report, cost={}).to_json() == evaluate(other, stubs, cfg).to_json()

    def test_not_when_a_backbone_failed(self, pictures: Pictures, stubs: Backbones, store: Store) -> None:
        short = replace(stubs, lpips=StubDistance(error=RuntimeError("out of memory")))
        assert math.isnan(summary(find_or_evaluate(pictures, short, CFG, store))["div"])
        assert not math.isnan(summary(find_or_evaluate(pictures, stubs, CFG, store))["div"])

    def test_its_warnings_are_told_again(
        self, tmp_path: Path, pictures: Pictures, stubs: Backbones, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        wide = (*pictures.real, paint(tmp_path / "wide.png", (9, 9, 9), size=(16, 8)))
        for backbones in (stubs, self.BROKEN):
            caplog.clear()
            find_or_evaluate(replace(pictures, real=wide), backbones, CFG, store)
            assert "1 pictures are not square and are center-cropped, such as wide.png" in caplog.text


def test_broken_features_are_not_kept(tmp_path: Path, pictures: Pictures, stubs: Backbones) -> None:
    class Broken(StubEncoder):
        def embed_images(self, paths: Sequence[Path], batch_size: int = 32) -> Tensor:
            return super().embed_images(paths) * math.nan

    cache = DiskCache(tmp_path / "cache")
    with pytest.raises(ConfigError):
        evaluate(pictures, replace(stubs, dino=Broken(id="dino")), CFG, cache)
    assert not math.isnan(summary(evaluate(pictures, stubs, CFG, cache))["dino"])


# --------------------------------------------------------------------------------------------- the real backbones

TINY = EvaluateConfig(
    dino=DinoConfig(
        weights="random",
        kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
        resize=40,
        crop=32,
    ),
    clip=ClipConfig(
        name="tiny",
        weights="random",
        kwargs={
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        },
    ),
    lpips=LpipsConfig(net="squeeze", trunk="random", size=64),
    resamples=200,
)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Backbones]:
    yield load_backbones(TINY, torch.device("cpu"))


def noise(path: Path, seed: int, size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def noises(tmp_path: Path) -> Pictures:
    prompts = ["a sks dog in the jungle", "a sks dog wearing a red hat", "a purple sks dog"]

    def sampled(folder: str, start: int) -> dict[str, list[Path]]:
        return {
            prompt: [noise(tmp_path / folder / f"{p}-{k}.png", start + 4 * p + k) for k in range(4)]
            for p, prompt in enumerate(prompts)
        }

    return Pictures(
        real=tuple(noise(tmp_path / f"real/{i}.png", i, 80) for i in range(4)),
        samples=sampled("on", 100),
        base_samples=sampled("off", 200),
        class_images=tuple(noise(tmp_path / f"c/{i}.png", 300 + i) for i in range(10)),
        class_images_base=tuple(noise(tmp_path / f"b/{i}.png", 400 + i) for i in range(10)),
        token="sks",
        class_noun="dog",
        groups=dict(zip(prompts, ("recontextualisation", "accessory", "property"), strict=True)),
    )


def test_the_whole_table_on_real_networks(tmp_path: Path, noises: Pictures, tiny: Backbones) -> None:
    report = evaluate(noises, tiny, TINY, DiskCache(tmp_path / "cache"))
    assert report.label == "random weights"
    for row in report.rows.values():
        for name, estimate in row.items():
            column = COLUMNS[name]
            assert column.lower - 1e-9 <= estimate.value <= column.upper + 1e-9, name
            if estimate.n > 2 and not name.startswith("n_"):
                assert estimate.low <= estimate.value <= estimate.high, name
    assert report.rows["run"]["div"].value > 0.01 and report.rows["run"]["div_prior"].n == 10
    assert [score.n for score in report.prompts] == [4] * 6 and len(report.images) == 24
    assert Report.from_json(report.to_json()).to_json() == report.to_json()

    cached = evaluate(noises, tiny, TINY, DiskCache(tmp_path / "cache"))
    assert summary(cached) == pytest.approx(summary(report), abs=1e-12)
    one_by_one = evaluate(noises, tiny, replace(TINY, batch_size=1))
    assert summary(one_by_one) == pytest.approx(summary(report), abs=1e-5)


def test_backbones_are_loaded_once_per_process(tiny: Backbones) -> None:
    assert load_backbones(replace(TINY, label="another", resamples=7), torch.device("cpu")) is tiny


def test_all_bad_backbones_are_reported_at_once() -> None:
    bad = replace(
        TINY,
        dino=replace(TINY.dino, name="nonsense"),
        clip=replace(TINY.clip, weights="/no/clip.pt"),
        lpips=replace(TINY.lpips, trunk="/no/trunk.pth"),
    )
    with pytest.raises(ConfigError) as caught:
        load_backbones(bad, torch.device("cpu"))
    fields = ("evaluate.dino.name", "evaluate.clip.weights", "evaluate.lpips.trunk")
    assert all(problem.startswith(f) for problem, f in zip(caught.value.problems, fields, strict=True))


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not part of the repository")
def test_photographs_are_read_as_they_come(tmp_path: Path, noises: Pictures, tiny: Backbones) -> None:
    real = tuple(sorted((PHOTOGRAPHS / "dog3").glob("*.jpg"))[:3])
    crops = []
    for k, path in enumerate(real[:2]):
        with Image.open(path) as image:
            image.convert("RGB").resize((64, 64)).save(tmp_path / f"crop{k}.png")
        crops.append(tmp_path / f"crop{k}.png")
    report = evaluate(replace(noises, real=real, samples={"a sks dog": crops}), tiny, TINY)
    assert all(not math.isnan(estimate.value) for estimate in report.rows["run"].values())
    assert report.rows["run"]["dino"].value > report.rows["base"]["dino"].value, "photographs resemble photographs"
