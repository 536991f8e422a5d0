"""CUDA text to C++: what is not known is refused by name, and lines keep their numbers."""

import numpy as np
import pytest

from qcompiler.targets.emulation import cuda
from qcompiler.targets.emulation.cuda.text import matching, pieces


def kernel(body: str, parameters: str = "int* d") -> str:
    return f'extern "C" __global__ void k({parameters}) {{\n{body}\n}}\n'


@pytest.mark.parametrize(
    ("body", "unknown"),
    [
        ('asm volatile("wgmma.fence.sync.aligned;");', "wgmma.fence.sync.aligned"),
        ('asm volatile("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0};" :: "r"(d[0]));',
         "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32"),
        ('asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(0));', "mbarrier.init"),
        ('asm volatile("cp.async.wait_group;");', "cp.async.wait_group"),
        ('asm volatile("mov.u32 %0, %%laneid;" : "=r"(d[0]));', "%laneid"),
        ('asm volatile("ld.global.u32 %0, [%1 - 4];" : "=r"(d[0]) : "l"(d));', "[%1 - 4]"),
        ('asm volatile("bar.sync 1, 64;");', "bar.sync of barrier 0 only"),
        ("__shared__ int s[4];", None),
    ],
)  # fmt: skip
def test_unknown_ptx_is_named(body: str, unknown: str | None) -> None:
    if unknown is None:
        assert "k_s" not in cuda.translate(kernel(body))
        return
    with pytest.raises(cuda.EmulationError) as raised:
        cuda.translate(kernel(body))
    assert "the emulator " in str(raised.value) and unknown in str(raised.value)


@pytest.mark.parametrize(
    ("body", "name", "line"),
    [
        ("  d[0] = 1;\n  d[1] = __nv_tanhf(2.0f);", "__nv_tanhf", 3),
        ('asm volatile("// nothing\\n"\n  "cp.async.commit_group;" ::);\n  d[0] = __expf(1.0f);',
         "__expf", 4),
        ("nvcuda::wmma::fragment<int> f;", "nvcuda", 2),
        ("__shared__ alignas(16) float\n  s[4];\n  d[0] = texture_of(s);", "texture_of", 4),
    ],
)  # fmt: skip
def test_unknown_functions_are_named_with_their_line(configure, body, name, line) -> None:
    with pytest.raises(cuda.EmulationError, match=rf"`{name}` \(line {line} of the CUDA text: "):
        cuda.Program(kernel(body))


def test_a_missing_header_and_an_error_are_named(configure) -> None:
    with pytest.raises(cuda.EmulationError, match=r"`cuda_fp8.h` \(line 1"):
        cuda.Program("#include <cuda_fp8.h>\n" + kernel(""))
    with pytest.raises(cuda.EmulationError, match=r"g\+\+ refuses line 2 of .*int x"):
        cuda.Program(kernel("int x = &d;"))


def test_shared_memory_outside_of_a_kernel_is_refused() -> None:
    with pytest.raises(cuda.EmulationError, match="in a kernel only"):
        cuda.translate("__device__ void f() { __shared__ int s[4]; }" + kernel("f();"))


def test_names_in_the_text_do_not_meet_those_of_the_translation(configure) -> None:
    """Operands may have any name; kernels may have those of the C library; bodies may nest."""
    text = """
extern "C" __global__ void __launch_bounds__(32, 1) read(unsigned* r, unsigned* p, unsigned a) {
  __shared__ unsigned s[32];
  { __shared__ unsigned c[2][32];
    c[1][threadIdx.x] = r[threadIdx.x]; // a brace in a comment: {
    s[threadIdx.x] = c[1][threadIdx.x] + '{' - '{';
  }
  unsigned addr = __cvta_generic_to_shared(s + threadIdx.x), c = 5;
  asm volatile("{ .reg .pred p; .reg .b32 r;\\n"
               "setp.lt.u32 p, %2, %3;  mov.b32 r, 9;\\n"
               "@p ld.shared.u32 %0, [%1]; @!p mov.b32 %0, r; }\\n"
               : "=r"(p[threadIdx.x]) : "r"(addr), "r"(threadIdx.x), "r"(a));
}
extern "C" __global__ void declared_only(int* d);
"""
    r, p = np.arange(100, 132, dtype=np.uint32), np.zeros(32, np.uint32)
    cuda.Program(text).run("read", 1, 32, r, p, np.uint32(20))
    np.testing.assert_array_equal(p, np.where(np.arange(32) < 20, r, 9))


def test_vector_loads_and_stores(configure) -> None:
    text = """
extern "C" __global__ void k(const float* x, float* d) {
  float a, b, c, e;
  asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(a), "=f"(b), "=f"(c), "=f"(e) : "l"(x));
  asm volatile("st.global.v2.b32 [%0 + 8], {%1, %2};" :: "l"(d), "f"(e), "f"(c));
}
"""
    d = np.zeros(4, np.float32)
    x = np.array([1.5, 2.5, 3.5, 4.5], np.float32)
    cuda.Program(text).run("k", 1, 1, x, d)
    assert d.tolist() == [0, 0, 4.5, 3.5]


def test_brackets_and_pieces() -> None:
    assert matching('f("(", \'(\', /* ( */ (1)) + 2', 1) == 23
    assert pieces('a, f(b, c), "d,e", {g, h}', ",") == ["a", " f(b, c)", ' "d,e"', " {g, h}"]
    with pytest.raises(cuda.EmulationError, match="the bracket in line 2"):
        matching("f()\n(1", 4)
