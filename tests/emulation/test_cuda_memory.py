"""Memory faults one by one: bounds to the byte, alignment, races, what nobody has written."""

import numpy as np
import pytest
from emulated import compiled

from qcompiler.targets.emulation import cuda
from qcompiler.targets.emulation.cuda import build

TEXT = """
extern "C" __global__ void read(const signed char* x, signed char* d, int at) { d[0] = x[at]; }
extern "C" __global__ void write(signed char* d, int at) { d[at] = 1; }
extern "C" __global__ void read4(const int4* x, int4* d, int at) {
  d[0] = *(const int4*)((const char*)x + at);
}
extern "C" __global__ void atomic(int* d, int at) { atomicAdd(&d[at], 1); }
extern "C" __global__ void local(int* d, int at) {
  volatile int a[8] = {0};
  a[at] = 1;
  d[0] = a[0];
}
extern "C" __global__ void large(int* d, int at) {
  volatile int a[100000];
  a[at] = 3;
  d[0] = a[at];
}
extern "C" __global__ void shared_bounds(int* d, int at) {
  __shared__ int s[32];
  __shared__ int t[32];
  s[threadIdx.x] = 1;
  t[threadIdx.x] = 2;
  const int* p = s;
  d[threadIdx.x] = p[threadIdx.x + at];
}
extern "C" __global__ void dynamic_bounds(int* d, int at) {
  extern __shared__ __align__(16) int s[];
  s[threadIdx.x] = (int)threadIdx.x;
  d[threadIdx.x] = s[threadIdx.x + at];
}
extern "C" __global__ void uninitialised(int* d, int n) {
  __shared__ int s[64];
  if ((int)threadIdx.x < n) s[threadIdx.x] = 0;
  __syncthreads();
  d[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void unset(int* d, int n) {
  int last[2];
  for (int i = 0; i < n; ++i) last[i] = i;
  d[0] = last[1];
}
extern "C" __global__ void kept(int* d) {
  __shared__ int s[32];
  if (blockIdx.x == 0) s[threadIdx.x] = 5;
  d[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void read_after_write(int* d, int barrier) {
  __shared__ int s[64];
  s[threadIdx.x] = (int)threadIdx.x;
  if (barrier) __syncthreads();
  d[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void write_after_read(int* d, int barrier) {
  __shared__ int s[64];
  s[threadIdx.x] = (int)threadIdx.x;
  __syncthreads();
  d[threadIdx.x] = s[63 - threadIdx.x];
  if (barrier) __syncthreads();
  s[threadIdx.x] = -1;
}
extern "C" __global__ void write_after_all_reads(int* d, int sync) {
  __shared__ int s[32];
  s[threadIdx.x] = (int)threadIdx.x;
  __syncthreads();
  int v = s[31 - threadIdx.x];
  d[threadIdx.x] = __shfl_xor_sync(0xffffffffu, v, 1, 32);
  if (sync) __syncwarp();
  s[threadIdx.x] = -1;
}
extern "C" __global__ void write_twice(int* d, int at) {
  __shared__ int s[64];
  s[threadIdx.x / 2] = 1;
  __syncthreads();
  d[threadIdx.x] = s[threadIdx.x / 2];
}
extern "C" __global__ void neighbours(int* d, int unused) {
  __shared__ signed char s[64];
  s[threadIdx.x] = (signed char)threadIdx.x;
  __syncthreads();
  d[threadIdx.x] = s[threadIdx.x ^ 1];
}
extern "C" __global__ void counted(int* d, int n) {
  __shared__ int s[1];
  if (threadIdx.x == 0) s[0] = 0;
  __syncthreads();
  atomicAdd(&s[0], n);
  __syncthreads();
  d[threadIdx.x] = s[0];
}
extern "C" __global__ void __launch_bounds__(64) bounded(int* d) { d[threadIdx.x] = 1; }
extern "C" __global__ void converted(const float* x, int* d, int unused) { d[0] = (int)x[0]; }
extern "C" __global__ void aligned_shared(int* d, int at) {
  __shared__ __align__(16) int s[64];
  for (int i = 0; i < 64; ++i) s[i] = i;
  int2 v = *(int2*)(s + at);
  d[0] = v.x + v.y;
}
"""

ORDERS = ("forward", "reverse", 9)


@pytest.fixture(scope="module")
def program() -> cuda.Program:
    return compiled(TEXT)


@pytest.fixture(scope="module")
def unchecked() -> cuda.Program:
    """The same program, its accesses not instrumented."""
    return compiled(TEXT, checks=False)


def bytes_of(size: int) -> np.ndarray:
    return np.zeros(size, np.int8)


