"""Texts that are too long for a text encoder: a token that is cut off is an error, other cuts are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from transformers import CLIPTokenizer

from dbexp import dataset
from dbexp.config.families import FAMILIES
from dbexp.config.schema import Config, DatasetConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.pipeline import prepare
from dbexp.pipeline.requests import texts
from dbexp.sample.prompts import choose
from dbexp.sample.reading import PROMPTS, Reading, Text, look, require
from tests import builders
from tests.models.checkpoints import Checkpoints, original

DOG = DatasetConfig(name="d", path="unused", token="sks", class_noun="dog", live=True)
SNOW = "in the snow "
Look = Callable[..., Reading]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("families"))
    found: dict[str, Model] = {}

    def of(family: str) -> Model:
        if family not in found:
            found[family] = checkpoints.open(family, original(family))
        return found[family]

    return of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def long(model: Model, before: str = "", after: str = "") -> str:
    """A text with more tokens than any encoder reads, between two others."""
    count = model.room // 3 + 9
    while len(model.cuts(SNOW * count)) < len(model.family.encoders):
        count += 9
    return f"{before} {SNOW * count}{after}".strip()


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_two_tokens_that_are_cut_off_are_one_and_the_same(
        self, families: Callable[[str], Model], store: Store, family: str
    ) -> None:
        """That is how two tokens gave the same LoRA: what is encoded is the same to the bit."""
        model = families(family)
        captions = [long(model, "a photo", f"of {token} dog") for token in ("sks", "zyx")]
        one, other = (model.tokenize([caption]) for caption in captions)
        assert all(torch.equal(one[name], other[name]) for name in one)
        for token, caption in zip(("sks", "zyx"), captions, strict=True):
            read = look([Text("dataset.prompt", caption)], token, model, store)
            (problem,) = read.problems
            assert problem.startswith(f"dataset.prompt={caption!r}: it has ")
            remedy = "put it further to the front, or shorten the text"
            assert problem.endswith(f"which cuts off the token {token!r}; {remedy}")
            assert not read.cuts
            with pytest.raises(ConfigError) as caught:
                require(read)
            assert caught.value.problems == read.problems

    def test_two_tokens_that_are_read_are_not(
        self, families: Callable[[str], Model], store: Store, family: str
    ) -> None:
        model = families(family)
        captions = [long(model, f"a photo of {token} dog") for token in ("sks", "zyx")]
        one, other = (model.tokenize([caption])["ids"] for caption in captions)
        assert not torch.equal(one, other)
        read = look([Text("dataset.prompt", captions[0])], "sks", model, store)
        assert not read.problems
        (sentence,) = read.cuts
        count = model.token_count(captions[0])
        assert sentence.startswith(f"dataset.prompt={captions[0]!r}: it has {count} tokens: ")
        assert sentence.endswith(f"only the first {model.room}")
        require(read)

    def test_the_last_place_that_is_read(self, families: Callable[[str], Model], store: Store, family: str) -> None:
        """A word further, and the token is cut off; a token of several pieces is cut off by half as well."""
        model, encoders = families(family), len(FAMILIES[family].encoders)
        most = max(cut.room for cut in model.cuts(long(families(family))))  # of the encoder that reads most
        for token in ("sks", "xqzzyj"):
            lost = []
            for words in range(most - 8, most + 12):
                caption = "a " * words + token
                one, other = (model.tokenize([text]) for text in (caption, caption[:-1] + "z"))
                same = all(torch.equal(one[name], other[name]) for name in one)
                lost.append(bool(look([Text("x", caption)], token, model, store).problems))
                assert lost[-1] == (sum(cut.read < len(caption) for cut in model.cuts(caption)) == encoders)
                assert lost[-1] or not same, "what ends otherwise is read otherwise, where the end is read"
            assert not lost[0] and lost[-1] and lost == sorted(lost)

    def test_what_fits_is_not_cut(self, families: Callable[[str], Model], family: str) -> None:
        model = families(family)
        assert model.cuts("a photo of sks dog") == model.cuts("") == model.cuts(" ") == ()


def test_each_encoder_has_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    folder = checkpoints.copy("sdxl")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer_2", model_max_length=20)
    tokenizer.save_pretrained(folder / "tokenizer_2")
    model = checkpoints.open("sdxl")
    assert model.room == 18, "states of both stand side by side"
    assert {cut.encoder for cut in model.cuts("a " * 19)} == {"text_encoder", "text_encoder_2"}
    assert model.tokenize(["a " * 90])["ids"].shape == model.tokenize(["a"])["ids_2"].shape == (1, 20)
    (problem,) = look([Text("prior.prompt", "a " * 19 + "sks")], "sks", model, Store(tmp_path / "notes")).problems
    assert "it has 20 tokens: text_encoder and text_encoder_2 read only the first 18" in problem


def test_a_tokenizer_that_knows_no_limit(tmp_path: Path) -> None:
    """Then the encoder's number of positions is one: its tables end there."""
    checkpoints = Checkpoints(tmp_path)
    folder = checkpoints.copy("sd")
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    model = checkpoints.open("sd")
    assert model.room == 30
    assert model.encode(model.tokenize(["a " * 100]))["states"].shape == (1, 32, 16)


