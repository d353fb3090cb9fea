"""The adapters of K slots as a few large tensors: what is trained, its gradient, and what a pass computes with.

A part has a hundred sites and more. What is done to all of them alike is one operation on one tensor, whatever their
number; a site, or a slot's part of one, is a view.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Stack:
    """The adapters of a part's sites. A row is a slot; its columns are A of every site [R, in], then B of every site
    [R, out], in the order of the sites.

    Args:
        widths: site -> (in, out).
        slots: K.
        rank: R, the largest of any slot; a slot of smaller rank r uses the first r rows of A and B. The rest is zero
            and stays zero, as its gradient is.
        dtype: precision of the base.
        full: precision of what is trained.

    Attributes:
        weights: A and B, [K, P] in `full`.
        gradients: of `weights`, what was added since an optimizer last cleared them.
        working: [K, P] in `dtype`, A and scale * B as `refresh` left them; passes compute with it.
        arriving: [K, P] in `dtype`, gradients of `working` that `gather` has not fetched.
        scale: alpha / rank of each slot, [K, 1] in `full`.
    """

    def __init__(
        self,
        widths: Mapping[str, tuple[int, int]],
        slots: int,
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
        full: torch.dtype = torch.float32,
    ) -> None:
        self.widths, self.rank = dict(widths), rank
        self._ups = rank * sum(width for width, _ in widths.values())  # the first column of a B
        self._starts: dict[str, tuple[int, int]] = {}
        down, up = 0, self._ups
        for site, (inputs, outputs) in widths.items():
            self._starts[site] = down, up
            down, up = down + rank * inputs, up + rank * outputs
        columns = up
        self.weights, self.gradients = (torch.zeros(slots, columns, device=device, dtype=full) for _ in range(2))
        self.working, self.arriving = (torch.zeros(slots, columns, device=device, dtype=dtype) for _ in range(2))
        self.scale = torch.ones(slots, 1, device=device, dtype=full)

    def site(self, stacked: Tensor, site: str) -> tuple[Tensor, Tensor]:
        """Views of A [..., R, in] and B [..., R, out] of a site, in a tensor [..., P] laid out like `weights`."""
        (inputs, outputs), (down, up) = self.widths[site], self._starts[site]
        return (
            stacked[..., down : down + self.rank * inputs].unflatten(-1, (self.rank, inputs)),
            stacked[..., up : up + self.rank * outputs].unflatten(-1, (self.rank, outputs)),
        )

    def sites(self, stacked: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The same of every site."""
        return {site: self.site(stacked, site) for site in self.widths}

    @torch.no_grad()
    def refresh(self) -> None:
        """Make `working` of `weights`: before a pass."""
        ups = slice(self._ups, None)
        self.working[:, : self._ups].copy_(self.weights[:, : self._ups])
        torch.mul(self.weights[:, ups], self.scale, out=self.working[:, ups])

    @torch.no_grad()
    def gather(self) -> None:
        """Add what arrived in a backward pass to `gradients`, and clear it."""
        ups = slice(self._ups, None)
        self.gradients[:, : self._ups].add_(self.arriving[:, : self._ups])
        self.gradients[:, ups].addcmul_(self.arriving[:, ups], self.scale)
        self.arriving.zero_()

    def clear(self, slot: int) -> None:
        """Forget whatever a slot holds."""
        for tensor in (self.weights, self.gradients, self.working, self.arriving):
            tensor[slot].zero_()
