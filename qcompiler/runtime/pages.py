"""Memory for weights in huge pages: products of a few rows read each weight once a call, and wait
for memory.

One core that reads 44 MB in order, its caches cold, in a virtual machine: from pages of 4 KiB
3.7 ms, of 2 MiB 2.7 (2.2 where it also fetches ahead, see targets/kernels/gemv.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.runtime.manifest import ALIGNMENT

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

HUGE_PAGE = 2 << 20
"""Bytes; of x86-64, and of Arm with base pages of 4 KiB."""


def address(array: npt.NDArray[Any]) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


def aligned(size: int) -> Bytes:
    """Fresh bytes from an address that is a multiple of ALIGNMENT."""
    whole = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -address(whole) % ALIGNMENT
    return whole[start : start + size]


def huge(size: int) -> Bytes:
    """Fresh bytes from the beginning of a huge page on; the last ones, that fill none, lie in small
    pages. The memory is free once no array is left over it."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(memory, dtype=np.uint8)
    start = -address(whole) % HUGE_PAGE
    in_huge_pages(memory, start, size // HUGE_PAGE * HUGE_PAGE)
    return whole[start : start + size]


def in_huge_pages(memory: mmap.mmap, start: int, size: int) -> None:
    """Ask for huge pages, before the memory is first touched: advice, which may not be heard.

    Of a mapped file that is not in memory Linux then reads whole ones (of 44 MB 43 lie in huge
    pages, else 2).
    """
    if size == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    try:
        memory.madvise(mmap.MADV_HUGEPAGE, start, size)
    except OSError:  # a Linux built without them
        return


def together(parts: Mapping[str, Bytes]) -> dict[str, Bytes]:
    """Copies, one behind the other so that small ones share huge pages, if they fill one."""
    size = sum(_padded(p) for p in parts.values())
    arena = huge(size) if size >= HUGE_PAGE else aligned(size)
    found: dict[str, Bytes] = {}
    at = 0
    for name, part in parts.items():
        found[name] = arena[at : at + part.nbytes]
        np.copyto(found[name], part)
        at += _padded(part)
    return found


def _padded(part: Bytes) -> int:
    return -(-part.nbytes // ALIGNMENT) * ALIGNMENT
