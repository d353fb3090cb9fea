"""A site: one frozen linear layer of the base with K adapters, as one operation of autograd; and where the layers
around it are compiled, as one operation of the compiler's, which does the same.

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
        self.last: tuple[list[_Segment], int] = ([], 0)
        """What `set` made last, in whichever thread."""

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
        now: tuple[list[_Segment], int] = getattr(self._thread, "value", self.last)
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
        self._thread.value = self.last = (segments, total)


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
        # `data`: each with a count of its changes of its own, or autograd would take those of other sites for its own
        self.down_gradient, self.up_gradient = (view.data for view in stack.site(stack.arriving, site))

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., in] -> [N, ..., out]. N must be the number of rows that `rows` was set to."""
        compiling = torch.compiler.is_compiling()  # which knows no threads, and is used by one alone
        segments, total = self.rows.last if compiling else (self.rows.segments, self.rows.total)
        if x.shape[0] != total:
            raise RuntimeError(f"{x.shape[0]} rows came, but lanes own {total}")
        y = None if self._multiplies else self.base(x)
        x = x.to(self.down.dtype)
        if not compiling:
            adapted: Tensor = _Adapted.apply(x, y, self.down, self, segments)
            return adapted
        weight = self.base.weight if y is None else None
        bias = self.base.bias if y is None else None
        gradients, flat = (self.down_gradient, self.up_gradient), [bound for segment in segments for bound in segment]
        out: Tensor = adapt(x.contiguous(), y, weight, bias, self.down, self.up, *gradients, flat)[0]
        return out

    @property
    def _multiplies(self) -> bool:
        """Whether y = x W^T + b is all that the base does; other layers know themselves how they multiply."""
        return type(self.base) in (nn.Linear, Float8Linear)


class _Adapted(torch.autograd.Function):
    """Base and adapters of a site. Of a pass it keeps x, and x A^T."""

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
        weight, bias = (site.base.weight, site.base.bias) if y is None else (None, None)
        out, inner = _forward(x, y, weight, bias, site.down, site.up, segments)
        ctx.save_for_backward(x, inner)
        ctx.site, ctx.segments, ctx.has_base = site, segments, y is None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        site: SlotLinear = ctx.site
        weight = site.base.weight if ctx.has_base else None
        x, inner = ctx.saved_tensors
        adapters = site.down, site.up, site.down_gradient, site.up_gradient
        back = _backward(gradient, x, inner, weight, *adapters, ctx.segments, ctx.needs_input_grad[0])
        return back, None if ctx.has_base else gradient, None, None, None


def _forward(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    segments: Sequence[_Segment],
) -> tuple[Tensor, Tensor]:
    """Output [N, ..., out], and x A^T [N, ..., R].

    Args:
        x: [N, ..., in], contiguous.
        y: base(x); None: x W^T + b, by `weight` [out, in], in whatever precision it is stored, and `bias` [out].
        down, up: A and scale * B of all slots.
    """
    if y is None:
        assert weight is not None
        out = nn.functional.linear(x, weight.to(x.dtype), bias)
    else:
        out = y.clone()
    inner = x.new_empty(*x.shape[:-1], down.shape[1])
    for segment in segments:
        first, last, *_ = segment
        torch.bmm(_lanes(x, segment), down[first:last].transpose(1, 2), out=_lanes(inner, segment))
        _lanes(out, segment).baddbmm_(_lanes(inner, segment), up[first:last])
    return out, inner


def _backward(
    gradient: Tensor,
    x: Tensor,
    inner: Tensor,
    weight: Tensor | None,
    down: Tensor,
    up: Tensor,
    down_gradient: Tensor,
    up_gradient: Tensor,
    segments: Sequence[_Segment],
    needed: bool,
) -> Tensor | None:
    """The gradient of x, if it is needed, without what reaches it through y; those of A and B are added where they are
    gathered."""
    gradient = gradient.contiguous()
    back = None
    if needed:
        back = torch.zeros_like(x) if weight is None else gradient @ weight.to(gradient.dtype)
    for segment in segments:
        first, last, *_ = segment
        arrived = _lanes(gradient, segment)
        through = torch.bmm(arrived, up[first:last].transpose(1, 2))
        up_gradient[first:last].baddbmm_(_lanes(inner, segment).transpose(1, 2), arrived)
        down_gradient[first:last].baddbmm_(through.transpose(1, 2), _lanes(x, segment))
        if back is not None:
            _lanes(back, segment).baddbmm_(through, down[first:last])
    return back


def _lanes(batch: Tensor, segment: _Segment) -> Tensor:
    """The rows of a segment slot by slot, as a view: [N, ..., width] -> [k, rows, width]."""
    first, last, start, end = segment
    return batch[start:end].view(last - first, -1, batch.shape[-1])


# -- for the compiler -------------------------------------------------------------------------------------------------


def _segments(flat: Sequence[int]) -> list[_Segment]:
    return [(flat[n], flat[n + 1], flat[n + 2], flat[n + 3]) for n in range(0, len(flat), 4)]


@torch.library.custom_op("dbexp::adapt", mutates_args=())
def adapt(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    down_gradient: Tensor,
    up_gradient: Tensor,
    segments: list[int],
) -> tuple[Tensor, Tensor]:
    """`_forward`, which the compiler leaves as it is.

    Args:
        down_gradient, up_gradient: what the backward pass adds to.
        segments: their bounds, one after the other.
    """
    return _forward(x, y, x if weight is None else weight, bias, down, up, _segments(segments))


@adapt.register_fake
def _(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    down_gradient: Tensor,
    up_gradient: Tensor,
    segments: list[int],
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(y) if y is not None else x.new_empty(*x.shape[:-1], up.shape[-1])
    return out, x.new_empty(*x.shape[:-1], down.shape[1])


@torch.library.custom_op("dbexp::adapt_backward", mutates_args=("down_gradient", "up_gradient"))
def adapt_backward(
    gradient: Tensor,
    x: Tensor,
    inner: Tensor,
    weight: Tensor | None,
    down: Tensor,
    up: Tensor,
    down_gradient: Tensor,
    up_gradient: Tensor,
    segments: list[int],
    needed: bool,
) -> Tensor:
    """`_backward`; empty where it gives nothing."""
    adapters = down, up, down_gradient, up_gradient
    back = _backward(gradient, x, inner, weight, *adapters, _segments(segments), needed)
    return x.new_empty(0) if back is None else back


@adapt_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    inner: Tensor,
    weight: Tensor | None,
    down: Tensor,
    up: Tensor,
    down_gradient: Tensor,
    up_gradient: Tensor,
    segments: list[int],
    needed: bool,
) -> Tensor:
    return torch.empty_like(x) if needed else x.new_empty(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, weight, _, *adapters, segments = inputs
    ctx.save_for_backward(x, output[1], weight, *adapters)
    ctx.segments, ctx.has_base = segments, y is None
    ctx.mark_non_differentiable(output[1])


def _back(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    needed: bool = ctx.needs_input_grad[0]
    back = adapt_backward(gradient, *ctx.saved_tensors, ctx.segments, needed)
    return (back if needed else None, None if ctx.has_base else gradient, *[None] * 7)


adapt.register_autograd(_back, setup_context=_keep)
