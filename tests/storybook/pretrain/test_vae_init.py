"""The encoder is the principal components of blocks, up to a few percent that its norm layer bends them."""

from __future__ import annotations

import torch

from dbexp.storybook.pretrain.architecture import LATENT_CHANNELS, build_vae
from dbexp.storybook.pretrain.stream import draw_broad
from dbexp.storybook.pretrain.train_vae import to_tensor
from dbexp.storybook.pretrain.vae_init import WHITENING, block_components, start_from_components

PICTURES = to_tensor(draw_broad(0, 0, 48), torch.device("cpu"))


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    mean, components, deviations = block_components(PICTURES, 5)
    blocks = PICTURES.reshape(48, 3, 16, 4, 16, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 48)
    _, values, vectors = torch.linalg.svd(blocks - mean, full_matrices=False)
    assert torch.allclose(deviations, values[:5] / (len(blocks) - 1) ** 0.5, rtol=1e-3)
    assert torch.allclose((components * vectors[:5].T).sum(0).abs(), torch.ones(5), atol=1e-3)


def test_the_encoder_projects_blocks_on_their_components() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    start_from_components(vae, PICTURES)
    with torch.no_grad():
        posterior = vae.encode(PICTURES[:8]).latent_dist
    mean, components, deviations = block_components(PICTURES, LATENT_CHANNELS)
    blocks = PICTURES[:8].reshape(8, 3, 16, 4, 16, 4).permute(0, 2, 4, 3, 5, 1).reshape(8, 16, 16, 48)
    gains = (deviations / deviations[0]) ** (1.0 - WHITENING) / deviations
    expected = ((blocks - mean) @ components * gains).permute(0, 3, 1, 2)
    assert posterior.mean.shape == expected.shape
    # the norm layer divides by the standard deviation of each picture, which constants hold nearly still
    slope = (posterior.mean * expected).sum((2, 3)) / expected.square().sum((2, 3))
    bent = posterior.mean - slope[:, :, None, None] * expected
    assert (slope - 1).abs().max() < 0.25
    assert (bent.square().mean() / expected.square().mean()).item() < 1e-4
    assert posterior.std.max().item() < 0.06
