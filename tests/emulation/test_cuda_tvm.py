"""TVM's own CUDA runtime and the Relax VM on the emulated device."""

import os
import subprocess
import sys

import cuda_gemm
import emulated
import numpy as np
import pytest

from qcompiler.nvcc import with_text
from qcompiler.targets.emulation import cuda

N, ROWS, K = 96, 5, 64
CALLBACK = "tvm_callback_cuda_compile"


def target():
    import tvm

    return tvm.target.Target(
        {
            "kind": "cuda",
            "keys": ["cuda", "gpu"],
            "arch": "sm_80",
            "thread_warp_size": 32,
            "max_threads_per_block": 1024,
            "max_num_threads": 1024,
            "max_shared_memory_per_block": 166912,
            "registers_per_block": 65536,
            "host": {"kind": "llvm", "mtriple": "x86_64-linux-gnu"},
        }
    )


def dots():
    """c[i, j] = sum of a[i, k] * b[j, k] over bytes, by dp4a, rows of a through shared memory."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def dots(
        a: T.Buffer((ROWS, K // 4), "int32"),
        b: T.Buffer((N, K // 4), "int32"),
        c: T.Buffer((ROWS, N), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for block in T.thread_binding(ROWS, thread="blockIdx.x"):
            for thread in T.thread_binding(N, thread="threadIdx.x"):
                row = T.alloc_buffer((K // 4,), "int32", scope="shared")
                total = T.alloc_buffer((1,), "int32", scope="local")
                if thread < K // 4:
                    row[thread] = a[block, thread]
                T.tvm_storage_sync("shared")
                total[0] = 0
                for k in T.serial(K // 4):
                    total[0] = T.call_extern("int32", "__dp4a", row[k], b[thread, k], total[0])
                c[block, thread] = total[0]

    return dots


def sums():
    """d[i] = rint(sum of c[i, j] / 8), the sum by shuffles."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def sums(c: T.Buffer((ROWS, N), "int32"), d: T.Buffer((ROWS,), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for block in T.thread_binding(ROWS, thread="blockIdx.x"):
            for thread in T.thread_binding(32, thread="threadIdx.x"):
                total = T.alloc_buffer((1,), "int32", scope="local")
                total[0] = 0
                for k in T.serial(N // 32):
                    total[0] = total[0] + c[block, k * 32 + thread]
                for step in T.unroll(5):
                    total[0] = total[0] + T.tvm_warp_shuffle_xor(
                        T.uint32(0xFFFFFFFF), total[0], 16 >> step, 32, 32
                    )
                if thread == 0:
                    d[block] = T.nearbyint(T.cast(total[0], "float32") * T.float32(0.125))

    return sums


def module():
    """A Relax program of the two kernels."""
    from tvm import relax
    from tvm.script import relax as R

    builder = relax.BlockBuilder()
    a = relax.Var("a", R.Tensor((ROWS, K // 4), "int32"))
    b = relax.Var("b", R.Tensor((N, K // 4), "int32"))
    with builder.function("main", [a, b]):
        with builder.dataflow():
            shapes = (R.Tensor((ROWS, N), "int32"), R.Tensor((ROWS,), "float32"))
            first, second = builder.add_func(dots(), "dots"), builder.add_func(sums(), "sums")
            c = builder.emit(relax.call_tir(first, [a, b], out_ty=shapes[0]))
            d = builder.emit(relax.call_tir(second, [c], out_ty=shapes[1]))
            out = builder.emit_output(relax.Tuple([c, d]))
        builder.emit_func_output(out)
    return builder.get()


def compiled():
    """Its executable: the CUDA text is made by TVM, the rest by the passes that every VM needs."""
    import tvm
    from tvm.relax import transform as passes

    pipeline = tvm.transform.Sequential(
        [
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )
    return tvm.compile(module(), target=target(), relax_pipeline=pipeline)


def operands() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.integers(-128, 128, (rows, K), dtype=np.int8) for rows in (ROWS, N))


def run(executable, device) -> list[np.ndarray]:
    import tvm
    import tvm.runtime.vm

    machine = tvm.runtime.vm.VirtualMachine(executable, device)
    given = [tvm.runtime.tensor(x.view(np.int32), device) for x in operands()]
    return [out.numpy() for out in machine["main"](*given)]


def check(outputs: list[np.ndarray]) -> None:
    a, b = operands()
    c = a.astype(np.int32) @ b.astype(np.int32).T
    np.testing.assert_array_equal(outputs[0], c)
    total = c.sum(1).astype(np.float32)
    np.testing.assert_array_equal(outputs[1], np.rint(total * np.float32(0.125)))


def test_a_relax_program_in_every_order(device) -> None:

    assert device.exist and device.compute_version == "9.0"
    cuda.start(architecture="sm_80")
    assert device.compute_version == "8.0"
    assert device.max_shared_memory_per_block == 48 << 10  # what is static; TVM asks for no other
    executable = compiled()
    for order, copies in emulated.SETTINGS:
        cuda.start(order, copies)
        check(run(executable, device))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("__syncthreads();", "", r"kernel dots_kernel, .*(race: |nobody has written)"),
        ("threadIdx.x) < 16)", "threadIdx.x) < 17)", r"dots_kernel, .*index 16 is outside"),
    ],
)
def test_faults_in_tvm_text_are_named(device, right: str, wrong: str, message: str) -> None:
    import tvm_ffi

    def planted(source: str) -> bytes:
        assert source.count(right) == 1
        return source.replace(right, wrong).encode()

    tvm_ffi.register_global_func(CALLBACK, planted, override=True)
    try:
        executable = compiled()
    finally:
        cuda.start()
    with pytest.raises(RuntimeError, match=message):
        run(executable, device)
    check(run(compiled(), device))


def test_machine_code_is_emulated_by_its_text(device) -> None:
    import tvm_ffi

    # A fat binary: magic, version 1, a header of 16 bytes, the bytes that follow it.
    code = (0xBA55ED50).to_bytes(4, "little") + bytes([1, 0, 16, 0]) + (32).to_bytes(8, "little")
    code += bytes(32)
    both = lambda text: with_text(code, text.encode())  # noqa: E731
    for make, works in ((both, True), (lambda _: code, False)):
        tvm_ffi.register_global_func(CALLBACK, make, override=True)
        try:
            executable = compiled()
        finally:
            cuda.start()
        if works:
            check(run(executable, device))
            continue
        with pytest.raises(RuntimeError, match="machine code without its CUDA text"):
            run(executable, device)


CHILD = """
import sys
import numpy as np
from qcompiler.runtime import emulation
from qcompiler.runtime.tvm_runtime import import_tvm
emulation.cuda().prepare()
import_tvm()
emulation.cuda().start()
assert "torch" not in sys.modules and "qcompiler.targets" not in sys.modules
import tvm
from tvm.base import _RUNTIME_ONLY
assert _RUNTIME_ONLY
device = tvm.cuda(0)
machine = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(sys.argv[1]), device)
given = [tvm.runtime.tensor(x, device) for x in np.load(sys.argv[2]).values()]
np.savez(sys.argv[3], *(out.numpy() for out in machine["main"](*given)))
"""


def child(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_an_artifact_runs_with_tvms_runtime_only(device, tmp_path) -> None:
    compiled().export_library(str(tmp_path / "m.so"))
    np.savez(tmp_path / "in.npz", *(x.view(np.int32) for x in operands()))
    paths = (tmp_path / "m.so", tmp_path / "in.npz", tmp_path / "out.npz")
    done = child(CHILD, *paths, TVM_USE_RUNTIME_LIB="1")  # as where torch is not installed
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as out:
        check(list(out.values()))


QUIET = """
from qcompiler.targets.emulation import cuda
assert not cuda.started()
assert cuda.available() is None, cuda.available()
import tvm
assert not cuda.started()
maps = open("/proc/self/maps").read()
assert "cuda-emulator" not in maps
"""


def test_nothing_is_emulated_unasked() -> None:
    emulated.skip_without_emulator()
    done = child(QUIET)
    assert done.returncode == 0, done.stderr


REAL = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
from qcompiler.runtime import emulation
from qcompiler.runtime.tvm_runtime import import_tvm
cuda = emulation.cuda()
assert not cuda.started()
print(cuda.available())
try:
    cuda.start()
except cuda.EmulationError as e:
    print(e)
"""


@pytest.mark.parametrize("name", ["libcuda.so.1", "libcudart.so.13"])
def test_a_real_driver_is_never_replaced(tmp_path, name: str) -> None:
    emulated.skip_without_emulator()
    source, library = tmp_path / "real.cpp", tmp_path / name
    source.write_text('extern "C" int cuInit(unsigned) { return 0; }')
    command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    done = child(REAL, library)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 2 and all("already" in line and "the real" in line for line in told)


BUILD = """
import sys, time
from qcompiler.runtime import emulation
from qcompiler.runtime.tvm_runtime import import_tvm
build = emulation.cuda().build

def slowly(work):
    with open(sys.argv[1], "a") as log:
        log.write("built ")
    time.sleep(0.5)
    for name in (build.DRIVER, build.RUNTIME):
        (work / name).touch()

build._build_libraries = slowly
print(build.libraries())
"""


def test_two_processes_build_the_libraries_once(tmp_path) -> None:
    emulated.skip_without_emulator()
    cache, log = tmp_path / "cache", tmp_path / "log"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", BUILD, str(log)]
    both = [subprocess.Popen(command, stdout=-1, text=True, env=environment) for _ in range(2)]
    folders = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(folders) == 1
    assert log.read_text() == "built "
    left = {path.name for path in (cache / "qcompiler" / "cuda-emulator").iterdir()}
    assert left == {"lock", os.path.basename(folders.pop())}


def test_without_a_compiler_the_reason_is_given() -> None:
    code = "from qcompiler.runtime import emulation; print(emulation.cuda().available())"
    done = child(code, PATH="")
    assert done.stdout.strip() == "the CUDA emulator needs g++, which is not on PATH", done.stderr


def test_settings_are_checked(configure) -> None:
    for wrong in ({"order": "sideways"}, {"copies": "late"}):
        with pytest.raises(ValueError, match="expected "):
            configure(**wrong)


def test_the_gemm_of_these_tests_has_the_fragments_of_tvm(configure) -> None:
    """Two sizes that are no multiple of a tile, all orders: what the fault tests start from."""
    program = emulated.compiled(cuda_gemm.TEXT)
    assert all(cuda_gemm.run(program, *sizes) for sizes in ((1, 1, 32), (33, 65, 64)))