class TestNotes:
    def look(self, prompts: Any, model: Model, store: Store, token: str = "sks") -> Reading:
        prompts = [prompt.text for prompt in choose(prompts, replace(DOG, token=token))]
        return look([Text(PROMPTS, prompt) for prompt in prompts], token, model, store)

    def test_prompts_that_miss_the_subject_or_are_too_long(self, store: Store) -> None:
        prompts = ["a {token}, red", "a sksy dog", "a {token} {class} " + SNOW * 20]
        read = self.look(prompts, builders.model(), store)
        (note,) = read.notes
        assert note.startswith("'a sksy dog' does not contain the token 'sks'")
        (cut,) = read.cuts
        assert "has 63 tokens: the text encoder reads only the first 30" in cut
        assert self.look("auto", builders.model(), store) == Reading((), (), ())

    def test_a_token_of_several_pieces(self, store: Store) -> None:
        (note,) = self.look(["a {token} dog"], builders.model(), store, token="xqzzyj").notes
        assert note.startswith("dataset.token=xqzzyj is ") and "such as sks, binds faster" in note

    def test_capitals(self, store: Store) -> None:
        (note,) = self.look(["a {token} dog"], builders.model(), store, token="SKS").notes
        assert note == "dataset.token=SKS: this text encoder knows no capitals, and reads it as sks"

    def test_capitals_that_are_read(self, families: Callable[[str], Model], store: Store) -> None:
        assert not look([], "SKS", families("z_image"), store).notes

    def test_they_are_counted_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        model = builders.model()
        first = self.look(["a red dog"], model, store)
        monkeypatch.setattr(model, "token_count", None)
        assert first.notes and self.look(["a red dog"], model, store) == first

    def test_a_store_that_may_not_be_written(self, tmp_path: Path) -> None:
        """What is noted there saves time, and no more."""
        (tmp_path / "store").write_text("no folder")
        assert self.look(["a red dog"], builders.model(), Store(tmp_path / "store")).notes


class TestRuns:
    """Every text of a run that is encoded."""

    FIELDS = ("dataset.prompt", "prior.prompt", "sample.class_prompt", "sample.prompts", "sample.negative_prompt")

    @pytest.fixture
    def config(self, checked: Callable[..., Config], tmp_path: Path) -> Config:
        return checked("model=random", *builders.overrides(tmp_path / "store"), "sample.negative_prompt=blurry")

    def test_which(self, config: Config) -> None:
        assert [text.field for text in texts(config)] == [*self.FIELDS[:4], *self.FIELDS[3:]]
        assert texts(config)[0].text == "a photo of sks dog"
        for less in (
            replace(config, prior=replace(config.prior, weight=0.0)),
            replace(config, sample=replace(config.sample, class_images=0)),
            replace(config, sample=replace(config.sample, guidance_scale=1)),
        ):
            assert len(texts(less)) == len(texts(config)) - 1

    def changed(self, config: Config, text: str) -> Config:
        for path in self.FIELDS:
            group, name = path.split(".")
            value: Any = [text] if name == "prompts" else text
            config = replace(config, **{group: replace(getattr(config, group), **{name: value})})
        return config

    def test_all_that_lose_the_token_are_told_at_once_before_anything_is_made(self, config: Config) -> None:
        store = Store(Path(str(config.store)))
        with pytest.raises(ConfigError) as caught:
            prepare.load(self.changed(config, SNOW * 15 + "{token}"), store)
        # what is not filled in is no token
        assert [problem.split("=")[0] for problem in caught.value.problems] == list(self.FIELDS[:4])
        assert {entry.name for entry in store.root.iterdir()} <= {"hashes", "tokens"}

    def test_other_cuts_are_told(self, config: Config) -> None:
        store = Store(Path(str(config.store)))
        long_one = self.changed(config, "{token} " + SNOW * 15)
        model, _ = prepare.load(long_one, store)
        subject = dataset.load(long_one.dataset, store)
        told = [sentence for sentence in prepare.warnings(long_one, subject, model, store) if "tokens:" in sentence]
        assert [sentence.split("=")[0] for sentence in told] == list(self.FIELDS)


def test_every_setting_that_is_called_a_prompt_is_looked_at() -> None:
    groups = {name: kind for name, kind in get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}
    found = {
        f"{name}.{field.name}"
        for name, kind in groups.items()
        for field in dataclasses.fields(kind)
        if "prompt" in field.name and field.name != "images_per_prompt"
    }
    assert found == set(TestRuns.FIELDS)