@pytest.mark.parametrize("size", [1, 7, 16, 100, 256, 4096, 5000])
def test_every_byte_beyond_an_allocation_is_out_of_bounds(configure, program, size) -> None:
    x, d = bytes_of(size), bytes_of(16)
    for at in (0, size - 1):
        program.run("read", 1, 1, x, d, np.int32(at))
        program.run("write", 1, 1, x, np.int32(at))
    for at in (-1, size, size + 1, size + 300, -4000, size + 5000):
        with pytest.raises(cuda.EmulationError, match=r"kernel read, .*: read of 1 bytes"):
            program.run("read", 1, 1, x, d, np.int32(at))
        with pytest.raises(cuda.EmulationError, match=r"kernel write, .*: write of 1 bytes"):
            program.run("write", 1, 1, x, np.int32(at))


def test_the_message_says_where(configure, program: cuda.Program) -> None:
    message = r"block \(0, 0, 0\), thread \(0, 0, 0\): read of 1 bytes at byte 103 of a .* of 100"
    with pytest.raises(cuda.EmulationError, match=message):
        program.run("read", 1, 1, bytes_of(100), bytes_of(16), np.int32(103))


def test_vectors_atomics_and_registers(configure, program: cuda.Program) -> None:
    x, d, n = np.zeros(40, np.int32), np.zeros(4, np.int32), np.int32
    program.run("read4", 1, 1, x, d, n(144))
    with pytest.raises(cuda.EmulationError, match="read of 16 bytes at byte 160"):
        program.run("read4", 1, 1, x, d, n(160))
    with pytest.raises(cuda.EmulationError, match="misaligned read of 16 bytes"):
        program.run("read4", 1, 1, x, d, n(8))
    program.run("atomic", 1, 32, d, n(3))
    assert d[3] == 32
    with pytest.raises(cuda.EmulationError, match="atomic update of 4 bytes"):
        program.run("atomic", 1, 32, d, n(4))
    program.run("local", 1, 1, d, n(7))
    with pytest.raises(cuda.EmulationError, match=r"index 8 is outside of an array .*int \[8\]"):
        program.run("local", 1, 1, d, n(8))


@pytest.mark.parametrize("checks", [True, False])
def test_local_memory_that_is_too_large_is_named(configure, checks: bool) -> None:
    program = compiled(TEXT, checks)
    with pytest.raises(cuda.EmulationError, match=r"kernel large, .*local memory overflows"):
        program.run("large", 1, 1, np.zeros(4, np.int32), np.int32(99_999))


def test_a_float_that_no_integer_holds_is_named(configure, program: cuda.Program) -> None:
    """A device saturates, the host does not: a kernel that must be exact clamps first."""
    d = np.zeros(1, np.int32)
    program.run("converted", 1, 1, np.array([-7.9], np.float32), d, np.int32(0))
    assert d[0] == -7
    with pytest.raises(cuda.EmulationError, match=r"3e\+09, a value of type .*float.* to .*int"):
        program.run("converted", 1, 1, np.array([3e9], np.float32), d, np.int32(0))
    program.run("converted", 1, 1, np.array([np.nan], np.float32), d, np.int32(0))


def test_shared_memory_has_bounds(configure, program: cuda.Program) -> None:
    d = np.zeros(32, np.int32)
    program.run("shared_bounds", 1, 32, d, np.int32(0))
    with pytest.raises(cuda.EmulationError, match=r"read of 4 bytes at .*out of bounds"):
        program.run("shared_bounds", 1, 32, d, np.int32(32))
    program.run("dynamic_bounds", 1, 32, d, np.int32(0), shared=128)
    with pytest.raises(cuda.EmulationError, match="dynamic shared memory, byte 128: out of bounds"):
        program.run("dynamic_bounds", 1, 32, d, np.int32(32), shared=128)
    with pytest.raises(cuda.EmulationError, match="write of 4 bytes at dynamic shared memory"):
        program.run("dynamic_bounds", 1, 32, d, np.int32(0), shared=100)
    with pytest.raises(cuda.EmulationError, match="misaligned read of 8 bytes"):
        program.run("aligned_shared", 1, 1, d, np.int32(1))


@pytest.mark.parametrize("order", ORDERS)
def test_shared_memory_begins_unwritten_in_every_block(configure, program, order) -> None:
    configure(order)
    d = np.zeros(64, np.int32)
    program.run("uninitialised", 1, 64, d, np.int32(64))
    with pytest.raises(cuda.EmulationError, match=r"read of shared array s, .*nobody has"):
        program.run("uninitialised", 1, 64, d, np.int32(63))
    with pytest.raises(cuda.EmulationError, match=r"block .1, 0, 0.*nobody has written"):
        program.run("kept", 2, 32, d)


def test_unwritten_shared_memory_is_poison_without_checks(configure, unchecked) -> None:
    configure(checks=False)
    d = np.zeros(64, np.int32)
    unchecked.run("uninitialised", 1, 64, d, np.int32(63))
    assert d[:63].max() == 0 and d[63] == 0x7F7F7F7F
    unchecked.run("kept", 2, 32, d)
    assert set(d[:32]) == {5} and set(d[32:]) == {0x7F7F7F7F}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", ["read_after_write", "write_after_read"])
