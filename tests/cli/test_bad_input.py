"""Every kind of bad input, through the Python API and the command line: one error, the same words.

Each message says what, where, expected, got and what to do, on one or two lines; nothing is
written. What else can go wrong with each of them is tested beside the code that says so.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import qcompiler as qc
from qcompiler.runtime.bundle import read

X = torch.zeros(1, 3, 4, 4)
SAMPLES = np.zeros((2, 1, 3, 4, 4), np.float32)


def from_shop(name: str):
    import shop

    return getattr(shop, name)


def compiled(name: str, **options: object) -> object:
    return qc.compile(*from_shop(name)(), **options)


def infinite() -> list[torch.Tensor]:
    return [X, torch.full((1, 3, 4, 4), float("inf"))]


COMPILING = {
    "NaN in calibration data": (
        lambda: compiled("net", calibration=from_shop("nan")()),
        ("shop:net", "--calibration", "shop:nan"),
        ("calibration item 0", "input %input", "expected finite values", "got NaN"),
    ),
    "inf in calibration data": (
        lambda: compiled("net", calibration=infinite()),
        ("shop:net", "--calibration", "infinite.npz"),
        ("calibration item 1", "input %input", "expected finite values", "got inf"),
    ),
    "empty calibration": (
        lambda: compiled("net", calibration=[]),
        ("shop:net", "--calibration", "shop:nothing"),
        ("calibration data is empty", "expected at least one item"),
    ),
    "items with labels": (
        lambda: compiled("net", calibration=[(X, torch.tensor([3]))]),
        ("shop:net", "--calibration", "labelled.npz"),
        ("calibration item 0", "expected 1 input", "got 2 values", "pass the inputs only"),
    ),
    "control flow that depends on data": (
        lambda: compiled("branches", recipe="float32"),
        ("shop:branches", "--recipe", "float32"),
        ("control flow depends on its data", "shop.py:", "torch.where"),
    ),
    "an op that is not known": (
        lambda: compiled("unsupported", recipe="float32"),
        ("shop:unsupported", "--recipe", "float32"),
        ("svd", "shop.py:"),
    ),
    "an op with no lowering": (
        lambda: compiled("empty", recipe="float32"),
        ("shop:empty", "--recipe", "float32"),
        ("x86-64-v3 has no kernel for", "float32[0,3]", "an empty tensor", "change the model"),
    ),
}


@pytest.mark.parametrize("case", COMPILING, ids=lambda name: name.replace(" ", "-"))
def test_models_and_data_that_cannot_be_compiled(cli, case: str) -> None:
    call, arguments, fragments = COMPILING[case]
    np.savez("infinite.npz", input=np.stack([X.numpy(), np.full_like(X, np.inf)]))
    np.savez("labelled.npz", SAMPLES, np.zeros(2, np.int64))
    before = files()
    sys.path.insert(0, "")
    with pytest.raises(Exception) as caught:
        call()
    assert_says(str(caught.value), fragments)
    done = cli("compile", *arguments, "-o", "m.qcm", "--report", "m.html")
    assert (done.code, files()) == (1, before)
    assert_says(done.err.removeprefix("error: "), fragments)


RUNNING = {
    "a wrong shape": (
        np.zeros((1, 3, 4, 5), np.float32),
        ("input %input: expected float32[1,3,4,4], got float32[1,3,4,5]",),
    ),
    "a wrong rank": (
        np.zeros((3, 4, 4), np.float32),
        ("input %input: expected float32[1,3,4,4], got float32[3,4,4]",),
    ),
    "a wrong dtype": (
        np.zeros((1, 3, 4, 4)),
        ("input %input: expected float32[1,3,4,4], got float64[1,3,4,4]", "astype"),
    ),
}


@pytest.mark.parametrize("case", RUNNING, ids=lambda name: name.replace(" ", "-"))
def test_inputs_that_do_not_fit_a_program(made, cli, case: str) -> None:
    value, fragments = RUNNING[case]
    model = qc.load(made / "m.qcm")
    for given in (value, torch.from_numpy(value)):
        with pytest.raises(qc.InputError) as caught:
            model(given)
        assert_says(str(caught.value), fragments)
    np.savez("x.npz", input=value)
    before = files()
    for done in (cli("run", made / "m.qcm", "x.npz", "-o", "y.npz"),
                 cli("verify", made / "m.qcm", "x.npz")):  # fmt: skip
        assert (done.code, files()) == (1, before)
        assert_says(done.err.removeprefix("error: "), fragments)


def test_a_path_that_cannot_be_written(made, cli) -> None:
    model = qc.load(made / "m.qcm")
    Path("folder").mkdir()
    before = files()
    for path, reason in (("none/m.qcm", "No such file or directory"),
                         ("folder", "Is a directory"), ("/proc/m.qcm", "")):  # fmt: skip
        fragments = (path, "cannot write", reason)
        with pytest.raises(OSError) as caught:
            model.save(path)
        assert_says(str(caught.value), fragments)
        commands = (
            ("compile", "shop:net", "--recipe", "float32", "-o", path),
            ("compile", "shop:net", "--recipe", "float32", "-o", "m.qcm", "--report", path),
            ("run", made / "m.qcm", made / "x.npz", "-o", path),
            ("opt", made / "dump" / "00_input.qir", "-p", "fold", "-o", path),
        )
        for command in commands:
            done = cli(*command)
            assert (done.code, files()) == (1, before)
            assert_says(done.err.removeprefix("error: "), fragments)


def test_a_machine_that_lacks_what_the_target_needs(made, cli) -> None:
    """Compiling and looking do not need the machine; running says what it lacks."""
    elsewhere(made / "m.qcm", "elsewhere.qcm")
    fragments = ("elsewhere.qcm", "built for x86-64-v3", "lacks warp-drive", "another target")
    with pytest.raises(qc.MachineError) as caught:
        qc.load("elsewhere.qcm")
    assert_says(str(caught.value), fragments)
    before = files()
    for command in (("run", "elsewhere.qcm", made / "x.npz", "-o", "y.npz"),
                    ("verify", "elsewhere.qcm"), ("bench", "elsewhere.qcm")):  # fmt: skip
        done = cli(*command)
        assert (done.code, files()) == (1, before)
        assert_says(done.err.removeprefix("error: "), fragments)
    assert cli("inspect", "elsewhere.qcm").code == 0


def elsewhere(path: Path, to: str) -> None:
    """The same artifact for a CPU with a feature that no CPU has."""
    bundle = read(path)
    features = (*bundle.manifest.features, "warp-drive")
    replace(bundle, manifest=replace(bundle.manifest, features=features)).save(to)


def files() -> list[Path]:
    """What lies in the current folder, but for Python's own files."""
    return sorted(p for p in Path().rglob("*") if "__pycache__" not in p.parts)


def assert_says(message: str, fragments: tuple[str, ...]) -> None:
    assert len(message.strip().splitlines()) <= 2, message
    assert not re.search(r"Traceback|qcompiler/", message), message
    for fragment in fragments:
        assert fragment in message
