"""The layering and the house rules of the source tree, read from the syntax of every file."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
FOLDERS = ("qcompiler", "passes", "targets", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

# What a layer may not import at all. Files of qcompiler/ that no other row names are core.
ABOVE = ("bench", "cli", "demo", "peers", "report", "runtime", "zoo")
ABOVE_CORE = tuple(f"qcompiler.{n}" for n in ABOVE)
OTHERS = tuple(name for name in ABOVE_CORE if name != "qcompiler.peers")
TVM = ("tvm", "tvm_ffi")
NEVER = {
    "core": (*TVM, "qcompiler.passes", "qcompiler.targets", *ABOVE_CORE),
    "passes": (*TVM, "qcompiler.targets", "qcompiler.frontend", *ABOVE_CORE),
    "targets": ("qcompiler.passes", "qcompiler.frontend", *ABOVE_CORE),
    "runtime": ("qcompiler.bench", "qcompiler.cli", "qcompiler.demo", "qcompiler.zoo"),
    "report": (*TVM, "qcompiler.bench", "qcompiler.cli", "qcompiler.zoo"),
    # Others' programs, prepared without anything of ours but values.
    "peers": (*TVM, "qcompiler.passes", "qcompiler.targets", "qcompiler.frontend", *OTHERS),
    "bench": (*TVM, "qcompiler.passes", "qcompiler.cli", "qcompiler.demo"),
    "zoo": (*TVM, "qcompiler.passes", "qcompiler.targets", "qcompiler.runtime", "qcompiler.cli"),
    "facade": TVM,
    "cli": TVM,
}
# What it may import inside a function only: loading it costs seconds, or a package may be absent.
HEAVY = ("torch", "transformers", "qcompiler.passes", "qcompiler.targets", *ABOVE_CORE)
LAZY = {
    "facade": HEAVY,
    "cli": tuple(name for name in HEAVY if name != "qcompiler.cli"),
    "runtime": ("torch", "qcompiler.passes", "qcompiler.targets", "qcompiler.frontend"),
}
FACADE = ("qcompiler/__init__.py", "qcompiler/api/")
PICTURES = ("matplotlib", "plotly", "PIL", "skimage", "foolbox")
DRAWS = ("report", "zoo", "demo")


class Import(NamedTuple):
    """One imported name, and whether it waits for a call or serves type checkers only."""

    name: str
    line: int
    deferred: bool


def sources(*folders: str) -> list[Path]:
    """Python files, relative to the root; the symlinked packages count once, at the top."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            linked = relative.parts[:2] in (("qcompiler", "passes"), ("qcompiler", "targets"))
            if not linked and "__pycache__" not in relative.parts:
                found.append(relative)
    return found


COMPILER = sources("qcompiler", "passes", "targets")
# Kernel templates are one nest of loops, and read best in one piece.
WITHOUT_KERNELS = [path for path in COMPILER if path.parts[:2] != ("targets", "kernels")]
EVERYTHING = sources(*FOLDERS)


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def layer(path: Path) -> str:
    """The layer a file belongs to, a key of NEVER or `demo`."""
    if path.as_posix().startswith(FACADE):
        return "facade"
    if path.parts[0] in ("passes", "targets"):
        return path.parts[0]
    name = path.parts[1].removesuffix(".py")
    name = "cli" if name == "__main__" else name
    return name if name in ABOVE else "core"


def package(path: Path) -> str:
    """The dotted name relative imports in this file start from."""
    parts = path.parts[:-1]
    return ".".join(parts if parts[0] == "qcompiler" else ("qcompiler", *parts))