def test_races_are_named_in_every_order(configure, program, kernel: str, order) -> None:
    configure(order)
    d = np.zeros(64, np.int32)
    program.run(kernel, 1, 64, d, np.int32(1))
    np.testing.assert_array_equal(d, np.arange(63, -1, -1))
    with pytest.raises(cuda.EmulationError, match=r"race: |nobody has written"):
        program.run(kernel, 1, 64, d, np.int32(0))


@pytest.mark.parametrize("order", ORDERS)
def test_a_write_after_reads_is_a_race_though_no_value_changes(configure, program, order) -> None:
    """The shuffle keeps the lanes together here, but orders no memory; a __syncwarp does."""
    configure(order)
    d = np.zeros(32, np.int32)
    program.run("write_after_all_reads", 1, 32, d, np.int32(1))
    np.testing.assert_array_equal(d, 31 - (np.arange(32) ^ 1))
    with pytest.raises(cuda.EmulationError, match=r"race: write of shared array s, .* has read"):
        program.run("write_after_all_reads", 1, 32, d, np.int32(0))


def test_races_are_judged_byte_by_byte(configure, program: cuda.Program) -> None:
    d = np.zeros(64, np.int32)
    program.run("neighbours", 1, 64, d, np.int32(0))
    np.testing.assert_array_equal(d, np.arange(64) ^ 1)
    with pytest.raises(cuda.EmulationError, match="race: write of shared array s, byte 0, which"):
        program.run("write_twice", 1, 64, d, np.int32(0))
    program.run("counted", 1, 64, d, np.int32(2))
    assert set(d) == {128}


@pytest.mark.parametrize("size", [1, 100, 256, 4096, 5000])
def test_writes_beside_an_allocation_show_without_checks(configure, unchecked, size) -> None:
    configure(checks=False)
    x = bytes_of(size)
    unchecked.run("write", 1, 1, x, np.int32(size - 1))
    for at in (-1, size, size + 255, size + 4096, -5000):
        with pytest.raises(cuda.EmulationError, match=r"beside an allocation|device allocation"):
            unchecked.run("write", 1, 1, x, np.int32(at))


def test_reads_past_the_last_page_show_without_checks(configure, unchecked) -> None:
    configure(checks=False)
    for at in (256, 300, 4095):
        with pytest.raises(cuda.EmulationError, match=r"kernel read, .*at byte .* of a device"):
            unchecked.run("read", 1, 1, bytes_of(256), bytes_of(16), np.int32(at))


def test_the_process_goes_on_after_a_fault(configure, program: cuda.Program) -> None:
    d = bytes_of(16)
    for _ in range(3):
        with pytest.raises(cuda.EmulationError):
            program.run("read", 1, 1, d, d, np.int32(99))
        program.run("write", 1, 1, d, np.int32(3))
    assert d[3] == 1


def test_launches_have_limits(configure, program: cuda.Program) -> None:
    d = np.zeros(64, np.int32)
    program.run("bounded", 1, 64, d)
    for block, message in ((65, "takes 1 to 64"), (0, "takes 1 to 64"), ((4, 4, 65), "takes 1")):
        with pytest.raises(cuda.EmulationError, match=message):
            program.run("bounded", 1, block, d)
    with pytest.raises(cuda.EmulationError, match=r"a grid of \(1, 70000, 1\) blocks"):
        program.run("bounded", (1, 70000), 64, d)
    with pytest.raises(cuda.EmulationError, match="asks for 232449 bytes of dynamic shared memory"):
        program.run("dynamic_bounds", 1, 32, d, np.int32(0), shared=232449)
    with pytest.raises(cuda.EmulationError, match="no kernel absent"):
        program.run("absent", 1, 1)


def test_a_block_of_sm_80_has_less_shared_memory(configure, program: cuda.Program) -> None:
    d = np.zeros(32, np.int32)
    configure(architecture="sm_80")
    program.run("dynamic_bounds", 1, 32, d, np.int32(0), shared=166912)
    with pytest.raises(cuda.EmulationError, match="a block has 166912"):
        program.run("dynamic_bounds", 1, 32, d, np.int32(0), shared=166913)
    configure(architecture="sm_90")
    program.run("dynamic_bounds", 1, 32, d, np.int32(0), shared=166913)
    with pytest.raises(ValueError, match="expected sm_80 or sm_90, got 'sm_70'"):
        configure(architecture="sm_70")


def test_what_nobody_has_set_holds_a_pattern(configure, program: cuda.Program) -> None:
    """And no 0, as the stack of a fiber mostly has."""
    if not set(build.INITIALISED) <= set(build.checked()):
        pytest.skip("this g++ cannot set local variables")
    d = np.zeros(1, np.int32)
    program.run("unset", 1, 1, d, np.int32(2))
    assert d[0] == 1
    program.run("unset", 1, 1, d, np.int32(1))
    assert d.view(np.uint32)[0] == 0xFEFEFEFE
