"""Kernels run on arrays between guard pages, and what they must compute, from torch in float64."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tvm
import tvm_ffi

from qcompiler.ops import Packing
from qcompiler.targets.kernels.dot import Dot
from qcompiler.targets.kernels.gemv import gemv
from qcompiler.targets.kernels.geometry import Conv, Linear
from qcompiler.targets.kernels.matmul import conv2d, linear
from qcompiler.targets.kernels.plan import one_row, packing_of

ALIGNMENT = 64  # bytes; TVM assumes it of every argument
CANARY = 0xA5
NO_ACCESS = 0  # PROT_NONE of mprotect(2)


def target(*features: str) -> Any:
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": "x86_64-linux-gnu",
            "mcpu": "x86-64-v3",
            "mattr": ["-avx512f", *features],
        }
    )


def compiled(function: Any, *features: str) -> Any:
    return tvm.compile(tvm.IRModule({"main": function}), target=target(*features))


def assembly(function: Any, *features: str) -> str:
    text: str = compiled(function, *features).mod.inspect_source("asm")
    return text


class Fenced:
    """A copy of an array that ends at a page which may not be touched: reads beyond it crash.

    The start is aligned, so up to 63 bytes may lie between the end and the page; they are checked
    for writes.
    """

    def __init__(self, array: np.ndarray) -> None:
        page = mmap.PAGESIZE
        size = -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        pages = -(-size // page) + 2
        self.memory = mmap.mmap(-1, pages * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for fence in (base, base + (pages - 1) * page):
            if libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        start = (pages - 1) * page - size
        self.slack = np.frombuffer(self.memory, np.uint8, size - array.nbytes, start + array.nbytes)
        self.slack[:] = CANARY
        count = array.size
        self.array = np.frombuffer(self.memory, array.dtype, count, start).reshape(array.shape)
        self.array[...] = array

    def tensor(self) -> Any:
        return tvm_ffi.from_dlpack(self.array)

    def check(self) -> None:
        assert (self.slack == CANARY).all(), "written beyond the end"


def run(function: Any, arrays: Sequence[np.ndarray], shape: tuple[int, ...], dtype: str,
        features: Sequence[str] = ()) -> np.ndarray:  # fmt: skip
    """The output of a kernel called with `arrays` and an output full of garbage."""
    library = compiled(function, *features)
    fenced = [Fenced(np.ascontiguousarray(a)) for a in arrays]
    garbage = np.frombuffer(bytes([CANARY]) * np.zeros(shape, dtype).nbytes, dtype).reshape(shape)
    out = Fenced(garbage)
    kernel = library[str(function.attrs["global_symbol"])]
    kernel(*(f.tensor() for f in fenced), out.tensor())
    for f in (*fenced, out):
        f.check()
    return out.array.copy()


@dataclass(frozen=True)
class Codes:
    """Random operands of an integer product: extreme codes in one case of three."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray


def codes(rng: np.random.Generator, x_shape: tuple[int, ...], w_shape: tuple[int, ...],
          dtype: str, bounds: tuple[int, int], w_max: int) -> Codes:  # fmt: skip
    low, high = bounds
    extreme = rng.random() < 1 / 3
    if extreme:
        x = rng.choice([low, high], x_shape).astype(dtype)
        w = rng.choice([-w_max, w_max], w_shape).astype(np.int8)
    else:
        x = rng.integers(low, high + 1, x_shape).astype(dtype)
        w = rng.integers(-w_max, w_max + 1, w_shape).astype(np.int8)
    return Codes(x, w, rng.integers(-(2**20), 2**20, w_shape[0]).astype(np.int32))


def bound(shape: Sequence[int | str], size: int) -> tuple[int, ...]:
    """A shape with `size` for its symbolic dimension."""
    return tuple(size if isinstance(d, str) else d for d in shape)


def weight_shape(g: Conv | Linear) -> tuple[int, ...]:
    return (g.n, g.k) if isinstance(g, Linear) else (g.out_channels, g.group_in, *g.kernel)


def expected(g: Conv | Linear, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The sums of products in float64, exact for codes: [*lead, N] or NHWC."""
    a, b = torch.from_numpy(x.astype(np.float64)), torch.from_numpy(w.astype(np.float64))
    if isinstance(g, Linear):
        return (a @ b.T).numpy()
    top, left, bottom, right = g.padding
    a = F.pad(a.permute(0, 3, 1, 2), (left, right, top, bottom))
    y = F.conv2d(a, b, None, g.stride, 0, g.dilation, g.groups)
    return y.permute(0, 2, 3, 1).numpy()


def packed(g: Conv | Linear, dot: Dot, in_dtype: str, w: np.ndarray) -> np.ndarray:
    result: np.ndarray = Packing(*packing_of(g, dot, in_dtype)).pack(torch.from_numpy(w)).numpy()
    return result


def product(g: Conv | Linear, dot: Dot, *, in_dtype: str, pad: int = 0, **options: Any) -> Any:
    if isinstance(g, Linear):
        return (gemv if one_row(g, dot) else linear)(g, dot, in_dtype=in_dtype, **options)
    return conv2d(g, dot, in_dtype=in_dtype, pad=pad, **options)


def integer_product(g: Conv | Linear, dot: Dot, c: Codes, *, zero_point: int, shift: int = 0,
                    size: int = 1, **options: Any) -> np.ndarray:  # fmt: skip
    """sum((x - zero_point) * w) + bias as the kernel computes it; `options` go to the template."""
    rest: Sequence[np.ndarray] = options.pop("arrays", ())
    features: Sequence[str] = options.pop("features", ())
    dtype: str = options.setdefault("out_dtype", "int32")
    sums = c.w.reshape(len(c.w), -1).astype(np.int64).sum(1)
    init = (c.bias - (zero_point + shift) * sums).astype(np.int32)
    function = product(g, dot, in_dtype=str(c.x.dtype), pad=zero_point, shift=shift, **options)
    arrays = [c.x, packed(g, dot, str(c.x.dtype), c.w), init, *rest]
    return run(function, arrays, bound(g.out_shape, size), dtype, features)
