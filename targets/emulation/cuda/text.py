"""C text read just as far as needed: brackets that match, and pieces between separators."""

from __future__ import annotations

from collections.abc import Iterator

from qcompiler.errors import EmulationError

OPENING, CLOSING = "([{", ")]}"


def depths(text: str, start: int = 0) -> Iterator[tuple[int, str, int]]:
    """(position, character, bracket depth after it) of what is no string and no comment."""
    depth, i, end = 0, start, len(text)
    while i < end:
        if text.startswith("//", i):
            i = text.find("\n", i) if "\n" in text[i:] else end
            continue
        if text.startswith("/*", i):
            i = text.find("*/", i) + 2
            continue
        if text[i] in "\"'":
            i = _after_string(text, i)
            continue
        depth += (text[i] in OPENING) - (text[i] in CLOSING)
        yield i, text[i], depth
        i += 1


def _after_string(text: str, start: int) -> int:
    i = start + 1
    while i < len(text) and text[i] != text[start]:
        i += 2 if text[i] == "\\" else 1
    return i + 1


def matching(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    for i, _, depth in depths(text, start):
        if depth == 0:
            return i
    line = text.count("\n", 0, start) + 1
    raise EmulationError(f"the bracket in line {line} of the CUDA text is not closed")


def pieces(text: str, separator: str) -> list[str]:
    """`text` cut at each separator outside of brackets and strings; at least one piece."""
    cuts = [i for i, c, depth in depths(text) if c == separator and depth == 0]
    return [text[a + 1 : b] for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]