def imports(node: ast.AST, inside: str, deferred: bool = False) -> Iterator[Import]:
    """Every import below `node`; `from a import b` counts as a.b, which may be a module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(a.name, child.lineno, deferred) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                start = inside.split(".")[: len(inside.split(".")) - child.level + 1]
                base = ".".join([*start, base] if base else start)
            yield from (Import(f"{base}.{a.name}", child.lineno, deferred) for a in child.names)
        else:
            waits = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from imports(child, inside, deferred or waits or types)


def is_below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def layering(tree: ast.Module, path: Path) -> list[str]:
    """The imports of one file that its layer may not have."""
    here = layer(path)
    found = []
    for name, line, deferred in imports(tree, package(path)):
        wrong = is_below(name, NEVER.get(here, ())) or (
            not deferred and is_below(name, LAZY.get(here, ()))
        )
        if wrong or (here not in DRAWS and is_below(name, PICTURES)):
            found.append(f"{path}:{line}: {here} imports {name}")
    return found


def long_functions(tree: ast.Module, path: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]


def thawed_dataclasses(tree: ast.Module, path: Path) -> list[str]:
    """Dataclasses without frozen=True.

    Private ones are work in progress inside one file; an observer keeps what it has seen.
    """
    return [
        f"{path}:{node.lineno}: {node.name} is not frozen"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if "Observer" not in map(ast.unparse, node.bases)
        for decorator in node.decorator_list
        if "dataclass" in ast.unparse(decorator) and "frozen=True" not in ast.unparse(decorator)
    ]


def environment(tree: ast.Module, path: Path) -> list[str]:
    """Uses of the process environment."""
    return [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and "env" in ast.dump(node))
    ]


def global_statements(tree: ast.Module, path: Path) -> list[str]:
    return [f"{path}:{n.lineno}" for n in ast.walk(tree) if isinstance(n, ast.Global)]


DEVICE = re.compile(r"\b(x86|avx|vnni|neon|armv8|dotprod|cuda|sm\d\d)", re.IGNORECASE)


def named_devices(tree: ast.Module, path: Path) -> list[str]:
    """Names of devices in code; documentation may name them."""
    texts = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    named = (
        (node, getattr(node, field))
        for node in ast.walk(tree)
        for field in ("id", "attr", "name", "value")
        if isinstance(getattr(node, field, None), str) and id(node) not in texts
    )
    return [f"{path}:{node.lineno}: {text}" for node, text in named if DEVICE.search(text)]


def violations(rule, paths: list[Path]) -> list[str]:
    assert paths
    return [found for path in paths for found in rule(parse(path), path)]


# -------------------------------------------------------------------------------------- the rules


def test_layers_import_downwards_only() -> None:
    assert violations(layering, COMPILER) == []


def test_functions_are_short_outside_kernel_templates() -> None:
    assert violations(long_functions, WITHOUT_KERNELS) == []


def test_files_are_short_outside_kernel_templates() -> None:
    lines = {str(p): (ROOT / p).read_text().count("\n") for p in WITHOUT_KERNELS}
    assert {p: n for p, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_every_file_says_its_one_idea_first() -> None:
    first = {str(p): (ast.get_docstring(parse(p)) or "").split("\n")[0] for p in EVERYTHING}
    assert [p for p, line in first.items() if len(line.split()) < 3] == []


def test_values_that_leave_a_file_are_frozen() -> None:
    assert violations(thawed_dataclasses, COMPILER) == []


def test_no_module_rebinds_its_globals() -> None:
    assert violations(global_statements, COMPILER) == []


def test_the_environment_is_read_in_one_file() -> None:
    paths = [p for p in COMPILER if p.as_posix() != "qcompiler/config.py"]
    assert violations(environment, paths) == []


def test_passes_name_no_device() -> None:
    assert violations(named_devices, sources("passes")) == []


def compared_devices(tree: ast.Module, path: Path) -> list[str]:
    """`if target == "..."`: comparisons and match cases with the name of a device."""
    kinds = (ast.Compare, ast.MatchValue)
    found = (
        c
        for node in ast.walk(tree)
        if isinstance(node, kinds)
        for c in ast.walk(node)
        if isinstance(c, ast.Constant) and isinstance(c.value, str) and DEVICE.search(c.value)
    )
    return [f"{path}:{c.lineno}: {c.value}" for c in found]


def test_only_targets_ask_which_target_it_is() -> None:
    assert violations(compared_devices, sources("qcompiler", "passes")) == []
    asks = ast.parse("if target == 'cuda-sm80': pass")
    assert compared_devices(asks, Path("a.py")) == ["a.py:1: cuda-sm80"]


def test_nothing_is_left_unfinished() -> None:
    words = re.compile(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b")
    assert [str(p) for p in COMPILER if words.search((ROOT / p).read_text())] == []


MACHINE = re.compile(r"(?<![\w.$}])/(work|root|home|opt|Users)/|pypi\.org|pythonhosted")
TEXTS = (".py", ".md", ".toml", ".txt", ".yml", ".html", ".j2", ".qir", "Makefile", "run")


def test_the_tree_names_no_machine_and_no_registry() -> None:
    files = [ROOT / p for f in (*FOLDERS, ".ci") for p in (ROOT / f).rglob("*")]
    files += list(ROOT.iterdir())
    texts = [f for f in files if f.is_file() and f.name.endswith(TEXTS) and f != Path(__file__)]
    assert len(texts) > 20
    assert [str(f) for f in texts if MACHINE.search(f.read_text())] == []


def test_symlinked_packages_are_found_and_have_one_name() -> None:
    found = find_packages(str(ROOT), include=["qcompiler*"])
    assert {"qcompiler.passes", "qcompiler.targets", "qcompiler.targets.kernels"} <= set(found)
    for name in ("passes", "targets"):
        assert (ROOT / "qcompiler" / name).readlink() == Path("..") / name
        spec = importlib.util.spec_from_file_location(name, ROOT / name / "__init__.py")
        assert spec is not None and spec.loader is not None
        with pytest.raises(ImportError, match=f"import qcompiler.{name}"):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))


def loaded_by(statement: str, forbidden: tuple[str, ...]) -> list[str]:
    """Which of `forbidden` a new process has loaded after `statement`."""
    code = f"import sys; {statement}; print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return ast.literal_eval(done.stdout)


def test_importing_the_package_loads_neither_torch_nor_tvm() -> None:
    heavy = ("torch", "tvm", "tvm_ffi", "scipy", "matplotlib")
    assert loaded_by("import qcompiler", heavy) == []
    assert loaded_by("import qcompiler.zoo.packages", heavy) == []


# ---------------------------------------------------------------------- the rules find what is bad


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("qcompiler/graph.py", "import tvm.relax"),
        ("qcompiler/graph.py", "from qcompiler import targets"),
        ("qcompiler/graph.py", "from .passes.fold import Fold"),
        ("qcompiler/ops/nn.py", "from ..passes import fold"),
        ("qcompiler/ops/nn.py", "def f():\n    from tvm import relax"),
        ("qcompiler/__init__.py", "from qcompiler import passes"),
        ("qcompiler/cli/run.py", "import torch"),
        ("qcompiler/runtime/model.py", "import torch"),
        ("qcompiler/text.py", "def f():\n    import matplotlib.pyplot"),
        ("passes/fold.py", "from ..targets import x86"),
        ("passes/fold.py", "import tvm"),
        ("targets/x86.py", "from qcompiler.passes import fold"),
    ],
)
def test_wrong_imports_are_found(path: str, code: str) -> None:
    assert len(layering(ast.parse(code), Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("qcompiler/cli/run.py", "def f():\n    from qcompiler import passes, targets"),
        ("qcompiler/__init__.py", "if TYPE_CHECKING:\n    import torch"),
        ("qcompiler/runtime/model.py", "import tvm"),
        ("qcompiler/runtime/verify.py", "def f():\n    import torch"),
        ("passes/fold.py", "from ..graph import Graph"),
        ("targets/x86.py", "import tvm\nfrom qcompiler.graph import Graph"),
        ("qcompiler/report/html.py", "import matplotlib"),
    ],
)
def test_right_imports_are_let_through(path: str, code: str) -> None:
    assert layering(ast.parse(code), Path(path)) == []


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (long_functions, "def f():\n" + "    x\n" * 50, "def f():\n" + "    x\n" * 49),
        (thawed_dataclasses, "@dataclass\nclass A: pass", "@dataclass(frozen=True)\nclass A: pass"),
        (environment, "import os\nos.environ['A']", "import os\nos.fspath(a)"),
        (environment, "from os import getenv", "from os import fspath"),
        (global_statements, "def f():\n    global a", "def f():\n    a = 1"),
        (named_devices, "if target == 'x86-64-v3': pass", "'''Not only for x86.'''\nt = 'float'"),
    ],
)
def test_other_rules_tell_bad_from_good(rule, bad: str, good: str) -> None:
    path = Path("passes/fold.py")
    assert len(rule(ast.parse(bad), path)) == 1
    assert rule(ast.parse(good), path) == []
