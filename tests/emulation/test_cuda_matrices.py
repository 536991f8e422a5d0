"""Lane layouts of ldmatrix, stmatrix and mma.sync against the fragment tables of the PTX ISA.

The tables are written out here as numpy index arithmetic, as section 9.7.14.5 of PTX ISA 8.7 has
them, and know nothing of the engine. groupID = lane >> 2, threadID_in_group = lane % 4.
"""

import shutil
import subprocess

import cuda_gemm
import numpy as np
import pytest
from emulated import compiled

from qcompiler.targets.emulation import cuda

LANE = np.arange(32)[:, None]
GROUP, IN_GROUP = LANE >> 2, LANE % 4


def a_layout(depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the bytes a_i each lane holds of A[16, depth]; one row per lane."""
    i = np.arange(depth // 2)[None]
    if depth == 16:  # 9.7.14.5.8, .s8/.u8: row groupID for i < 4, else groupID + 8
        return GROUP + np.where(i < 4, 0, 8), IN_GROUP * 4 + (i & 3)
    # 9.7.14.5.9: row groupID for 0 <= i < 4 and 8 <= i < 12; columns from 16 on for i >= 8
    low = (i < 4) | ((i >= 8) & (i < 12))
    return GROUP + np.where(low, 0, 8), IN_GROUP * 4 + (i & 3) + np.where(i < 8, 0, 16)


def b_layout(depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the bytes b_i each lane holds of B[depth, 8]."""
    i = np.arange(depth // 4)[None]
    return IN_GROUP * 4 + (i & 3) + np.where(i < 4, 0, 16), GROUP + 0 * i


def c_layout() -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the values c_i each lane holds of C[16, 8]."""
    i = np.arange(4)[None]
    return GROUP + np.where(i < 2, 0, 8), IN_GROUP * 2 + (i & 1)


def mma_kernel(name: str, instruction: str, a: int, b: int, value: str) -> str:
    """A kernel that gives each lane its registers, and stores what it has afterwards."""
    numbers = [f"%{i}" for i in range(4 + a + b + 4)]
    groups = [numbers[:4], numbers[4 : 4 + a], numbers[4 + a : 4 + a + b], numbers[4 + a + b :]]
    braces = ", ".join("{" + ", ".join(group) + "}" for group in groups)
    bound = "f" if value == "float" else "r"
    outs = ", ".join(f'"={bound}"(d[{i}])' for i in range(4))
    ins = [f'"r"(a[{i}])' for i in range(a)] + [f'"r"(b[{i}])' for i in range(b)]
    ins += [f'"{bound}"(c[{i}])' for i in range(4)]
    return f"""
extern "C" __global__ void {name}(
    const unsigned* A, const unsigned* B, const {value}* C, {value}* D) {{
  const unsigned *a = A + threadIdx.x * {a}, *b = B + threadIdx.x * {b};
  const {value}* c = C + threadIdx.x * 4;
  {value} d[4];
  asm volatile("{instruction} {braces};" : {outs} : {", ".join(ins)});
  for (int i = 0; i < 4; ++i) D[threadIdx.x * 4 + i] = d[i];
}}"""


def integer_instruction(depth: int, a: str, b: str, satfinite: bool) -> str:
    middle = ".satfinite" if satfinite else ""
    return f"mma.sync.aligned.m16n8k{depth}.row.col{middle}.s32.{a}.{b}.s32"


INTEGER = [
    (depth, a, b, satfinite)
    for depth in (16, 32)
    for a in ("s8", "u8")
    for b in ("s8", "u8")
    for satfinite in (False, True)
]


def integer_text() -> str:
    return "".join(
        mma_kernel(f"mma{i}", integer_instruction(*case), case[0] // 8, case[0] // 16, "int")
        for i, case in enumerate(INTEGER)
    )


@pytest.fixture(scope="module")
def integer_program() -> cuda.Program:
    return compiled(integer_text())


def random_bytes(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.int8 if kind == "s8" else np.uint8
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max + 1, shape, dtype=dtype)
    values.flat[::7] = info.min
    values.flat[1::7] = info.max
    return values


@pytest.mark.parametrize("number", range(len(INTEGER)))
def test_integer_mma(configure, integer_program: cuda.Program, number: int) -> None:
    depth, a_kind, b_kind, satfinite = INTEGER[number]
    rng = np.random.default_rng(number)
    a = random_bytes(rng, a_kind, (16, depth))
    b = random_bytes(rng, b_kind, (depth, 8))
    c = rng.integers(-(2**31), 2**31, (16, 8), dtype=np.int64)
    c[::3] = 2**31 - 5
    c[1::3] = -(2**31)
    product = a.astype(np.int64) @ b.astype(np.int64) + c
    limits = np.iinfo(np.int32)
    expected = np.clip(product, limits.min, limits.max) if satfinite else product
    d = np.zeros((32, 4), np.int32)
    fragments = [
        np.ascontiguousarray(a[a_layout(depth)]),
        np.ascontiguousarray(b[b_layout(depth)]),
        np.ascontiguousarray(c[c_layout()].astype(np.int32)),
    ]
    for order in ("forward", "reverse", 3):
        configure(order)
        d[:] = 0
        integer_program.run(f"mma{number}", 1, 32, *fragments, d)
        np.testing.assert_array_equal(d, expected.astype(np.int32)[c_layout()])


def test_half_mma(configure) -> None:
    """9.7.14.5.8, .f16: small whole numbers, so that every order of the sum is exact."""
    instruction = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    program = cuda.Program(mma_kernel("mma", instruction, 4, 2, "float"))
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 10, (16, 16)), rng.integers(-9, 10, (16, 8))
    c = rng.integers(-99, 100, (16, 8))
    i = np.arange(8)[None]
    high = (i % 4) >= 2  # a_2, a_3, a_6 and a_7 lie eight rows below
    a_at = GROUP + np.where(high, 8, 0), IN_GROUP * 2 + (i & 1) + np.where(i < 4, 0, 8)
    i = np.arange(4)[None]
    b_at = IN_GROUP * 2 + (i & 1) + np.where(i < 2, 0, 8), GROUP + 0 * i
    d = np.zeros((32, 4), np.float32)
    parts = [x[at] for x, at in ((a, a_at), (b, b_at), (c, c_layout()))]
    kinds = (np.float16, np.float16, np.float32)
    fragments = [np.ascontiguousarray(p.astype(t)) for p, t in zip(parts, kinds, strict=True)]
    program.run("mma", 1, 32, *fragments, d)
    np.testing.assert_array_equal(d, (a @ b + c)[c_layout()])


MATRICES = """
extern "C" __global__ void load_%(n)s%(t)s(const unsigned short* in, unsigned* out) {
  __shared__ __align__(16) unsigned short s[32 * 24];
  for (int i = 0; i < 8; ++i) s[threadIdx.x * 24 + i] = in[threadIdx.x * 8 + i];
  __syncthreads();
  unsigned r[4], addr = (unsigned)__cvta_generic_to_shared(s + threadIdx.x * 24);
  asm volatile("ldmatrix.sync.aligned.m8n8.x%(n)s%(dot)s.shared.b16 {%(regs)s}, [%%%(n)s];"
               : %(outs)s : "r"(addr));
  for (int i = 0; i < %(n)s; ++i) out[threadIdx.x * %(n)s + i] = r[i];
}
extern "C" __global__ void store_%(n)s%(t)s(const unsigned* in, unsigned short* out) {
  __shared__ __align__(16) unsigned short s[32 * 24];
  const unsigned* r = in + threadIdx.x * %(n)s;
  for (int i = 0; i < 24; ++i) s[threadIdx.x * 24 + i] = 0;
  __syncthreads();
  unsigned addr = (unsigned)__cvta_generic_to_shared(s + threadIdx.x * 24);
  asm volatile("stmatrix.sync.aligned.m8n8.x%(n)s%(dot)s.shared.b16 [%%%(n)s], {%(regs)s};"
               :: %(ins)s, "r"(addr));
  __syncthreads();
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = s[threadIdx.x * 24 + i];
}
"""


def matrix_text(count: int, transposed: bool) -> str:
    return MATRICES % {
        "n": count,
        "t": "t" if transposed else "",
        "dot": ".trans" if transposed else "",
        "regs": ", ".join(f"%{i}" for i in range(count)),
        "outs": ", ".join(f'"=r"(r[{i}])' for i in range(count)),
        "ins": ", ".join(f'"r"(r[{i}])' for i in range(count)),
    }


def matrices_text() -> str:
    cases = [(count, transposed) for count in (1, 2, 4) for transposed in (False, True)]
    return "".join(matrix_text(*case) for case in cases)


@pytest.fixture(scope="module")
def matrix_program() -> cuda.Program:
    return compiled(matrices_text())


def fragments(matrices: np.ndarray, transposed: bool) -> np.ndarray:
    """9.7.14.5.15: lane l holds row l / 4, elements 2 * (l % 4) and the next, of [count, 8, 8]."""
    seen = matrices.transpose(0, 2, 1) if transposed else matrices
    low, high = (seen[:, GROUP, IN_GROUP * 2 + i][..., 0].astype(np.uint32) for i in (0, 1))
    return np.ascontiguousarray((low | high << 16).T)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(configure, matrix_program, count: int, transposed: bool) -> None:
    rng = np.random.default_rng(count)
    rows = rng.integers(0, 2**16, (32, 8), dtype=np.uint16)
    registers = fragments(rows[: count * 8].reshape(count, 8, 8), transposed)
    suffix = f"{count}{'t' if transposed else ''}"
    loaded = np.zeros((32, count), np.uint32)
    matrix_program.run(f"load_{suffix}", 1, 32, rows, loaded)
    np.testing.assert_array_equal(loaded, registers)
    stored = np.zeros((32, 8), np.uint16)
    matrix_program.run(f"store_{suffix}", 1, 32, registers, stored)
    np.testing.assert_array_equal(stored[: count * 8], rows[: count * 8])
    assert (stored[count * 8 :] == 0).all()


def test_nvcc_takes_the_same_text(tmp_path) -> None:
    """What the emulator is shown here is CUDA: every instruction as ptxas knows it."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    text = tmp_path / "all.cu"
    text.write_text(cuda_gemm.TEXT + integer_text() + matrices_text())
    command = ["nvcc", "-arch=sm_90", "--cubin", str(text), "-o", str(tmp_path / "all.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
