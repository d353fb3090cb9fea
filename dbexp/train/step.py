"""The optimizer steps of all lanes that are due: what they have in common is computed for all at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dbexp.core.device import mean_over_processes
from dbexp.train import optimizer
from dbexp.train.lane import Lane

_EPSILON = 1e-6
"""Beside the norm that gradients are clipped by, as in torch's `clip_grad_norm_`."""


@torch.no_grad()
def of_lanes(lanes: Sequence[Lane]) -> Tensor:
    """One optimizer step of every lane; their gradients are zero afterwards. Nothing here waits for the device.

    Each gradient is scaled down to norm `train.max_grad_norm` where it is longer. Under fp16 it is divided by the
    lane's loss scale first, and a lane whose gradient overflowed makes no step.

    Returns:
        Norms of the gradients before that, fp32 [n].
    """
    gradients = [row for lane in lanes for row in lane.adapter.gradients]
    mean_over_processes(gradients)
    parts = torch.stack(torch._foreach_norm(gradients)).view(len(lanes), -1)
    norms: Tensor = torch.linalg.vector_norm(parts, dim=1)
    scales = [lane.loss_scale for lane in lanes if lane.loss_scale is not None]
    overflows: Tensor | None = None
    if scales:
        scale = torch.stack([each.scale for each in scales])
        norms = norms / scale
        overflows = norms.isfinite().logical_not().float()
    divisors = ((norms + _EPSILON) / torch.stack([lane.limit for lane in lanes])).clamp(min=1)
    if scales:
        divisors = divisors * scale
    for number, (lane, divisor) in enumerate(zip(lanes, divisors.unbind(), strict=True)):
        lane.optimizer.step(lane.lr_factor, divisor, None if overflows is None else overflows[number])
    if overflows is not None:
        optimizer.update(scales, overflows)
    torch._foreach_zero_(gradients)
    return norms
