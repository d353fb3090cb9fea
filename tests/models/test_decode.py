"""Images are decoded as many at a time as memory has room for."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dbexp import models
from dbexp.core.store import Store
from dbexp.estimate.card import PretendedCard
from dbexp.models import VAE
from dbexp.models.decode import Decoder
from tests import builders

ROOM = 100 << 20


@dataclass
class Decoded:
    """What `DecoderOutput` has."""

    sample: Tensor


@dataclass
class Vae:
    """Memory suffices for so many images at once."""

    room: float
    use_tiling: bool = False
    calls: list[int] = field(default_factory=list)

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> Any:
        self.calls.append(len(z))
        if len(z) > (2 * self.room if self.use_tiling else self.room):
            raise torch.OutOfMemoryError("CUDA out of memory")
        images = z + 1
        return Decoded(images) if return_dict else (images,)


@pytest.mark.parametrize(
    ("room", "calls", "tiled"),
    [(8, [6], False), (3, [6, 3, 3], False), (2, [6, 3, 1, 1, 1, 1, 1, 1], False), (0.5, [6, 3, 1, *[1] * 6], True)],
)
def test_half_as_many_where_memory_does_not_suffice(room: float, calls: list[int], tiled: bool) -> None:
    vae = Vae(room)
    decode, latents = Decoder(vae), torch.randn(6, 4, 8, 8)
    (images,) = decode(latents, return_dict=False, generator=None)
    assert torch.equal(images, latents + 1)
    assert (vae.calls, vae.use_tiling, decode.tiled) == (calls, tiled, tiled)
    vae.calls.clear()
    assert torch.equal(decode(latents).sample, latents + 1)
    assert vae.calls == calls[-(6 // calls[-1]) :], "it is remembered"


def test_an_image_that_fits_nowhere_is_an_error() -> None:
    vae = Vae(0.1)
    with pytest.raises(torch.OutOfMemoryError):
        Decoder(vae)(torch.randn(2, 4, 8, 8))


def test_any_other_error_stays_what_it_is() -> None:
    class Broken(Vae):
        def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> Any:
            raise RuntimeError("shapes differ")

    vae = Broken(1)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Decoder(vae)(torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize(("memory", "calls"), [(10 * ROOM, [1, 5]), (4 * ROOM, [1, 3, 2]), (1.2 * ROOM, [1] * 6)])
def test_on_a_card_the_first_image_tells_how_many_fit(memory: float, calls: list[int]) -> None:
    class Large(Vae):
        def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> Any:
            torch.empty(len(z) * ROOM, dtype=torch.uint8, device=z.device)
            return super().decode(z, return_dict)

    vae = Large(99)
    with PretendedCard(memory=int(memory)):
        (images,) = Decoder(vae)(torch.zeros(6, 4, 8, 8, device="cuda"), return_dict=False)
        assert images.shape == (6, 4, 8, 8)
    assert vae.calls == calls


def test_a_base_model_decodes_so() -> None:
    model: Any = builders.model()
    vae = model.part(VAE)
    assert isinstance(vae.decode, Decoder)
    latents = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(vae.decode(latents).sample, AutoencoderKL.decode(vae, latents).sample)


def test_a_vae_that_is_let_go_leaves_memory_at_once(tmp_path: Path) -> None:
    """On a card its memory is wanted for training; Python looks for circles when it likes."""
    model = models.load(builders.model_config(), Store(tmp_path))
    vae = weakref.ref(model.part(VAE))
    gc.disable()
    try:
        model.release(VAE)
        assert vae() is None
    finally:
        gc.enable()
    models.forget()
