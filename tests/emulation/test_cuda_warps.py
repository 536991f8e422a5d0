"""Shuffles, votes and barriers within warps: what they give, and what they refuse."""

import numpy as np
import pytest
from emulated import compiled

from qcompiler.targets.emulation import cuda

TEXT = """
#define FULL 0xffffffffu
extern "C" __global__ void shuffles(const int* x, int* d, int n) {
  int i = threadIdx.x, v = x[i];
  d[i] = __shfl_sync(FULL, v, i * 3 + 1, 32);
  d[n + i] = __shfl_xor_sync(FULL, v, 5);
  d[2 * n + i] = __shfl_down_sync(FULL, v, 3, 8);
  d[3 * n + i] = __shfl_up_sync(FULL, v, 3, 16);
  d[4 * n + i] = __shfl_xor_sync(FULL, v, 9, 8);
  d[5 * n + i] = __shfl_sync(FULL, v, 13, 8);
}
extern "C" __global__ void kinds(const double* x, double* d, const float* y, float* e) {
  int i = threadIdx.x;
  d[i] = __shfl_xor_sync(FULL, x[i], 16, 32);
  e[i] = __shfl_down_sync(FULL, y[i], 1, 32);
}
extern "C" __global__ void votes(const int* x, unsigned* d) {
  int i = threadIdx.x;
  d[i] = __ballot_sync(FULL, x[i] > 0);
  d[64 + i] = __any_sync(FULL, x[i] > 0);
  d[128 + i] = __all_sync(FULL, x[i] > 0);
}
extern "C" __global__ void halves(const int* x, int* d, unsigned* masks) {
  int i = threadIdx.x, v = x[i];
  if (i % 32 < 12) {
    masks[i] = __activemask();
    d[i] = __shfl_xor_sync(0x00000fffu, v, 1, 32);
  } else {
    masks[i] = __activemask();
    d[i] = __shfl_xor_sync(0xfffff000u, v, 2, 32);
  }
}
extern "C" __global__ void ended(const int* x, int* d) {
  int i = threadIdx.x;
  if (i >= 20) return;
  unsigned mask = __activemask();
  int v = x[i];
  for (int o = 16; o; o >>= 1) {
    int w = __shfl_down_sync(mask, v, o, 32);
    if (i + o < 20) v += w;
  }
  d[i] = v;
  d[20 + i] = __shfl_sync(mask, x[i], 25, 32);
}
extern "C" __global__ void row_sum(const float* x, float* d, int n) {
  __shared__ float partial[4];
  float v = 0.0f;
  for (int i = threadIdx.x; i < n; i += 128) v = v + x[blockIdx.x * n + i];
  for (int o = 16; o; o >>= 1) v = v + __shfl_xor_sync(FULL, v, o, 32);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) d[blockIdx.x] = partial[0] + partial[1] + partial[2] + partial[3];
}
extern "C" __global__ void not_in_mask(int* d) {
  d[threadIdx.x] = __shfl_xor_sync(0xffu, 1, 1, 32);
}
extern "C" __global__ void missing_lane(int* d) {
  if (threadIdx.x != 5) d[threadIdx.x] = __shfl_xor_sync(FULL, 1, 1, 32);
  __syncthreads();
}
extern "C" __global__ void two_barriers(int* d) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  d[threadIdx.x] = 1;
}
extern "C" __global__ void small_mma(unsigned* r) {
  int c[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
               "{%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, %3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(r[0]));
  r[threadIdx.x] = (unsigned)c[0];
}
extern "C" __global__ void two_places(unsigned* r) {
  int c[4] = {0, 0, 0, 0};
  if (threadIdx.x % 32 < 16) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(r[0]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(r[1]));
  }
  r[threadIdx.x] = (unsigned)c[0];
}
extern "C" __global__ void through_shared(const int* x, int* d, int sync) {
  __shared__ int s[64];
  s[threadIdx.x] = x[threadIdx.x];
  if (sync) __syncwarp();
  d[threadIdx.x] = s[threadIdx.x ^ 1];
  if (sync) __syncwarp(FULL);
  s[threadIdx.x ^ 2] = 0;
}
"""

ORDERS = ("forward", "reverse", 5)


