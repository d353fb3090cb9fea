"""The encoder of the autoencoder: the principal components of 4 x 4 blocks, in a genuine `AutoencoderKL`.

The residual branches start at zero, so that the encoder is a chain of linear maps; they can move the pixels of a block
into channels, and project them. Learning by gradient what an eigenvalue problem gives costs most of a CPU's hours.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

WHITENING = 0.5
"""Power of the standard deviation that whitening removes: 1 would give fine detail the same variance as brightness."""
HOLD = 4.0
"""Size of the constant channels that keep the last group norm, and thereby the encoder, nearly linear."""
POSTERIOR_LOG_VARIANCE = -6.0
"""A narrow posterior (std 0.05): a wide one would only teach the decoder to blur."""


def block_components(pictures: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [48], components [48, count] and their standard deviations [count] of the blocks of pictures [n, 3, h, w].

    A block is flattened as (y, x, colour).
    """
    blocks = pictures.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 48)
    variances, vectors = torch.linalg.eigh(torch.cov(blocks.T))
    components = vectors.flip(1)[:, :count]
    # an eigenvector's sign is arbitrary; fixed, so that every machine starts alike
    components = components * torch.where(components.sum(0) < 0, -1.0, 1.0)
    return blocks.mean(0), components, variances.flip(0)[:count].sqrt()


@torch.no_grad()
def start_from_components(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Set an encoder with zeroed residual branches to the block components of `pictures` [n, 3, h, w] in [-1, 1]."""
    latents = vae.config.latent_channels
    mean, components, deviations = block_components(pictures, latents)
    encoder = vae.encoder
    first, second = (encoder.down_blocks[i].downsamplers[0].conv for i in range(2))
    through, fan_out = (encoder.down_blocks[i].resnets[0].conv_shortcut for i in (1, 2))
    for layer in (encoder.conv_in, first, second):  # channels that carry nothing keep their random start
        torch.nn.init.zeros_(layer.bias)
    encoder.conv_in.weight[:3] = 0.0
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1.0

    # a stride-2 kernel reads the pixels (y, x) of its 2 x 2 block at the taps (y, x)
    first.weight[:12] = 0.0
    for y in range(2):
        for x in range(2):
            for colour in range(3):
                first.weight[6 * y + 3 * x + colour, colour, y, x] = 1.0
    through.weight[:12] = 0.0
    through.bias.zero_()
    through.weight[range(12), range(12), 0, 0] = 1.0
    second.weight[:latents] = 0.0
    for row in range(4):
        for column in range(4):
            for colour in range(3):
                channel = 6 * (row % 2) + 3 * (column % 2) + colour
                pixel = components[12 * row + 3 * column + colour]
                second.weight[:latents, channel, row // 2, column // 2] = pixel / deviations
    second.bias[:latents] = -(mean @ components) / deviations
    _pass_the_nonlinearity(vae, fan_out, deviations)


def _pass_the_nonlinearity(vae: AutoencoderKL, fan_out: torch.nn.Conv2d, deviations: Tensor) -> None:
    """Carry each latent as a pair (z, -z): silu(z) - silu(-z) = z. Constants in each group hold its norm still."""
    encoder, latents, groups = vae.encoder, len(deviations), vae.config.norm_num_groups
    size = fan_out.out_channels // groups
    pairs = (size - 2) // 2
    for layer in (fan_out, encoder.conv_out, vae.quant_conv):
        layer.load_state_dict({name: torch.zeros_like(value) for name, value in layer.state_dict().items()})
    for latent in range(latents):
        group = latent // pairs
        channel = group * size + 2 + 2 * (latent % pairs)
        fan_out.weight[channel, latent] = 1.0
        fan_out.weight[channel + 1, latent] = -1.0
        carried = min(pairs, latents - group * pairs)
        spread = ((2.0 * HOLD**2 + 2.0 * carried) / size) ** 0.5
        gain = spread * (deviations[latent] / deviations[0]) ** (1.0 - WHITENING)
        encoder.conv_out.weight[latent, channel, 1, 1] = gain
        encoder.conv_out.weight[latent, channel + 1, 1, 1] = -gain
    assert fan_out.bias is not None
    for group in range(groups):
        fan_out.bias[group * size], fan_out.bias[group * size + 1] = HOLD, -HOLD
    vae.quant_conv.weight[range(2 * latents), range(2 * latents)] = 1.0
    vae.quant_conv.bias[latents:] = POSTERIOR_LOG_VARIANCE
