"""Second moments: how the channels of a value vary together. A monoid, with principal axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Of rows of K numbers, in G groups that are seen apart.

    count: rows seen. sums: float64 [G, K]. squares: float64 [G, K, K], the sum of every row's outer
    product with itself. Sums in another order agree to about 1e-15 of the largest.
    """

    count: int
    sums: torch.Tensor
    squares: torch.Tensor

    @staticmethod
    def of(rows: torch.Tensor) -> Moments:
        """rows: float [G, N, K]."""
        wide = rows.detach().double()
        return Moments(wide.shape[1], wide.sum(1), wide.transpose(1, 2) @ wide)

    def merge(self, other: Moments) -> Moments:
        """Those of both."""
        return Moments(
            self.count + other.count, self.sums + other.sums, self.squares + other.squares
        )

    @property
    def mean(self) -> torch.Tensor:
        """float64 [G, K]."""
        return self.sums / max(self.count, 1)

    @property
    def second(self) -> torch.Tensor:
        """float64 [G, K, K]: the mean of `x x^T`."""
        return self.squares / max(self.count, 1)

    @property
    def covariance(self) -> torch.Tensor:
        """float64 [G, K, K]: the second moment less that of the mean."""
        mean = self.mean
        found: torch.Tensor = self.second - mean.unsqueeze(2) * mean.unsqueeze(1)
        return found

    @cached_property
    def variances(self) -> torch.Tensor:
        """float64 [G, K]: along the principal axes of the covariance, the largest first."""
        import torch

        found: torch.Tensor = torch.linalg.eigvalsh(self.covariance).flip(1).clamp(min=0)
        return found

    def explained(self, axes: int) -> float:
        """The share of the variance that the first principal axes hold (of the first group)."""
        total = float(self.variances[0].sum())
        return float(self.variances[0][:axes].sum()) / total if total > 0 else 1.0

    @property
    def effective_rank(self) -> float:
        """`exp(H)` of the entropy H of the shares of the variance along the principal axes (Roy and
        Vetterli 2007): K where they are equal, 1 where one axis has all; of the first group."""
        import torch

        total = self.variances[0].sum()
        if not float(total) > 0:
            return 0.0
        shares = self.variances[0] / total
        return float(torch.exp(-torch.xlogy(shares, shares).sum()))
