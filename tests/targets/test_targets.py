"""Which targets there are, which one this machine is, and how libraries are linked."""

import sys

import pytest
import torch
from lowering import TARGET, fused

import qcompiler as qc
from qcompiler import targets
from qcompiler.ops import Gelu, Input
from qcompiler.targets import LinkError, TargetError
from qcompiler.targets.build import build, load
from qcompiler.targets.link import linker_command
from qcompiler.types import DType, TensorType

V3 = frozenset(targets.get("x86-64-v3").features)
V4 = frozenset(targets.get("x86-64-v4").features)
TRIPLE = "x86_64-linux-gnu"


def test_names() -> None:
    x86 = ("x86-64-v3", "x86-64-v4", "x86-64-avxvnni", "x86-64-avx512vnni")
    arm = ("armv8-a", "armv8.2-dotprod", "armv8.6-i8mm")
    gpus = ("cuda-sm80", "cuda-sm90")
    assert targets.names() == ("native", *x86, *arm, *gpus) == qc.targets()


def test_an_unknown_target_is_refused_with_a_choice() -> None:
    with pytest.raises(TargetError, match="no target 'pentium'; choose one of native, x86-64-v3"):
        targets.get("pentium")


def test_native_is_chosen_by_what_the_cpu_says() -> None:
    assert targets.native(V3 | {"sse2", "avx512f", "avx512_vnni"}).name == "x86-64-v3"
    assert targets.native(V3 | {"avx_vnni"}).name == "x86-64-avxvnni"
    assert targets.native(V4 | {"avx512_bf16"}).name == "x86-64-v4"
    assert targets.native(V4 | {"avx512_vnni"}).name == "x86-64-avx512vnni"
    assert targets.native(V4 | {"avx512_vnni", "avx_vnni"}).name == "x86-64-avx512vnni"
    with pytest.raises(TargetError, match="x86-64-v3 needs fma"):
        targets.native(V3 - {"fma"})
    assert targets.native(frozenset({"asimd"})).name == "armv8-a"
    assert targets.native(frozenset({"asimd", "asimddp", "sve"})).name == "armv8.2-dotprod"
    assert targets.native(frozenset({"asimd", "asimddp", "i8mm"})).name == "armv8.6-i8mm"
    with pytest.raises(TargetError, match="no target runs here: armv8-a needs asimd"):
        targets.native(frozenset({"vfpv4"}))


def small() -> tuple:
    x = Input(TensorType((2, 64), DType.FLOAT32))(name="x")
    return fused([x], [Gelu()(x)]), torch.randn(2, 64)


def test_linkers_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"ld.lld": "/a/ld.lld", f"{TRIPLE}-gcc": "/a/gcc", "cc": "/a/cc"}
    monkeypatch.setattr("shutil.which", found.get)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("QC_LINKER", "my ld --fast")
    assert linker_command(TRIPLE) == ["my", "ld", "--fast"]
    monkeypatch.delenv("QC_LINKER")
    for name in ("ld.lld", f"{TRIPLE}-gcc", "cc"):
        assert linker_command(TRIPLE) == [found.pop(name)]
    cure = r"no linker for x86_64.*pip install 'qcompiler\[cross\]' \(ziglang\).*QC_LINK"
    with pytest.raises(LinkError, match=cure):
        linker_command(TRIPLE)
    found["cc"] = "/a/cc"
    with pytest.raises(LinkError, match="no linker for aarch64"):
        linker_command("aarch64-linux-gnu")


def test_the_lld_of_ziglang_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    package = tmp_path / "ziglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ziglang", raising=False)
    monkeypatch.delenv("QC_LINKER", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert linker_command(TRIPLE) == [str(package / "zig"), "ld.lld"]


def test_a_linker_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = small()
    monkeypatch.setenv("QC_LINKER", f"{sys.executable} -c raise(SystemExit('no_such_option'))")
    with pytest.raises(LinkError, match="failed:\nno_such_option"):
        build(graph, TARGET)


def test_a_chosen_linker_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QC_LINKER", raising=False)
    graph, value = small()
    monkeypatch.setenv("QC_LINKER", " ".join(linker_command(TRIPLE)))
    assert load(build(graph, TARGET))(value)[0].shape == (2, 64)
