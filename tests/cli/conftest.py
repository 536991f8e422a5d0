"""What the command line is tried on: a module of sources, and a model compiled once."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import qcompiler as qc
from qcompiler.cli import commands
from qcompiler.cli.exits import guarded

SOURCE = """
import torch
from torch import nn

class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Sums(nn.Module):
    def forward(self, x, y):
        z = x + y
        return {"both": z, "first": x, "again": z}

def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 16, 5)).eval(), (torch.zeros(1, 3, 4, 4),)

def items():
    return [torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(6)]

def nothing():
    return []

def nan():
    return [torch.full((1, 3, 4, 4), float("nan"))]

def branches():
    return Branches().eval(), (torch.ones(3),)

def training():
    return nn.ReLU(), (torch.ones(3),)

def sums():
    shapes = {"x": {0: torch.export.Dim("n", max=9)}, "y": {0: torch.export.Dim("n", max=9)}}
    return Sums().eval(), (torch.ones(2, 3), torch.zeros(2, 3)), {"dynamic_shapes": shapes}

def unsupported():
    class Sort(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)
    return Sort().eval(), (torch.ones(3, 3),)

def empty():
    class Cut(nn.Module):
        def forward(self, x):
            return torch.exp(x[:0]).sum(0)
    return Cut().eval(), (torch.ones(3, 3),)

def misfit():
    return nn.Conv2d(4, 8, 3).eval(), (torch.zeros(1, 3, 4, 4),)

class Item(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 0 else -x

class Scaled(nn.Module):
    def forward(self, x):
        return x * float(x.sum())

class Masked(nn.Module):
    def forward(self, x):
        return x[x > 0]

def item():
    return Item().eval(), (torch.ones(3),)

def scaled():
    return Scaled().eval(), (torch.ones(3),)

def masked():
    return Masked().eval(), (torch.ones(3),)

def embed():
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).eval(), (torch.zeros(1, 2).long(),)

def broken_items():
    yield torch.zeros(1, 3, 4, 4)
    raise OSError("no picture 3")

def crash():
    raise KeyError("a bug")

def alone():
    return 5
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def source() -> str:
    """The module `shop`."""
    return SOURCE


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Runs the program in a folder that holds the module `shop`."""
    (tmp_path / "shop.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "shop", None)
    del sys.modules["shop"]
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        code = guarded(commands, list(map(str, arguments)))
        return Done(code, *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with the program m.qcm, its report, its dumps, and what went in."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "shop.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", input=rng.standard_normal((6, 1, 3, 4, 4), np.float32))
    np.savez(folder / "x.npz", input=rng.standard_normal((1, 3, 4, 4), np.float32))
    command = [sys.executable, "-c", "from qcompiler.cli import main; main()"]
    command += ["compile", "shop:net", "-o", "m.qcm"]
    options = ["--calibration", "data.npz", "--report", "report.html"]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "QC_DUMP": "dump", "PYTHONPATH": str(Path(qc.__file__).parents[1])},
    )  # fmt: skip
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder
