"""An int8 GEMM in CUDA text: a pipeline of cp.async, ldmatrix and mma, and its planted faults.

C[M, N] = A[M, K] * B[N, K]^T in int32; K is a multiple of 32. A block of four warps computes
32 x 32 values; three stages of 32 x 32 bytes of A and of B lie in shared memory, in rows of 48.
"""

import numpy as np

TEXT = r"""
#include <cuda.h>
__forceinline__ __device__ void copy16(void* dst, const void* src, int predicate) {
  unsigned int dst_addr = __cvta_generic_to_shared(dst);
  __asm__ __volatile__(
    "{\n"
    " .reg .pred p;\n"
    " setp.ne.b32 p, %3, 0;\n"
    " @p cp.async.cg.shared.global [%0], [%1], %2;\n"
    " @!p st.shared.v4.u32 [%0], {%4, %4, %4, %4};\n"
    "}\n"
    :: "r"(dst_addr), "l"(src), "n"(16), "r"(predicate), "r"(0) : "memory");
}
__forceinline__ __device__ void load4(unsigned* r, const void* row) {
  unsigned int addr = __cvta_generic_to_shared(row);
  __asm__ __volatile__(
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
    "{%0, %1, %2, %3}, [%4];\n"
    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr));
}
extern "C" __global__ void __launch_bounds__(128) gemm(
    const signed char* __restrict__ A, const signed char* __restrict__ B, int* __restrict__ C,
    int M, int N, int K) {
  __shared__ alignas(16) signed char As[3 * 32 * 48];
  __shared__ alignas(16) signed char Bs[3 * 32 * 48];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, steps = K / 32;
  int half = threadIdx.x >> 6, row = (threadIdx.x & 63) >> 1, part = (threadIdx.x & 1) * 16;
  int copied = (half ? (int)blockIdx.x : (int)blockIdx.y) * 32 + row;
  int inside = copied < (half ? N : M);
  const signed char* source = (half ? B : A) + copied * K + part;
  signed char* target = (half ? Bs : As) + row * 48 + part;
  int acc[8] = {0};
  for (int stage = 0; stage < 2; ++stage) {
    if (stage < steps) copy16(target + stage * 1536, source + stage * 32, inside);
    asm volatile("cp.async.commit_group;" ::);
  }
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    int stage = step % 3 * 1536;
    unsigned a[4], b[4];
    load4(a, As + stage + ((warp >> 1) * 16 + (lane & 15)) * 48 + (lane >> 4) * 16);
    int column = (warp & 1) * 16 + (lane & 7) + (lane >> 4) * 8;
    load4(b, Bs + stage + column * 48 + (lane >> 3 & 1) * 16);
    for (int j = 0; j < 2; ++j) {
      __asm__ __volatile__(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
        : "=r"(acc[j * 4]), "=r"(acc[j * 4 + 1]), "=r"(acc[j * 4 + 2]), "=r"(acc[j * 4 + 3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[j * 2]), "r"(b[j * 2 + 1]),
          "r"(acc[j * 4]), "r"(acc[j * 4 + 1]), "r"(acc[j * 4 + 2]), "r"(acc[j * 4 + 3]));
    }
    if (step + 2 < steps) copy16(target + (step + 2) % 3 * 1536, source + (step + 2) * 32, inside);
    asm volatile("cp.async.commit_group;" ::);
  }
  for (int i = 0; i < 8; ++i) {
    int m = blockIdx.y * 32 + (warp >> 1) * 16 + lane / 4 + (i >> 1 & 1) * 8;
    int n = blockIdx.x * 32 + (warp & 1) * 16 + (i >> 2) * 8 + lane % 4 * 2 + (i & 1);
    if (m < M && n < N) C[m * N + n] = acc[i];
  }
}
"""

FAULTS = {
    "dropped barrier": ("    __syncthreads();\n", ""),
    "wrong wait count": ("wait_group 1;", "wait_group 2;"),
    "swapped register": ('"r"(b[j * 2]), "r"(b[j * 2 + 1])', '"r"(b[j * 2 + 1]), "r"(b[j * 2])'),
    "missing guard of a read": ("int inside = copied < (half ? N : M);", "int inside = 1;"),
    "missing guard of a write": ("if (m < M && n < N) C", "if (n < N) C"),
    "late copy": ("(step + 2) % 3 * 1536", "(step + 2) % 2 * 1536"),
}


def planted(fault: str) -> str:
    """The text with one of FAULTS in it."""
    right, wrong = FAULTS[fault]
    assert TEXT.count(right) == 1
    return TEXT.replace(right, wrong)


def operands(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and an output with a value that no test expects."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (rows, k), dtype=np.int8) for rows in (m, n))
    return a, b, np.full((m, n), -1, np.int32)


def run(program, m: int, n: int, k: int) -> bool:
    """Whether the program's product of random matrices is right."""
    a, b, c = operands(m, n, k)
    grid = ((n + 31) // 32, (m + 31) // 32)
    program.run("gemm", grid, 128, a, b, c, *(np.int32(size) for size in (m, n, k)))
    return bool((c == a.astype(np.int32) @ b.astype(np.int32).T).all())
