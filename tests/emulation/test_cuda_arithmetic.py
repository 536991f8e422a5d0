"""CUDA's arithmetic functions against what the PTX ISA says of them, written in numpy."""

import numpy as np
import pytest
from emulated import compiled

from qcompiler.targets.emulation import cuda

N = 256

TEXT = """
#include <cuda_fp16.h>
extern "C" __global__ void dots(const int* a, const int* b, const int* c, int* d) {
  int i = threadIdx.x;
  d[i] = __dp4a(a[i], b[i], c[i]);
  d[256 + i] = (int)__dp4a((unsigned)a[i], (unsigned)b[i], (unsigned)c[i]);
  asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(d[512 + i]) : "r"(a[i]), "r"(b[i]), "r"(c[i]));
  asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(d[768 + i]) : "r"(a[i]), "r"(b[i]), "r"(c[i]));
  d[1024 + i] = __dp4a(((const char4*)a)[i], ((const char4*)b)[i], c[i]);
  unsigned r;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a[i]), "r"(b[i]), "r"(c[i]));
  d[1280 + i] = (int)r;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d[1536 + i]) : "r"(a[i]), "r"(b[i]), "r"(c[i]));
}
extern "C" __global__ void floats(const float* a, const float* b, float* d) {
  int i = threadIdx.x;
  d[i] = __fmul_rn(a[i], b[i]);
  d[256 + i] = __fadd_rn(a[i], b[i]);
  d[512 + i] = __fdiv_rn(a[i], b[i]);
  d[768 + i] = __fsqrt_rn(a[i]);
  d[1024 + i] = rintf(a[i]) + nearbyintf(b[i]) * 0.0f;
  d[1280 + i] = max(a[i], b[i]);
  d[1536 + i] = fminf(a[i], b[i]);
  d[1792 + i] = a[i] * b[i] + a[i];
  d[2048 + i] = __int_as_float(__float_as_int(a[i]) ^ (1 << 31));
  d[2304 + i] = (float)__float2int_rn(a[i]);
  d[2560 + i] = fmaf(a[i], b[i], a[i]);
}
extern "C" __global__ void bits(const unsigned* a, const unsigned* b, unsigned* d) {
  int i = threadIdx.x;
  d[i] = __byte_perm(a[i], b[i], 0x6420);
  d[256 + i] = __byte_perm(a[i], b[i], 0x9e81);
  d[512 + i] = __popc(a[i]);
  d[768 + i] = __clz((int)(a[i] >> (i & 31)));
  d[1024 + i] = __brev(a[i]);
  d[1280 + i] = __umulhi(a[i], b[i]);
  d[1536 + i] = __funnelshift_r(a[i], b[i], i & 31);
}
extern "C" __global__ void halves(const half* h, float* wide, const float* f, half* narrow, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    wide[i] = __half2float(h[i]);
    narrow[i] = __float2half_rn(f[i]);
  }
}
"""


@pytest.fixture(scope="module")
def program() -> cuda.Program:
    return compiled(TEXT)


def test_dp4a(configure, program: cuda.Program) -> None:
    """PTX ISA, dp4a: four products of bytes, each side signed or not, added to c modulo 2^32."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-(2**31), 2**31, N).astype(np.int32) for _ in range(3))
    a[:2], b[:2], c[:2] = -2139062144, (-2139062144, 2139062143), (2**31 - 1, -(2**31))
    d = np.zeros((7, N), np.int32)
    program.run("dots", 1, N, a, b, c, d)
    s, u = np.int8, np.uint8
    for row, (x, y) in zip(
        d, ((s, s), (u, u), (u, u), (s, u), (s, s), (u, s), (s, s)), strict=True
    ):
        products = a.view(x).astype(np.int64) * b.view(y).astype(np.int64)
        total = c.astype(np.int64) + products.reshape(N, 4).sum(1)
        np.testing.assert_array_equal(row, total.astype(np.int32))


def test_floats_are_ieee_and_never_contracted(configure, program: cuda.Program) -> None:
    rng = np.random.default_rng(1)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, -0.5, 1e-40, -1e-40, 3e38, 3e9]
    a = np.concatenate([special, rng.standard_normal(N - len(special)) * 1e3]).astype(np.float32)
    b = np.roll(a, 7)
    d = np.zeros((11, N), np.float32)
    program.run("floats", 1, N, a, b, d)
    with np.errstate(all="ignore"):
        wide = a.astype(np.float64)
        whole = np.clip(np.rint(np.nan_to_num(wide)), -(2**31), 2**31 - 1).astype(np.float32)
        fused = (wide * b + wide).astype(np.float32)
        expected = (a * b, a + b, a / b, np.sqrt(a), np.rint(a) + np.rint(b) * np.float32(0))
        expected += (np.fmax(a, b), np.fmin(a, b), a * b + a, -a, whole, fused)
    for row, value in zip(d, expected, strict=True):
        np.testing.assert_array_equal(row, value)
    # Of two zeros the positive one is greater.
    d[:] = 0
    zeros = np.where(np.arange(N) % 2, 0.0, -0.0).astype(np.float32)
    program.run("floats", 1, N, zeros, -zeros, d)
    assert not np.signbit(d[5]).any() and np.signbit(d[6]).all()


def test_bits(configure, program: cuda.Program) -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 2**32, N).astype(np.uint32) for _ in range(2))
    d = np.zeros((7, N), np.uint32)
    program.run("bits", 1, N, a, b, d)
    eight = np.concatenate([a.view(np.uint8).reshape(N, 4), b.view(np.uint8).reshape(N, 4)], axis=1)
    even = np.ascontiguousarray(eight[:, [0, 2, 4, 6]]).view(np.uint32)[:, 0]
    signs = np.where(eight & 128, 255, 0).astype(np.uint8)
    picked = np.stack([eight[:, 1], signs[:, 0], signs[:, 6], signs[:, 1]], axis=1)
    shifted = a >> (np.arange(N, dtype=np.uint32) & 31)
    text = [f"{x:032b}" for x in a]
    expected = (
        even,
        np.ascontiguousarray(picked).view(np.uint32)[:, 0],
        [t.count("1") for t in text],
        [32 - int(x).bit_length() for x in shifted],
        [int(t[::-1], 2) for t in text],
        (a.astype(object) * b.astype(object)) >> 32,
        [((int(b[i]) << 32 | int(a[i])) >> (i & 31)) & 0xFFFFFFFF for i in range(N)],
    )  # fmt: skip
    for row, value in zip(d, expected, strict=True):
        np.testing.assert_array_equal(row, np.array(value, dtype=np.uint64).astype(np.uint32))


def test_every_float16_and_what_rounds_to_it(configure, program: cuda.Program) -> None:
    configure(checks=False)
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    rng = np.random.default_rng(3)
    floats = rng.integers(0, 2**32, 2**16, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        middle = halves.astype(np.float32)
        ties = (middle + np.roll(middle, 1)) / 2
        floats[: 2**15] = ties[: 2**15]
        floats[-100:] = np.linspace(65500, 65540, 100)
        narrowed = floats.astype(np.float16)
    wide, narrow = np.zeros(2**16, np.float32), np.zeros(2**16, np.float16)
    program.run("halves", 1, 1, halves, wide, floats, narrow, np.int32(2**16))
    np.testing.assert_array_equal(wide, middle)
    np.testing.assert_array_equal(narrow, narrowed)
