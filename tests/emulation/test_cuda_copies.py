"""cp.async: sizes, zero fill, and when the data land, lazily and eagerly."""

import numpy as np
import pytest
from emulated import compiled

from qcompiler.targets.emulation import cuda

TEXT = """
#define SHARED(p) ((unsigned)__cvta_generic_to_shared(p))
#define COMMIT asm volatile("cp.async.commit_group;")
#define WAIT(n) asm volatile("cp.async.wait_group %0;" :: "n"(n))
#define COPY(to, from) \\
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(SHARED(to)), "l"(from))

extern "C" __global__ void sizes(const signed char* x, signed char* d, int part) {
  __shared__ __align__(16) signed char s[64];
  int i = threadIdx.x;
  for (int k = i * 16; k < i * 16 + 16; ++k) s[k] = 7;
  signed char* t = s + i * 16;
  const signed char* p = x + i * 16;
  if (i == 0) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(SHARED(t)), "l"(p));
  if (i == 1) asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2, %3;"
                           :: "r"(SHARED(t)), "l"(p), "n"(16), "r"(part));
  if (i == 2) asm volatile("cp.async.ca.shared.global [%0 + 8], [%1 + 8], 8;"
                           :: "r"(SHARED(t)), "l"(p));
  if (i == 3) asm volatile("cp.async.ca.shared::cta.global [%0], [%1], 4, 0;"
                           :: "r"(SHARED(t)), "l"(p));
  asm volatile("cp.async.wait_all;");
  __syncthreads();
  for (int k = i * 16; k < i * 16 + 16; ++k) d[k] = s[k];
}
// What lies in shared memory at once, after the wait for the first of two groups, and at the end.
extern "C" __global__ void landing(const int4* x, int4* d) {
  __shared__ __align__(16) int4 s[2];
  s[0] = make_int4(1, 1, 1, 1);
  s[1] = make_int4(2, 2, 2, 2);
  COPY(s, x); COMMIT;
  COPY(s + 1, x + 1); COMMIT;
  d[0] = s[0]; d[1] = s[1];
  WAIT(1);
  d[2] = s[0]; d[3] = s[1];
  WAIT(0);
  d[4] = s[0]; d[5] = s[1];
}
extern "C" __global__ void uncommitted(const int4* x, int4* d) {
  __shared__ __align__(16) int4 s[1];
  COPY(s, x);
  WAIT(0);
  d[0] = s[0];
}
extern "C" __global__ void no_barrier(const int4* x, int4* d) {
  __shared__ __align__(16) int4 s[64];
  COPY(s + threadIdx.x, x + threadIdx.x); COMMIT;
  WAIT(0);
  d[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void over_readers(const int4* x, int4* d) {
  __shared__ __align__(16) int4 s[64];
  s[threadIdx.x] = make_int4(0, 0, 0, 0);
  __syncthreads();
  d[threadIdx.x] = s[63 - threadIdx.x];
  COPY(s + threadIdx.x, x + threadIdx.x); COMMIT;
  WAIT(0);
}
extern "C" __global__ void shifted(const signed char* x, int by) {
  __shared__ __align__(16) int4 s[2];
  COPY((signed char*)s + by, x + by);
}
extern "C" __global__ void beyond(const int4* x, int at, int to) {
  __shared__ __align__(16) int4 s[2];
  COPY(s + to, x + at);
}
extern "C" __global__ void small_cg(const signed char* x) {
  __shared__ __align__(16) int4 s[1];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 8;" :: "r"(SHARED(s)), "l"(x));
}
"""


@pytest.fixture(scope="module")
def program() -> cuda.Program:
    return compiled(TEXT)


@pytest.fixture(scope="module")
def unchecked() -> cuda.Program:
    return compiled(TEXT, checks=False)


@pytest.mark.parametrize("copies", ["lazy", "eager"])
def test_sizes_and_zero_fill(configure, program: cuda.Program, copies: str) -> None:
    configure(copies=copies)
    x, d = np.arange(1, 65, dtype=np.int8), np.zeros(64, np.int8)
    program.run("sizes", 1, 4, x, d, np.int32(5))
    expected = np.full(64, 7, np.int8)
    expected[:16] = x[:16]
    expected[16:32] = 0
    expected[16:21] = x[16:21]
    expected[40:48] = x[40:48]
    expected[48:52] = 0
    np.testing.assert_array_equal(d, expected)


@pytest.mark.parametrize(
    ("copies", "first_seen"), [("lazy", [1, 2, 10, 2, 10, 20]), ("eager", [10, 20, 10, 20, 10, 20])]
)
def test_when_copies_land(configure, unchecked: cuda.Program, copies: str, first_seen) -> None:
    """The wait for all but one group lets the second land as late as it may, or as early."""
    configure(copies=copies, checks=False)
    x, d = np.repeat(np.array([10, 20], np.int32), 4), np.zeros((6, 4), np.int32)
    unchecked.run("landing", 1, 1, x, d)
    assert d[:, 0].tolist() == first_seen


def test_a_group_must_be_committed(configure, unchecked: cuda.Program, program) -> None:
    x, d = np.full(4, 10, np.int32), np.zeros(4, np.int32)
    configure(checks=False)
    unchecked.run("uncommitted", 1, 1, x, d)
    assert set(d) == {0x7F7F7F7F}
    for copies in ("lazy", "eager"):
        configure(copies=copies)
        with pytest.raises(cuda.EmulationError, match=r"read of shared array s, .*may still be wr"):
            program.run("uncommitted", 1, 1, x, d)


@pytest.mark.parametrize("copies", ["lazy", "eager"])
@pytest.mark.parametrize("order", ["forward", "reverse", 3])
def test_copies_race_like_writes(configure, program, order, copies: str) -> None:
    configure(order, copies)
    x, d = np.arange(256, dtype=np.int32), np.zeros(256, np.int32)
    with pytest.raises(cuda.EmulationError, match=r"race: |nobody has|may still be writing"):
        program.run("no_barrier", 1, 64, x, d)
    with pytest.raises(cuda.EmulationError, match=r"race: |may still be writing"):
        program.run("over_readers", 1, 64, x, d)


def test_an_eager_copy_overwrites_what_others_read(configure, unchecked) -> None:
    x, d = np.arange(1, 257, dtype=np.int32), np.zeros(256, np.int32)
    configure(copies="lazy", checks=False)
    unchecked.run("over_readers", 1, 64, x, d)
    configure(copies="eager", checks=False)
    unchecked.run("over_readers", 1, 64, x, d)
    assert d.any()


def test_addresses(configure, program: cuda.Program) -> None:
    x = np.zeros(32, np.int8)
    with pytest.raises(cuda.EmulationError, match=r"misaligned cp\.async of 16 bytes"):
        program.run("shifted", 1, 1, x, np.int32(8))
    with pytest.raises(cuda.EmulationError, match="read of 16 bytes at byte 32 of a device"):
        program.run("beyond", 1, 1, x, np.int32(2), np.int32(0))
    with pytest.raises(cuda.EmulationError, match=r"write of 16 bytes at .*out of bounds"):
        program.run("beyond", 1, 1, x, np.int32(0), np.int32(2))
    with pytest.raises(cuda.EmulationError, match=r"cp.async.cg of 8 bytes; it copies 16"):
        program.run("small_cg", 1, 1, x)
