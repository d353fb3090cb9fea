"""A site: forward and backward passes against the formula that autograd differentiates, slot by slot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dbexp.models.quantize import Float8Linear
from dbexp.train.site import Rows, SlotLinear
from dbexp.train.stack import Stack

IN, OUT, SLOTS, RANK = 6, 5, 4, 3


class Other(nn.Linear):
    """A layer that multiplies in a way of its own, as those of 4 bits do."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def site(
    base: nn.Linear | None = None, dtype: torch.dtype = torch.float64, full: torch.dtype = torch.float64
) -> tuple[SlotLinear, Stack]:
    """A site between two others of its stack, filled with noise."""
    torch.manual_seed(0)
    stack = Stack({"before": (2, 3), "it": (IN, OUT), "after": (4, 1)}, SLOTS, RANK, torch.device("cpu"), dtype, full)
    stack.weights.normal_()
    stack.scale.copy_(torch.tensor([1.0, 0.5, 2.0, 3.0]).reshape(SLOTS, 1))
    base = nn.Linear(IN, OUT, dtype=dtype) if base is None else base
    return SlotLinear(base.requires_grad_(False), stack, "it", Rows()), stack


def formula(layer: SlotLinear, stack: Stack, counts: Sequence[int], x: Tensor) -> tuple[Tensor, Tensor]:
    """base(x) + scale (x A^T) B row by row, in the precision of the weights; and the weights, a leaf."""
    weights = stack.weights.clone().requires_grad_()
    down, up = stack.sites(weights)["it"]
    owners = [slot for slot, count in enumerate(counts) for _ in range(count)]
    rows = [
        layer.base(x[n]) + stack.scale[k] * (x[n].to(weights.dtype) @ down[k].T @ up[k]) for n, k in enumerate(owners)
    ]
    return torch.stack(rows), weights


class TestRows:
    @pytest.mark.parametrize(
        ("counts", "segments", "total"),
        [
            ([2], [(0, 1, 0, 2)], 2),
            ([2, 2, 2], [(0, 3, 0, 6)], 6),
            ([2, 1, 1, 4], [(0, 1, 0, 2), (1, 3, 2, 4), (3, 4, 4, 8)], 8),
            ([0, 2, 0, 0, 2], [(1, 2, 0, 2), (4, 5, 2, 4)], 4),
            ([0, 0], [], 0),
        ],
    )
    def test_segments(self, counts: list[int], segments: list[tuple[int, int, int, int]], total: int) -> None:
        rows = Rows()
        rows.set([9, 9, 9])
        rows.set(counts)
        assert (rows.segments, rows.total) == (segments, total)


class TestPasses:
    @pytest.mark.parametrize("counts", [(1, 1, 1, 1), (2, 1, 0, 1), (0, 0, 3, 0)])
    @pytest.mark.parametrize("between", [(), (7,), (2, 3)])
    @pytest.mark.parametrize("kind", ["plain", "other"])
    def test_forward_and_backward(self, counts: tuple[int, ...], between: tuple[int, ...], kind: str) -> None:
        """In fp64 to 1e-12: two microbatches, whose gradients add up."""
        layer, stack = site(Other(IN, OUT, dtype=torch.float64) if kind == "other" else None)
        layer.rows.set(counts)
        stack.refresh()
        total = torch.zeros_like(stack.weights)
        for _ in range(2):
            x = torch.randn(sum(counts), *between, IN, dtype=torch.float64, requires_grad=True)
            other = x.detach().clone().requires_grad_()
            y = layer(x)
            expected, weights = formula(layer, stack, counts, other)
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
            sent = torch.randn_like(y)
            y.backward(sent)
            expected.backward(sent)
            assert x.grad is not None and other.grad is not None and weights.grad is not None
            torch.testing.assert_close(x.grad, other.grad, rtol=0, atol=1e-12)
            stack.gather()
            total += weights.grad
            torch.testing.assert_close(stack.gradients, total, rtol=0, atol=1e-12)
            assert not stack.arriving.any()

    def test_input_that_needs_no_gradient_and_is_not_contiguous(self) -> None:
        layer, stack = site()
        layer.rows.set([1, 1, 1, 1])
        stack.refresh()
        x = torch.randn(4, IN, 3, dtype=torch.float64).transpose(1, 2)
        y = layer(x)
        expected, weights = formula(layer, stack, [1, 1, 1, 1], x)
        sent = torch.randn(4, OUT, 3, dtype=torch.float64).transpose(1, 2)
        y.backward(sent)
        expected.backward(sent)
        stack.gather()
        assert weights.grad is not None
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(stack.gradients, weights.grad, rtol=0, atol=1e-12)

    def test_computed_again(self) -> None:
        """Under gradient checkpointing a pass is repeated inside the backward pass; its gradient is added once."""
        gradients = []
        for again in (False, True):
            layer, stack = site()
            layer.rows.set([2, 1, 0, 1])
            stack.refresh()
            torch.manual_seed(1)
            x = torch.randn(4, 7, IN, dtype=torch.float64, requires_grad=True)
            y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
            y.square().sum().backward()
            stack.gather()
            gradients.append((stack.gradients, x.grad))
        for one, other in zip(*gradients, strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("quantized", [False, True])
    def test_in_half_precision(self, quantized: bool) -> None:
        """Everything but the weights and their gradients is bf16."""
        plain = nn.Linear(IN, OUT, dtype=torch.bfloat16)
        layer, stack = site(Float8Linear(plain) if quantized else plain, torch.bfloat16, torch.float32)
        layer.rows.set([1, 1, 1, 1])
        stack.refresh()
        x = torch.randn(4, 7, IN, dtype=torch.bfloat16, requires_grad=True)
        y = layer(x)
        y.backward(torch.ones_like(y))
        stack.gather()
        expected, weights = formula(layer, stack, [1, 1, 1, 1], x.detach())
        expected.backward(torch.ones_like(expected))
        assert weights.grad is not None and x.grad is not None
        assert (y.dtype, x.grad.dtype, stack.gradients.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.2)
        torch.testing.assert_close(stack.gradients, weights.grad, rtol=0.05, atol=0.2)

    def test_rows_must_match(self) -> None:
        layer, _ = site()
        layer.rows.set([2, 1, 0, 1])
        with pytest.raises(RuntimeError, match="3 rows came, but lanes own 4"):
            layer(torch.zeros(3, IN))
