"""What a module does without torch.export: whether it fails by itself, or reads values out."""

from __future__ import annotations

import linecache
import re
from typing import Any

import torch
import torch.utils._pytree as pytree

from qcompiler.frontend.errors import first_line, place_of, users_frames

READS = re.compile(r"\.(?:item|tolist)\(|\b(?:float|int|bool)\(")
"""What makes a Python number of a tensor, in a line of code."""
SHOWN = 4  # example inputs that a message describes; the rest is counted


def own_failure(
    source: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """How the module fails on its example inputs without being traced; None if it does not.

    It is run once, on copies of the inputs and of its buffers.
    """
    buffers = {name: b.clone() for name, b in source.named_buffers()}
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    try:
        with torch.no_grad():
            torch.func.functional_call(source, buffers, args, kwargs)
    except Exception as e:
        where = place_of(e, source)
        at = f" at {where}" if where else ""
        return (
            f"the module itself fails on the example inputs ({_described(args, kwargs)}){at}: "
            f"{type(e).__name__}: {first_line(e)}"
        )
    return None


def _described(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [_shown(a) for a in args] + [f"{k}={_shown(v)}" for k, v in kwargs.items()]
    more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return (", ".join(shown[:SHOWN]) + more) or "none"


def _shown(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype}[{','.join(map(str, value.shape))}]"


def read_out(error: BaseException) -> str | None:
    """The `.item()` or the like in the user's line where tracing stopped; None without one."""
    frames = users_frames(error)
    if not frames:
        return None
    frame, line = frames[-1]
    found = READS.search(linecache.getline(frame.f_code.co_filename, line))
    return f"{found[0]})" if found else None
