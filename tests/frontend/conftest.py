"""Fixtures: a module is traced, verified, printed and parsed, and compared with PyTorch."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from qcompiler.frontend import trace
from qcompiler.graph import Graph, Level
from qcompiler.interpret import interpret
from qcompiler.parse import parse
from qcompiler.text import constants_of
from qcompiler.verify import verify

Agrees = Callable[..., Graph]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def difference(got: Tensor, want: Tensor) -> float:
    """Largest error over the largest magnitude; infinite when shape, dtype or NaNs differ."""
    finite = torch.isfinite(want) if want.is_floating_point() else torch.ones_like(want).bool()
    same_type = got.shape == want.shape and got.dtype == want.dtype
    if not same_type or not torch.equal(got[~finite].nan_to_num(), want[~finite].nan_to_num()):
        return float("inf")
    if not torch.equal(torch.isnan(got), torch.isnan(want)):
        return float("inf")
    error = (got[finite].double() - want[finite].double()).abs()
    return (
        float(error.max() / want[finite].double().abs().max().clamp(min=1e-30))
        if len(error)
        else 0.0
    )


def close(graph: Graph, module: nn.Module, args: Any, kwargs: Any, limit: float, name: str) -> None:
    with torch.no_grad():
        want = tensors(module(*args, **kwargs))
        got = interpret(graph, *tensors((args, kwargs)))
    results = got if isinstance(got, tuple) else (got,)
    assert len(results) == len(want)
    errors = [difference(g, w) for g, w in zip(results, want, strict=True)]
    assert max(errors) <= limit, (
        f"{name}: the largest error over the output's largest magnitude is {max(errors):.1e} "
        f"(result {errors.index(max(errors))}), allowed {limit:.0e}"
    )


@pytest.fixture
def agrees() -> Agrees:
    """`agrees(module or function, *inputs)` traces, checks against PyTorch, gives the graph."""

    def check(
        source: Any,
        *args: Any,
        kwargs: dict[str, Any] | None = None,
        dynamic: Any = None,
        others: Iterable[tuple[Any, ...]] = (),
        limit: float = 1e-5,
        name: str = "",
    ) -> Graph:
        module = source if isinstance(source, nn.Module) else Call(source)
        module.eval()
        graph = trace(module, args, kwargs, dynamic)
        verify(graph)
        assert graph.level is Level.FLOAT
        text = str(graph)
        assert str(parse(text, constants_of(graph))) == text
        shown = name or type(module).__name__
        for values in (args, *others):
            close(graph, module, values, kwargs or {}, limit, shown)
        return graph

    return check
