"""Exit codes and messages; nothing half-written stays behind."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import qcompiler as qc
from qcompiler.cli import exits
from qcompiler.runtime import archive

USAGE = [
    (("compile", "shop:net", "-o", "m.qcm"), "'int8' has static activations and needs --calib"),
    (("compile", "shop:net", "--recipe", "int9", "-o", "m.qcm"), "'int9' is not a recipe"),
    (("compile", "shop:net", "--recipe", "bfloat16", "-o", "m.qcm"), "'bfloat16' is not done yet"),
    (("compile", "shop:net", "--recipe", "r.toml", "-o", "m.qcm"), "r.toml: No such file"),
    (("compile", "shop:net", "--target", "z80", "-o", "m.qcm"), "there is no target 'z80'"),
    (("compile", "shop:absent", "--recipe", "float32", "-o", "m.qcm"), "has no 'absent'"),
    (("compile", "absent:net", "--recipe", "float32", "-o", "m.qcm"), "no module 'absent'"),
    (("compile", "net", "--recipe", "float32", "-o", "m.qcm"), "package.module:function"),
    (("compile", "m.qcm", "--recipe", "float32", "-o", "m.qcm"), "expected a .pt2 file, a .qir"),
    (("compile", "no.pt2", "--recipe", "float32", "-o", "m.qcm"), "no file 'no.pt2'"),
    (("compile", "shop:net", "--calibration", "no.npz", "-o", "m.qcm"), "no file 'no.npz'"),
    (("compile", "shop:net"), "Missing option '-o'"),
    (("compile", "shop:net", "--recipe", "float32", "-o", ""), "the name of a file to write"),
    (("compile", "shop:net", "--recipe", "float32", "-o", "x", "--report", "./x"), "are one file"),
    (("run", "no.qcm", "x.npz", "-o", "y.npz"), "'no.qcm' does not exist"),
    (("bench", "shop:net", "--against", "tflite"), "there is no peer 'tflite'"),
    (("bench",), "name a SOURCE, or give --all or --memory"),
    (("bench", "gemm768", "--all"), "leave SOURCE out"),
    (("bench", "shop:net", "--batch", 2), "only built-in works take one: resnet50"),
    (("bench", "no.qcm"), "no file 'no.qcm'"),
    (("frobnicate",), "No such command 'frobnicate'"),
    (("targets", "--frob"), "No such option"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_wrong_usage_is_2(cli, tmp_path, arguments, message: str) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["shop.py"]


FLOAT = ("--recipe", "float32")
DATA = "--calibration"
REFUSALS = [
    (("shop:branches", *FLOAT), "control flow depends on its data"),
    (("shop:training", *FLOAT), "it is in training mode; call module.eval() first"),
    (("shop:unsupported", *FLOAT), "svd"),
    (("shop:alone", *FLOAT), "expected it to return (module, example_inputs), got int"),
    (("shop:crash", *FLOAT), "shop:crash: KeyError: 'a bug' (set QC_DEBUG=1 for the traceback)"),
    (("broken:net", *FLOAT), "broken: ZeroDivisionError: division by zero (set QC_DEBUG=1"),
    (("needy:net", *FLOAT), "needy: ModuleNotFoundError: No module named 'absent_package'"),
    (("shop:misfit", *FLOAT), "fails on the example inputs (float32[1,3,4,4]): RuntimeError: Giv"),
    (("shop:item", *FLOAT), "depends on its data at shop.py:"),
    (("shop:item", *FLOAT), ": .item() makes a Python number of a tensor"),
    (("shop:scaled", *FLOAT), "float() makes a Python number of a tensor"),
    (("shop:masked", *FLOAT), "a size that depends on the data, as of nonzero or x[mask]; keep"),
    (("shop:net", DATA, "shop:broken_items"), "shop:broken_items: OSError: no picture 3 (set QC_"),
    (("shop:net", DATA, "one.npy"), "one.npy: expected an .npz file of plain arrays, as np.savez"),
    (("shop:net", DATA, "one.npy"), "got an .npy file of one array"),
    (("shop:embed", DATA, "ids.npz"), "calibration item 1: %"),
    (("shop:net", DATA, "strings.npz"), "expected an array of numbers, got an array of <U3"),
    (("shop:net", DATA, "shop:nothing"), "calibration data is empty"),
    (("shop:net", DATA, "shop:nan"), "expected finite values, got NaN"),
    (("shop:net", DATA, "uneven.npz"), "the same number of samples"),
    (("shop:net", DATA, "wrong.npz"), "expected float32[1,3,4,4], got float32[3,4,4]"),
    (("shop:net", DATA, "text.npz"), "expected an .npz file of plain arrays"),
    (("shop:net", DATA, "pickled.npz"), "writes; 'input' in it is damaged or holds objects"),
    (("shop:net", DATA, "zip.npz"), "'a.txt' in it is no array"),
    (("text.pt2", *FLOAT), "torch.export.load cannot read it: it is no zip, or was cut off"),
    (("zip.pt2", *FLOAT), "torch.export.load cannot read it: it holds no exported program"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_what_cannot_be_compiled_is_1_and_one_message(cli, arguments, message: str) -> None:
    zeros = np.zeros((4, 3, 4, 4), np.float32)
    np.savez("uneven.npz", input=zeros, other=zeros[:2])
    np.savez("wrong.npz", input=zeros)
    np.savez("pickled.npz", input=np.array([object()], dtype=object))
    Path("text.npz").write_text("not a zip")
    Path("text.pt2").write_text("not a zip")
    np.save("one.npy", zeros)
    np.savez("ids.npz", input=np.array([[0, 1], [2, 9]])[:, None])
    np.savez("strings.npz", input=np.full((4, 1, 3, 4, 4), "abc"))
    for name in ("zip.npz", "zip.pt2"):
        with zipfile.ZipFile(name, "w") as file:
            file.writestr("a.txt", "text")
    Path("broken.py").write_text("1 / 0")
    Path("needy.py").write_text("import absent_package")
    before = sorted(Path().rglob("*.*"))
    done = cli("compile", *arguments, "-o", "m.qcm")
    assert done.code == 1
    assert message in done.err
    assert done.err.startswith("error: ")
    assert "allow_pickle" not in done.err
    assert len(done.err.splitlines()) <= 2
    after = [p for p in sorted(Path().rglob("*.*")) if p.suffix != ".pyc"]
    assert after == before


@pytest.mark.parametrize("place", ["none/m.qcm", "."])
def test_an_output_that_cannot_be_written_is_told_before_the_work(cli, place: str) -> None:
    done = cli("compile", "shop:crash", *FLOAT, "-o", place)
    assert done.code == 1
    assert done.err.startswith(f"error: {place}: cannot write: ")


@pytest.mark.parametrize("command", ["compile", "run", "opt"])
def test_special_files_and_links_are_not_replaced(made, cli, command: str) -> None:
    os.mkfifo("pipe")
    Path("link").symlink_to("file")
    rest = {
        "compile": ("shop:sums", *FLOAT),
        "run": (made / "m.qcm", made / "x.npz"),
        "opt": (made / "dump" / "00_input.qir", "-p", "fold"),
    }[command]
    done = cli(command, *rest, "-o", "pipe")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: pipe: cannot write: it is no plain file")
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)
    assert cli(command, *rest, "-o", "link").code == 0
    assert Path("link").is_symlink() and Path("file").stat().st_size


def test_run_names_what_does_not_fit(made, cli) -> None:
    np.savez("small.npz", input=np.zeros((1, 3, 4, 3), np.float32))
    np.savez("other.npz", picture=np.zeros((1, 3, 4, 4), np.float32))
    Path("text.qcm").write_text("not an artifact")
    cases = {
        (made / "m.qcm", "small.npz", "y.npz"): "input %input: expected float32[1,3,4,4], got",
        (made / "m.qcm", "other.npz", "y.npz"): "other.npz: no array 'input'; the inputs are input",
        (made / "m.qcm", made / "x.npz", "none/y.npz"): "none/y.npz: cannot write: No such file",
        ("text.qcm", made / "x.npz", "y.npz"): "text.qcm: expected a .qcm artifact",
    }
    for (model, inputs, output), message in cases.items():
        done = cli("run", model, inputs, "-o", output)
        assert done.code == 1
        assert done.err.startswith(f"error: {message}")
        assert len(done.err.splitlines()) == 1
    assert not list(Path().glob("*y.npz*"))


def test_more_threads_than_cpus_are_wrong_usage(made, cli) -> None:
    for command in (("run", made / "m.qcm", made / "x.npz", "-o", "y.npz"),
                    ("verify", made / "m.qcm"), ("bench", made / "m.qcm"),
                    ("bench", "shop:net")):  # fmt: skip
        for count in (1_000_000, 0):
            done = cli(*command, "--threads", count)
            assert done.code == 2
            assert "the logical CPUs this process may use" in " ".join(done.err.split())


def test_an_artifact_that_cannot_be_read_is_1_and_one_line_everywhere(
    made, cli, monkeypatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "m.qcm")

    shutil.copy(made / "m.qcm", "m.qcm")
    monkeypatch.setattr(archive, "open", denied, raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # what click asks
    for command in (("run", "m.qcm", made / "x.npz", "-o", "y.npz"), ("verify", "m.qcm"),
                    ("inspect", "m.qcm"), ("bench", "m.qcm")):  # fmt: skip
        done = cli(*command)
        assert (done.code, done.err) == (1, "error: m.qcm: Permission denied\n")


@pytest.mark.parametrize("variable", ["QC_DUMP", "QC_REPRO"])
def test_a_folder_for_dumps_that_cannot_be_made_is_named(cli, monkeypatch, variable: str) -> None:
    Path("file").write_text("in the way")
    for folder in ("file", "file/dump", "/proc/dump"):
        monkeypatch.setenv(variable, folder)
        done = cli("compile", "shop:empty", *FLOAT, "-o", "m.qcm")
        assert done.code in (1, 2)
        assert variable in done.err and folder in done.err
        assert len(done.err.splitlines()) == 1


def test_tracebacks_are_for_those_who_ask(cli, monkeypatch) -> None:
    monkeypatch.setenv("QC_DEBUG", "1")
    done = cli("compile", "shop:crash", *FLOAT, "-o", "m.qcm")
    assert done.code == 1
    assert "Traceback" in done.err
    monkeypatch.setenv("QC_DEBUG", "much")
    done = cli("compile", "shop:crash", *FLOAT, "-o", "m.qcm")
    assert "QC_DEBUG: expected a whole number, got 'much'" in done.err


def test_torch_that_is_missing_is_one_line() -> None:
    for error in (
        ModuleNotFoundError("No module named 'torch'", name="torch"),
        qc.MissingTorch("qcompiler.trace"),
    ):
        assert "pip install 'qcompiler[torch]'" in exits.message(error)


def test_without_torch_run_and_inspect_work_and_the_rest_says_what_it_needs(made) -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "sympy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from qcompiler.cli import commands
from qcompiler.cli.exits import guarded
print([guarded(commands, a.split()) for a in sys.argv[1:]])
"""
    lines = [
        "verify m.qcm", "targets", "compile shop:net --recipe float32 -o n.qcm",
        "bench shop:net", "opt dump/00_input.qir -p fold",
        "inspect m.qcm", "run m.qcm x.npz -o alone.npz",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(qc.__file__).parents[1])}
    command = [sys.executable, "-c", code, *lines]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[-1] == "[1, 1, 1, 1, 1, 0, 0]"
    assert (
        done.stderr.splitlines()
        == ["error: this needs PyTorch: pip install 'qcompiler[torch]'"] * 5
    )
    assert (made / "alone.npz").exists()


def test_a_program_that_is_stopped_leaves_nothing(source, tmp_path) -> None:
    code = """
import os, signal
from qcompiler.cli import commands
from qcompiler.cli.exits import guarded
from qcompiler.runtime import archive
archive._frame = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit(guarded(commands, ["compile", "shop:sums", "--recipe", "float32", "-o", "s.qcm"]))
"""
    (tmp_path / "shop.py").write_text(source)
    env = {**os.environ, "PYTHONPATH": str(Path(qc.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, env=env)
    assert done.returncode == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["shop.py"]
