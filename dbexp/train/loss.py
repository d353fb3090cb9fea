"""The loss of a lane, all of it.

With prior preservation (Ruiz et al., DreamBooth, arXiv 2208.12242, equation 2), for noise eps and what the denoiser
should predict, v (the noise itself, or a velocity, as the checkpoint says):

    L = E[ w_t |v_hat(z_t, t, c) - v|^2 ] + lambda E[ w_t' |v_hat(z'_t', t', c_pr) - v'|^2 ]

z are latents of the subject's pictures with its prompt c, z' those of class pictures with the class prompt c_pr, lambda
is `prior.weight`. Expectations are means over rows, positions and channels, and over `train.grad_accum` passes. The
weights w_t are 1, or min-SNR's (Hang et al., arXiv 2303.09556, section 3.4): min(SNR, gamma) / SNR for a predicted
noise. A family has both in its file (`Model.target`, `Model.loss_weight`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dbexp.models import Model
from dbexp.train.lane import Draw, Lane


def of_rows(model: Model, weights: Tensor, prediction: Tensor, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """w_t |v_hat - v|^2 of every row, fp32 [N].

    Args:
        model: knows the target.
        weights: w_t, fp32 [N].
        prediction: [N, C, h, w].
        latents, noise: fp32 [N, C, h, w].
        times: [N].
    """
    target = model.target(latents, noise, times)
    return (prediction.float() - target).square().flatten(1).mean(1) * weights


def weights(model: Model, lane: Lane, draw: Draw) -> Tensor:
    """w_t of the rows of a lane, fp32 [n] on the CPU."""
    weight = model.loss_weight(draw.times, lane.cfg)
    return torch.ones(len(draw)) if weight is None else weight


def coefficients(lane: Lane, draw: Draw) -> list[float]:
    """What each row counts in the lane's loss: mean(instance) + lambda * mean(class), over the accumulated passes."""
    instance = [1 / len(draw.instance)] * len(draw.instance)
    prior = [lane.training.prior_weight / len(draw.prior) for _ in draw.prior]
    return [value / lane.cfg.grad_accum for value in (*instance, *prior)]
