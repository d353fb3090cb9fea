"""A site: one frozen linear layer of the base with K adapters, as one operation of autograd.

Shapes: K slots, R the largest rank of any of them, N rows of a batch, `in` and `out` the site's widths.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dbexp.models.quantize import Float8Linear
from dbexp.train.stack import Stack

_Segment: TypeAlias = tuple[int, int, int, int]


class Rows:
    """Which rows of the batch each slot owns: slot k the next counts[k] rows. Set anew before every forward pass.

    Neighbouring slots with equally many rows form a segment, which one batched product serves. No row is padding.
    Threads that each send a batch of their own through the base have rows of their own.
    """

    def __init__(self) -> None:
        self._thread = threading.local()
        self._last: tuple[list[_Segment], int] = ([], 0)

    @property
    def segments(self) -> list[_Segment]:
        """(first slot, last slot + 1, first row, last row + 1)"""
        return self._now()[0]

    @property
    def total(self) -> int:
        """Rows of all slots."""
        return self._now()[1]

    def _now(self) -> tuple[list[_Segment], int]:
        # a thread that never set any is one of autograd's, which computes again what a checkpoint of memory left out
        now: tuple[list[_Segment], int] = getattr(self._thread, "value", self._last)
        return now

    def set(self, counts: Sequence[int]) -> None:
        """Give slot k counts[k] rows; 0 for a slot that sits this pass out."""
        segments, total, slot = list[_Segment](), 0, 0
        while slot < len(counts):
            last = slot
            while last < len(counts) and counts[last] == counts[slot]:
                last += 1
            rows = counts[slot] * (last - slot)
            if rows:
                segments.append((slot, last, total, total + rows))
            total += rows
            slot = last
        self._thread.value = self._last = (segments, total)


class SlotLinear(nn.Module):
    """A frozen linear layer with K adapters: y = base(x) + (x A_k^T) B_k for the rows of slot k, where B_k is
    `working` and so has the slot's scale in it.

    The backward pass adds to `Stack.arriving`, and to no `.grad`: each slot's gradient is written where it stays, and
    threads that send other slots through the layer meet nowhere.

    Args:
        base: the frozen layer.
        stack: of its part.
        site: its name in it.
        rows: shared by all sites of a part.

    Attributes:
        down: A, [K, R, in]; a leaf of autograd, so that passes are recorded where x needs no gradient.
        up: scale * B, [K, R, out].
        down_gradient, up_gradient: of these.
    """

    def __init__(self, base: nn.Linear, stack: Stack, site: str, rows: Rows) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        down, self.up = stack.site(stack.working, site)
        self.down = down.detach().requires_grad_()
        self.down_gradient, self.up_gradient = stack.site(stack.arriving, site)

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., in] -> [N, ..., out]. N must be the number of rows that `rows` was set to."""
        if x.shape[0] != self.rows.total:
            raise RuntimeError(f"{x.shape[0]} rows came, but lanes own {self.rows.total}")
        y = None if self._multiplies else self.base(x)
        adapted: Tensor = _Adapted.apply(x.to(self.down.dtype), y, self.down, self, self.rows.segments)
        return adapted

    @property
    def _multiplies(self) -> bool:
        """Whether y = x W^T + b is all that the base does; other layers know themselves how they multiply."""
        return type(self.base) in (nn.Linear, Float8Linear)

    def weight(self) -> Tensor:
        """W [out, in] of such a base, in its precision."""
        weight = self.base.weight
        return weight.to(self.base.precision) if isinstance(self.base, Float8Linear) else weight


class _Adapted(torch.autograd.Function):
    """Base and adapters of a site. Of a pass it keeps x, and x A^T [k, rows, R] of each segment."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, down: Tensor, site: SlotLinear, segments: Sequence[_Segment]
    ) -> Tensor:
        """
        Args:
            y: base(x); None: it is computed here.
            down: for autograd alone, see `SlotLinear`.
        """
        x = x.contiguous()
        out = nn.functional.linear(x, site.weight(), site.base.bias) if y is None else y.clone()
        inner = []
        for segment in segments:
            first, last, *_ = segment
            inner.append(torch.bmm(_lanes(x, segment), site.down[first:last].transpose(1, 2)))
            _lanes(out, segment).baddbmm_(inner[-1], site.up[first:last])
        ctx.save_for_backward(x, *inner)
        ctx.site, ctx.segments, ctx.has_base = site, segments, y is None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        site: SlotLinear = ctx.site
        x, *inner = ctx.saved_tensors
        gradient = gradient.contiguous()
        back = None
        if ctx.needs_input_grad[0]:
            back = gradient @ site.weight() if ctx.has_base else torch.zeros_like(x)
        for h, segment in zip(inner, ctx.segments, strict=True):
            first, last, *_ = segment
            arrived = _lanes(gradient, segment)
            through = torch.bmm(arrived, site.up[first:last].transpose(1, 2))
            site.up_gradient[first:last].baddbmm_(h.transpose(1, 2), arrived)
            site.down_gradient[first:last].baddbmm_(through.transpose(1, 2), _lanes(x, segment))
            if back is not None:
                _lanes(back, segment).baddbmm_(through, site.down[first:last])
        return back, None if ctx.has_base else gradient, None, None, None


def _lanes(batch: Tensor, segment: _Segment) -> Tensor:
    """The rows of a segment slot by slot, as a view: [N, ..., width] -> [k, rows, width]."""
    first, last, start, end = segment
    return batch[start:end].view(last - first, -1, batch.shape[-1])
