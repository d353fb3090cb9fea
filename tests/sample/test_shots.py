"""Seeds and file names of the images of a set."""

from __future__ import annotations

from dbexp.sample.shots import Sampling, image_seed, shots

PROMPTS = ("a sks dog", "a red sks dog")


def sampling(stream: str = "sample", seed: int = 42) -> Sampling:
    return Sampling(stream, seed, PROMPTS, 2, steps=2, guidance_scale=7.5, sampler=None, resolution=32)


def test_seeds_are_pinned() -> None:
    seed = image_seed(sampling(), "a sks dog", 0)
    assert seed == 968507446302988470, "samples of earlier versions could not be drawn again"


def test_streams_prompts_numbers_and_seeds_have_noise_of_their_own() -> None:
    seeds = {
        image_seed(sampling(stream, seed), prompt, k)
        for stream in ("sample", "class", "prior")
        for seed in (0, 1)
        for prompt in ("a dog", "a cat")
        for k in (0, 1)
    }
    assert len({seed % 2**32 for seed in seeds}) == 24, "torch's CPU generator reads the low 32 bits"


def test_every_shot_of_a_set_in_order() -> None:
    every = shots(sampling())
    assert [(shot.prompt, shot.k) for shot in every] == [(prompt, k) for prompt in PROMPTS for k in (0, 1)]
    assert [shot.seed for shot in every] == [image_seed(sampling(), shot.prompt, shot.k or 0) for shot in every]
    assert [shot.path for shot in every][1:3] == ["00-a-sks-dog/1.png", "01-a-red-sks-dog/0.png"]
    assert [shot.path for shot in shots(sampling("prior"))][:2] == ["0000.png", "0001.png"]
