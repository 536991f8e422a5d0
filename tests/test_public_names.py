"""The public names of the package, in whatever order its modules are imported."""

import importlib
from types import ModuleType

import pytest

import qcompiler


@pytest.mark.parametrize("name", ["interpret", "parse", "rewrite"])
def test_a_submodule_does_not_hide_the_function_of_its_name(name: str) -> None:
    module = importlib.import_module(f"qcompiler.{name}")
    assert isinstance(module, ModuleType)
    assert getattr(qcompiler, name) is getattr(module, name)
