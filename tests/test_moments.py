"""Second moments: merged as they are summed, and what their principal axes say."""

import math

import torch

from qcompiler.moments import Moments


def rows(seed: int, count: int, width: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, width, generator=g) * torch.arange(1, width + 1) + 3


def test_shards_in_any_order_agree() -> None:
    parts = [Moments.of(rows(k, 5 + k)) for k in range(4)]
    whole = Moments.of(torch.cat([rows(k, 5 + k) for k in range(4)], 1))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        merged = parts[order[0]]
        for k in order[1:]:
            merged = merged.merge(parts[k])
        assert merged.count == whole.count
        for name in ("mean", "second", "covariance"):
            a, b = getattr(merged, name), getattr(whole, name)
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_they_are_those_of_the_rows() -> None:
    x = rows(9, 50).double()
    found = Moments.of(x)
    assert torch.allclose(found.mean, x.mean(1))
    for group in range(2):
        wanted = torch.cov(x[group].T, correction=0)
        assert torch.allclose(found.covariance[group], wanted, rtol=1e-9, atol=1e-9)


def test_effective_rank_is_the_number_of_axes_that_share_the_variance() -> None:
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64)).Q
    for rank in (1, 3, 8):
        axes = math.sqrt(2) * torch.cat((basis[:rank], -basis[:rank]))
        found = Moments.of(axes.unsqueeze(0))
        assert math.isclose(found.effective_rank, rank, rel_tol=1e-9)
        assert math.isclose(found.explained(rank), 1.0)
        assert math.isclose(found.explained(1), 1 / rank)
    still = Moments.of(torch.ones(1, 4, 3))
    assert still.effective_rank == 0 and still.explained(1) == 1
