"""Loading and running need neither torch nor sympy nor, without them, TVM's compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

import qcompiler as qc

ROOT = Path(__file__).parents[2]

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "sympy", "scipy", "networkx", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""

RUN = """
import sys
import numpy as np
import qcompiler as qc
model = qc.load(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], model(x))
assert model.report.recipe == "int8" and "graph @fused" in model.text
"""

LIGHT = """
import os, sys
loaded = {"torch", "sympy", "safetensors"} & set(sys.modules)
assert not loaded, loaded
assert "TVM_USE_RUNTIME_LIB" not in os.environ
"""

ALONE = LIGHT + """
import tvm
assert tvm.base._RUNTIME_ONLY
"""

REFUSED = """
def needs(what, call):
    try:
        call()
    except ImportError as e:
        assert type(e) is qc.MissingTorch
        assert str(e) == f"{what} needs PyTorch: pip install 'qcompiler[torch]'", e
    else:
        raise AssertionError(what)

def import_(code):
    return lambda: exec(code, {})

for name in ("trace", "quantize", "compile"):
    needs(f"qcompiler.{name}", lambda: getattr(qc, name)(1, 2))
needs("qcompiler.targets", lambda: qc.targets())
for name in ("passes", "targets"):
    for code in (f"from qcompiler import {name}", f"import qcompiler.{name}",
                 f"from qcompiler.{name} import by_name"):
        needs(f"qcompiler.{name}", import_(code))
"""

LOADED_REFUSES = """
needs("CompiledModel.verify", lambda: model.verify())
needs("CompiledModel.graph", lambda: model.graph)
assert model.call_tree(x).shape == model(x).shape
"""


EMULATES = """
import numpy as np
from qcompiler.runtime import emulation
text = 'extern "C" __global__ void one(int* y) { y[threadIdx.x] = (int)threadIdx.x + 1; }'
y = np.zeros(5, np.int32)
emulation.cuda().Program(text).run("one", 1, 5, y)
assert y.tolist() == [1, 2, 3, 4, 5]
"""


def python(code: str, *arguments: object, program: str = sys.executable, **options) -> str:
    command = [program, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def sample(artifacts, tmp_path):
    """(arguments of RUN, the expected result)."""
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6), np.float32)
    np.save(tmp_path / "x.npy", x)
    paths = (artifacts("layers"), tmp_path / "x.npy", tmp_path / "y.npy")
    return paths, qc.load(paths[0])(x)


def test_torch_may_be_absent(sample) -> None:
    paths, expected = sample
    python(BLOCKED + RUN + ALONE + REFUSED + LOADED_REFUSES, *paths, cwd=ROOT)
    python(BLOCKED + "import qcompiler as qc\n" + REFUSED, cwd=ROOT)
    assert np.array_equal(np.load(paths[2]), expected)


def test_torch_is_not_loaded_where_it_is_installed_and_all_works_later(sample) -> None:
    """Load and run first, then compile, call with tensors and verify, in one process."""
    paths, expected = sample
    later = """
import torch
y = model(torch.from_numpy(x))
assert isinstance(y, torch.Tensor) and (y.numpy() == np.load(sys.argv[3])).all()
assert str(model.graph) == model.text
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.LayerNorm(5)).eval()
x = torch.randn(4, 6)
for recipe in ("float32", "int8", "int8-dynamic"):
    made = qc.compile(net, (x,), calibration=[x], recipe=recipe)
    assert isinstance(made(x), torch.Tensor) and (made(x) - net(x)).abs().max() < 0.1
    assert made.verify().holds
    made.save(sys.argv[3] + ".qcm")
    assert torch.equal(qc.load(sys.argv[3] + ".qcm")(x), made(x))
assert model.verify().holds
assert "native" in qc.targets()
"""
    python(RUN + LIGHT + later, *paths, cwd=ROOT)
    assert np.array_equal(np.load(paths[2]), expected)


def test_the_compiler_is_there_when_torch_came_first(sample) -> None:
    paths, _ = sample
    code = """
import torch
made = qc.compile(torch.nn.ReLU().eval(), (torch.zeros(2),), recipe="float32")
assert made(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
"""
    python("import torch\n" + RUN + code, *paths, cwd=ROOT)


def test_the_wheel_loads_and_runs_in_a_bare_environment(sample, tmp_path) -> None:
    """In a new environment that sees numpy and TVM, and of the others only what --help needs."""
    paths, expected = sample
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("qcompiler", "passes", "targets"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "bdist_wheel"]
    subprocess.run([*build, "-d", tmp_path], cwd=source, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    program = tmp_path / "env" / "bin" / "python"
    site = Path(python("import sysconfig; print(sysconfig.get_path('purelib'))",
                       program=str(program)).strip())  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    installed = Path(sysconfig.get_path("purelib"))
    packages = ("numpy", "numpy.libs", "tvm", "tvm_ffi", "ml_dtypes", "typing_extensions.py")
    for name in packages:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    code = RUN + ALONE + REFUSED + LOADED_REFUSES
    python(code, *paths, program=str(program), cwd=tmp_path, env=clean)
    assert np.array_equal(np.load(paths[2]), expected)
    where = python("import qcompiler; print(qcompiler.__file__)", program=str(program),
                   cwd=tmp_path, env=clean)  # fmt: skip
    assert Path(where.strip()).is_relative_to(site)
    if shutil.which("g++"):
        python(BLOCKED + EMULATES, program=str(program), cwd=tmp_path, env=clean)
