"""Random-weight pipelines: genuine classes, repeatable weights, a tokenizer that knows its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from dbexp.core.hashing import file_hash
from dbexp.models import random_weights
from dbexp.models.random_weights import SMALL, TINY, TINY_V, Size
from tests import builders


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_hash(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_seed_gives_the_same_files(tmp_path: Path) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = hashes(random_weights.build(tmp_path / "a"))
    assert torch.equal(torch.get_rng_state(), state), "nobody else's randomness moves"
    torch.manual_seed(5)
    assert hashes(random_weights.build(tmp_path / "b")) == first
    other = hashes(random_weights.build(tmp_path / "c", seed=1))
    assert {name for name in first if first[name] != other[name]} == {
        name for name in first if name.endswith(".safetensors")
    }


@pytest.mark.parametrize("size", [TINY, TINY_V, SMALL])
def test_a_stock_pipeline_loads_it(size: Size) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        builders.checkpoint(size), safety_checker=None, requires_safety_checker=False
    )
    assert pipe.scheduler.config.prediction_type == size.prediction_type
    assert pipe.vae.config.scaling_factor == 0.18215
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == size.resolution
    assert pipe.tokenizer.model_max_length == size.max_tokens == pipe.text_encoder.config.max_position_embeddings
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.hidden_size


def test_size_is_json() -> None:
    assert json.loads(json.dumps(SMALL.to_json())) == SMALL.to_json()
    assert SMALL.to_json() != TINY.to_json() != TINY_V.to_json()


class TestTokenizer:
    @pytest.fixture(scope="class")
    @classmethod
    def tokenizer(cls) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(builders.checkpoint() / "tokenizer")

    @pytest.mark.parametrize("word", random_weights.WORDS)
    def test_a_known_word_is_one_token(self, tokenizer: CLIPTokenizer, word: str) -> None:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1

    @pytest.mark.parametrize("text", ["zyx", "éß", "42!"])
    def test_everything_else_is_spelt(self, tokenizer: CLIPTokenizer, text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids).replace(" ", "") == text
        assert tokenizer.unk_token_id not in ids

    def test_start_and_end(self, tokenizer: CLIPTokenizer) -> None:
        ids = tokenizer("a photo of sks dog").input_ids
        assert (ids[0], ids[-1], len(ids)) == (tokenizer.bos_token_id, tokenizer.eos_token_id, 7)
        assert len(tokenizer) == tokenizer.eos_token_id + 1
