"""The shared kernel templates spread over a GPU: the neighbours' cases, bit for bit."""

from __future__ import annotations

import re

import lowering
import pytest
import test_lower_elementwise as elementwise
import test_lower_movement as movement
import test_lower_products as products
import test_lower_rows as rows
import test_lower_window as window
import torch
from lowering import Cases, fused

from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.ops import Gather, LayerNorm, Softmax, const
from qcompiler.targets import get
from qcompiler.targets.build import compiled, device_source
from qcompiler.targets.kernels import rows as rows_kernel
from qcompiler.targets.lower import lower

TARGET = get("cuda-sm80")


@pytest.fixture(autouse=True)
def for_cuda(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "TARGET", TARGET)
    monkeypatch.setattr(products, "CTX", Context(TARGET))


@pytest.mark.parametrize(
    "check",
    [
        elementwise.test_unary_formulas_on_special_values,
        elementwise.test_what_a_simplifier_may_not_do_to_floats,
        elementwise.test_products_are_never_contracted_with_sums,
        elementwise.test_truth_values,
        elementwise.test_integer_formulas,
        elementwise.test_quantize_and_dequantize_per_tensor_and_per_channel,
        elementwise.test_random_dags,
        rows.test_rows_of_one_value,
        rows.test_row_regions,
        rows.test_rows_of_many_pieces_in_parallel,
        window.test_negative_zeros_survive_an_average,
        window.test_pool_regions,
        movement.test_values_without_operands_and_views,
        products.test_integer_matmuls,
        products.test_integer_products_that_no_template_takes,
    ],
    ids=lambda f: f.__name__.removeprefix("test_"),
)
def test_cases_of_a_template(check) -> None:
    check()


def test_cases_with_parameters() -> None:
    """One choice each of what the neighbours run with several."""
    elementwise.test_broadcasting(True)
    elementwise.test_casts(elementwise.CASTS[0])
    rows.test_row_ops(True)
    window.test_pools(window.WINDOWS[-1], True)
    window.test_resize(True)
    movement.test_permutations(torch.uint8)
    movement.test_parts(torch.float32)
    movement.test_borders_and_repeats(torch.int32)
    movement.test_gathers(torch.uint8)
    movement.test_running_sums(torch.float32)


def source(graph: Graph) -> str:
    return device_source(compiled(lower(graph, TARGET), TARGET))


def test_an_index_out_of_range_is_an_error_that_names_the_node() -> None:
    """Nothing beyond the table is read; the flag is a result, checked on the host."""
    cases = Cases(0)
    table = cases.floats(10, 8)
    for bad in (-1, 10, 2**40, -(2**63)):
        ids = cases.given(torch.tensor([[1, 9, 0], [3, bad, 2]]))
        graph = fused(cases.inputs, [Gather(0)(table, ids, name="rows")])
        lowered = lower(graph, TARGET)
        assert lowered.faults == ("%rows = gather: expected indices in 0..9, got one outside",)
        with pytest.raises(IndexError, match=r"%rows = gather: expected indices in 0\.\.9"):
            lowering.executed(lowered, cases.values)
        cases.inputs.pop(), cases.values.pop()


def test_elements_are_threads_and_the_rest_is_guarded() -> None:
    cases = Cases(0)
    text = source(fused(cases.inputs, [Softmax()(cases.floats(300, 40))]))
    assert "__shfl_xor_sync" in text and "__fmul_rn" in text
    assert "expf" not in text and "fdividef" not in text


def local_bytes(text: str) -> int:
    """Of the arrays of 4-byte elements that each thread of the text's kernels has."""
    return 4 * sum(map(int, re.findall(r"^ *(?:alignas\(\d+\) )?float \w+\[(\d+)\];", text, re.M)))


@pytest.mark.parametrize("columns", [2_200_000, 65_536])
def test_what_a_thread_keeps_of_a_row_has_a_limit(columns: int) -> None:
    """A driver reserves local memory for all threads at once; what is beyond is recomputed."""
    cases = Cases(0)
    x = cases.floats(1, columns)
    ones = const(torch.ones(columns))
    text = source(fused(cases.inputs, [Softmax()(x), LayerNorm(1e-5)(x, ones, ones)]))
    for kernel in text.split('extern "C" __global__')[1:]:
        assert local_bytes(kernel) <= rows_kernel.KEPT_BYTES + 256
    assert (local_bytes(text) >= 2 * rows_kernel.KEPT_BYTES) == (columns == 65_536)


def test_long_rows_are_computed_again() -> None:
    cases = Cases(0)
    x = cases.special(2, 65_550)
    cases.out(Softmax()(x), LayerNorm(1e-5)(x, *(const(torch.ones(65_550)) for _ in "wb")))
    cases.check()
