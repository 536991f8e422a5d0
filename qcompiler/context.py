"""What a pass may know beside the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcompiler.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    import torch

    from qcompiler.target import Target

Event = Callable[..., None]


def _silent(*_: Any) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Context:
    """target: facts about the machine. recipe: what is wanted. data: calibration items.
    costs: measured kernel times, by kernel and shape. sample: inputs that QC_CHECK evaluates.
    progress: called with (what, done, total). listen: called with rewrite events."""

    target: Target | None = None
    recipe: Recipe = RECIPES[0]
    data: Iterable[Any] | None = None
    costs: Mapping[str, float] | None = None
    sample: tuple[torch.Tensor, ...] | None = None
    progress: Callable[[str, int, int], None] = _silent
    listen: tuple[Event, ...] = ()

    def emit(self, event: str, *details: Any) -> None:
        for listener in self.listen:
            listener(event, *details)
