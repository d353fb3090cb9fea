"""The optimizer: orthogonal steps for matrices, AdamW's for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dbexp.storybook.pretrain.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalised_keeps_directions_and_evens_out_their_sizes(shape: tuple[int, int]) -> None:
    left, values, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), False)
    result = orthogonalised(left @ torch.diag(values) @ right)
    inner = left.T @ result @ right.T
    assert (inner.diagonal() > 0.6).all() and (inner.diagonal() < 1.3).all()  # the quintic's known band
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-3


def test_the_gram_form_equals_the_plain_iteration() -> None:
    matrix = torch.randn((5, 30), generator=torch.Generator().manual_seed(1))
    plain = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = plain @ plain.T
        plain = 3.4445 * plain + (-4.7750 * gram + 2.0315 * gram @ gram) @ plain
    assert torch.allclose(orthogonalised(matrix), plain, atol=1e-4)


def test_groups_without_muon_take_the_steps_of_adamw() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(4, 3)
    theirs = copy.deepcopy(ours)
    first = Muon([{"params": ours.parameters(), "lr": 1e-2, "weight_decay": 0.1}], betas=(0.9, 0.99))
    second = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99))
    x = torch.randn(8, 4)
    for _ in range(3):
        for model, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_kernels_take_steps_of_the_size_of_their_rate() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, bias=False)
    before = layer.weight.detach().clone()
    optimizer = Muon([{"params": [layer.weight], "muon": True, "lr": 0.02, "weight_decay": 0.0}])
    layer(torch.randn(2, 4, 6, 6)).square().mean().backward()
    optimizer.step()
    step = (layer.weight.detach() - before).flatten(1)
    assert torch.linalg.matrix_norm(step, 2).item() == pytest.approx(0.02, rel=0.3)
    assert optimizer.state_dict()["state"]  # the momentum is saved
