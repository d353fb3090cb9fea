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
def of_lanes(lanes: Sequence[Lane], rates: Tensor, stands: Tensor | None = None) -> Tensor:
    """One optimizer step of lanes; their gradients are zero afterwards. Nothing here waits for the device.

    Each gradient is scaled down to norm `train.max_grad_norm` where it is longer. Under fp16 it is divided by the
    lane's loss scale first, and a lane whose gradient overflowed makes no step.

    Args:
        rates: learning rates by slot and part, [K, parts].
        stands: by slot, fp32 [K]: 1: the lane makes no step, and keeps its gradient; None: all make one.

    Returns:
        Norms of the gradients before that, fp32 [n].
    """
    slots = [lane.adapter.slot for lane in lanes]
    gradients = [row for lane in lanes for row in lane.adapter.gradients]
    mean_over_processes(gradients)
    parts = torch.stack(torch._foreach_norm(gradients)).view(len(lanes), -1)
    norms: Tensor = torch.linalg.vector_norm(parts, dim=1)
    scales = [lane.loss_scale for lane in lanes if lane.loss_scale is not None]
    standing = None if stands is None else torch.stack([stands[slot] for slot in slots])
    skips, overflows = standing, None
    if scales:
        scale = torch.stack([each.scale for each in scales])
        norms = norms / scale
        overflows = norms.isfinite().logical_not().float()
        skips = overflows if standing is None else torch.maximum(overflows, standing)
    divisors = ((norms + _EPSILON) / torch.stack([lane.limit for lane in lanes])).clamp(min=1)
    if scales:
        divisors = divisors * scale
    for number, (lane, divisor) in enumerate(zip(lanes, divisors.unbind(), strict=True)):
        skip = None if skips is None else skips[number]
        if isinstance(lane.optimizer, optimizer.Library):
            lane.optimizer.step(lane.rates, divisor, skip)
        else:
            lane.optimizer.step(rates[slots[number]], divisor, skip)
    if overflows is not None:
        optimizer.update(scales, overflows, standing)
    if stands is None:
        torch._foreach_zero_(gradients)
    else:
        for stack in lanes[0].adapter.stacks.values():
            stack.gradients.masked_fill_((stands == 0)[:, None], 0.0)
    return norms
