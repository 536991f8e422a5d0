"""Dimensions of a manifest: expressions in the symbols, as sympy writes them."""

import time

import numpy as np
import pytest

from qcompiler.runtime import InputError
from qcompiler.runtime.manifest import Entry, Spec
from qcompiler.runtime.signature import check, evaluate
from qcompiler.types import symbol


@pytest.mark.parametrize("size", [1, 2, 7])
def test_dimensions_mean_what_they_mean_in_the_graph(size: int) -> None:
    s = symbol("batch", 1, 64)
    for dim in (s, s * 2, s + 3, s * 4 - 2, (s + 1) // 2, s * s * 3, s * 2 * (s + 1)):
        assert evaluate(repr(dim), {"batch": size}) == dim.at({"batch": size})


@pytest.mark.parametrize("text", ["other", "f(1, 2)", "a.b", "1.5", "batch/0", "batch +", "'x'"])
def test_what_cannot_be_computed_is_left_to_the_program(text: str) -> None:
    assert evaluate(text, {"batch": 2}) is None


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "batch**99999999", "2**0.5", "(batch/3)**(1/2)", "9" * 900, "(" * 500 + ")" * 500,
     "+".join(["batch"] * 9999), "((2**256)**256)**256"],
)  # fmt: skip
def test_what_no_size_is_takes_no_time(text: str) -> None:
    start = time.perf_counter()
    assert evaluate(text, {"batch": 2}) is None
    assert time.perf_counter() - start < 1.0


def array(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_symbols_must_agree_between_inputs() -> None:
    x, y = Spec("x", "float32", ("n", 4)), Spec("y", "float32", ("2*n",))
    entry = Entry((x, y), (), symbols={"n": (1, None)})
    check(entry, [array(3, 4), array(6)])
    with pytest.raises(InputError, match=r"input %y: expected axis 0 to have 2\*n = 6, got 5"):
        check(entry, [array(3, 4), array(5)])
    same = Entry((x, Spec("z", "float32", ("n",))), (), symbols={"n": (1, None)})
    with pytest.raises(InputError, match="input %z: n is 3 and 2 at once"):
        check(same, [array(3, 4), array(2)])
