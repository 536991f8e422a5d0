"""What can go wrong while tracing, and where in the user's code it went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class TraceError(ValueError):
    """A model cannot be traced: one or two lines that say what, where and what to do."""


class Refusal(Exception):
    """One operation cannot be imported, for the reason given; raised by the rows of the table."""


@dataclass(frozen=True)
class Absent:
    """A value the importer could not make.

    reported: its cause is already in the list of problems, so its users stay silent.
    """

    reason: str
    reported: bool = False


def place_of(error: BaseException, module: torch.nn.Module | None = None) -> str:
    """Where in the user's code an exception arose: `layer1.0 (Block), net.py:12`, or empty."""
    users = users_frames(error)
    inside = [k for k, (frame, _) in enumerate(users) if _owner(frame) is not None]
    if not inside:
        return ""
    frame, line = users[-1]
    owner = _owner(users[inside[-1]][0])
    names = {m: n for n, m in module.named_modules()} if module is not None else {}
    path = names.get(owner, "") if owner is not None else ""
    text = f"{Path(frame.f_code.co_filename).name}:{line}"
    return f"{path!r} ({type(owner).__name__}), {text}" if path else text


def users_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """The frames and lines outside of torch and of this package, the innermost last."""
    frames = [f for e in _chain(error) for f in _frames(e.__traceback__)]
    return [f for f in frames if not _of_torch(f[0].f_code.co_filename)]


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain[::-1]


def _frames(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return frames


def _of_torch(file: str) -> bool:
    """Torch's own code and this package are not the user's."""
    import torch

    own = (Path(torch.__file__).parent, Path(__file__).parent)
    return file.startswith("<") or any(Path(file).is_relative_to(p) for p in own)


def _owner(frame: FrameType) -> torch.nn.Module | None:
    """The module whose method a frame runs: its first argument."""
    import torch

    first = next(iter(frame.f_code.co_varnames), "")
    owner = frame.f_locals.get(first)
    return owner if isinstance(owner, torch.nn.Module) else None


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, cut to `limit` characters."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