@pytest.fixture(scope="module")
def program() -> cuda.Program:
    return compiled(TEXT)


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(configure, program: cuda.Program, order) -> None:
    """PTX ISA, shfl.sync: segments of `width` lanes; a source outside gives the lane's own."""
    configure(order)
    n = 64
    x = np.arange(100, 100 + n, dtype=np.int32)
    lane, warp = np.arange(n) % 32, np.arange(n) // 32 * 32
    d = np.zeros((6, n), np.int32)
    program.run("shuffles", 1, n, x, d, np.int32(n))
    in_segment = lane % 8, lane % 16
    sources = (
        (np.arange(n) * 3 + 1) % 32,
        lane ^ 5,
        np.where(in_segment[0] + 3 < 8, lane + 3, lane),
        np.where(in_segment[1] - 3 >= 0, lane - 3, lane),
        np.where((lane ^ 9) > lane // 8 * 8 + 7, lane, lane ^ 9),
        lane // 8 * 8 + 13 % 8,
    )
    for row, source in zip(d, sources, strict=True):
        np.testing.assert_array_equal(row, x[warp + source])


def test_shuffles_move_whole_values(configure, program: cuda.Program) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 32))
    y = y.astype(np.float32)
    d, e = np.zeros(32), np.zeros(32, np.float32)
    program.run("kinds", 1, 32, x, d, y, e)
    np.testing.assert_array_equal(d, x[np.arange(32) ^ 16])
    np.testing.assert_array_equal(e, y[np.minimum(np.arange(32) + 1, 31)])


def test_votes(configure, program: cuda.Program) -> None:
    x = np.concatenate([np.arange(32) % 3 - 1, np.ones(32)]).astype(np.int32)
    d = np.zeros((3, 64), np.uint32)
    program.run("votes", 1, 64, x, d)
    ballot = sum(1 << i for i in range(32) if x[i] > 0)
    assert set(d[0, :32]) == {ballot} and set(d[0, 32:]) == {2**32 - 1}
    assert d[1].all() and not d[2, :32].any() and d[2, 32:].all()


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_that_part_have_masks_of_their_own(configure, program, order) -> None:
    configure(order)
    x, d = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    masks = np.zeros(64, np.uint32)
    program.run("halves", 1, 64, x, d, masks)
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(masks, np.where(lane < 12, 0xFFF, 0xFFFFF000))
    np.testing.assert_array_equal(d, np.where(lane < 12, x ^ 1, x ^ 2))


def test_lanes_that_have_ended_give_poison(configure, program: cuda.Program) -> None:
    x, d = np.arange(1, 33, dtype=np.int32), np.zeros(40, np.int32)
    program.run("ended", 1, 32, x, d)
    assert d[0] == x[:20].sum()
    assert set(d[20:]) == {0x7F7F7F7F}


@pytest.mark.parametrize("order", ORDERS)
def test_a_row_reduction(configure, program: cuda.Program, order) -> None:
    configure(order)
    x = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    d = np.zeros(3, np.float32)
    program.run("row_sum", 3, 128, x, d, np.int32(300))
    padded = np.zeros((3, 384), np.float32)
    padded[:, :300] = x
    lanes = padded[:, :128] + padded[:, 128:256] + padded[:, 256:]
    lanes = lanes.reshape(3, 4, 32)
    for step in (16, 8, 4, 2, 1):
        lanes = lanes + lanes[:, :, np.arange(32) ^ step]
    total = lanes[:, 0, 0] + lanes[:, 1, 0] + lanes[:, 2, 0] + lanes[:, 3, 0]
    np.testing.assert_array_equal(d, total)


@pytest.mark.parametrize("order", ORDERS)
def test_a_warp_barrier_orders_the_memory_of_its_warp(configure, program, order) -> None:
    configure(order)
    x, d = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    program.run("through_shared", 1, 64, x, d, np.int32(1))
    np.testing.assert_array_equal(d, x ^ 1)
    with pytest.raises(cuda.EmulationError, match=r"race: |nobody has written"):
        program.run("through_shared", 1, 64, x, d, np.int32(0))


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("not_in_mask", 32, "is not in its own mask 000000ff"),
        ("missing_lane", 32, "deadlock: waits at __shfl_xor_sync with mask ffffffff"),
        ("two_barriers", 64, "waits at the __syncthreads of line"),
        ("small_mma", 24, "mma.sync on integers by lanes 00ffffff; it needs all 32"),
        ("two_places", 32, "waits at the mma.sync on integers of line .* waits at that of line"),
    ],
)
def test_what_is_undefined_is_named(configure, program, kernel, threads, message) -> None:
    for order in ORDERS:
        configure(order)
        with pytest.raises(cuda.EmulationError, match=f"kernel {kernel}, .*{message}"):
            program.run(kernel, 1, threads, np.zeros(64, np.int32))
