"""Plans cover every output once or more, fit the registers, and give threads enough to do."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.targets.kernels.avx import (
    AVX512VNNI,
    AVXVNNI,
    FMA,
    MADDWD,
    ZMM,
    fma,
    maddubs,
    wide,
)
from qcompiler.targets.kernels.geometry import Conv, Linear, Matmul, as_linear, split_lead
from qcompiler.targets.kernels.plan import (
    TASK_BYTES,
    Plan,
    candidates,
    fitted,
    packing_of,
    plan_conv,
    plan_linear,
    plan_matmul,
)

DOTS = st.sampled_from(
    [maddubs(), maddubs(4), MADDWD, FMA, AVXVNNI, AVX512VNNI, maddubs(4, ZMM), fma(ZMM)]
)


def check(plan: Plan, units: int, pixels: int, channels: int, dot) -> None:
    """units: rows of which a block takes some; pixels: outputs of one."""
    assert plan.full * plan.lanes + plan.rest == channels and 0 <= plan.rest < plan.lanes
    assert (plan.main is None) == (plan.full == 0) and (plan.tail is None) == (plan.rest == 0)
    assert 1 <= plan.block <= units and (plan.blocks - 1) * plan.block < units
    assert plan.blocks * plan.block >= units
    for tile in filter(None, (plan.main, plan.tail)):
        assert 1 <= tile.rows <= plan.block * pixels
        assert tile.rows * tile.vectors <= max(dot.accumulators, tile.vectors)
    if plan.main is not None:
        assert plan.main.vectors * dot.lanes == plan.lanes


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 4000), st.integers(1, 3000), DOTS)
def test_linear_plans(rows, k, n, dot):
    plan = plan_linear(Linear((rows,), k, n), dot, dot.a_dtype)
    check(plan, rows, 1, n, dot)
    assert (plan.chunks - 1) * plan.chunk < plan.panels <= plan.chunks * plan.chunk


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 200), st.integers(1, 300),
    st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 2, 4]), DOTS,
)  # fmt: skip
def test_convolution_plans(height, width, channels, out, kernel, stride, groups, dot):
    reach = max(kernel - min(height, width), 0)
    g = Conv(
        1, height, width, channels * groups, out * groups, (kernel, kernel), (stride, stride),
        padding=(reach, reach, 0, 0), groups=groups,
    )  # fmt: skip
    plan = plan_conv(g, dot, dot.a_dtype)
    check(plan, g.out_height, g.out_width, out, dot)
    pieces = groups if groups > 1 else plan.panels
    assert (plan.chunks - 1) * plan.chunk < pieces <= plan.chunks * plan.chunk


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 600), st.integers(1, 300), st.integers(1, 600), DOTS)
def test_matmul_plans(images, m, k, n, dot):
    plan = plan_matmul(Matmul((images,), m, k, n), dot)
    check(plan, m, 1, n, dot)
    assert plan.chunks == 1


@pytest.mark.parametrize(
    "g",
    [
        Linear((768,), 768, 768),
        Linear((128,), 384, 1536),
        Linear((12544,), 16, 96),
        Linear((49,), 1152, 320),
    ],
)
@pytest.mark.parametrize("dot", [maddubs(), FMA], ids=lambda d: d.name)
def test_large_products_keep_eight_threads_busy_and_inputs_in_cache(g, dot):
    plan = plan_linear(g, dot, dot.a_dtype)
    assert plan.parallel and plan.blocks * plan.chunks >= 8
    assert plan.block * g.k * dot.width <= 2 * TASK_BYTES


def test_small_products_wake_no_thread():
    assert not plan_linear(Linear((8,), 64, 64), FMA, "float32").parallel


def test_packing_knows_which_template_computes_what():
    dense = Conv(1, 8, 8, 16, 24, (3, 3))
    assert packing_of(dense, maddubs(), "uint8")[1:] == (4, 1, False)
    grouped = Conv(1, 8, 8, 16, 24, (3, 3), groups=4)
    assert packing_of(grouped, maddubs(), "uint8")[1:] == (4, 4, False)
    depthwise = Conv(1, 8, 8, 24, 24, (3, 3), groups=24)
    assert packing_of(depthwise, MADDWD, "uint8") == (24, 2, 1, True)
    pointwise = Conv("n", 8, 8, 16, 24, (1, 1))
    linear = as_linear(pointwise)
    assert packing_of(pointwise, FMA, "float32") == packing_of(linear, FMA, "float32")


def test_only_the_first_dimension_may_be_symbolic():
    assert split_lead(("n", 3, 4)) == ("n", 12) and split_lead((2, 3)) == (1, 6)
    with pytest.raises(ValueError, match="only the first dimension may be symbolic"):
        split_lead((2, "n"))


def test_registers_are_narrow_where_channels_would_leave_them_idle():
    dot, same = wide(fma), FMA
    taken = {n: fitted(Linear((64,), 32, n), dot).lanes for n in (3, 8, 16, 20, 24, 32, 40, 1000)}
    assert taken == {3: 8, 8: 8, 16: 16, 20: 8, 24: 8, 32: 16, 40: 16, 1000: 16}
    depthwise = [Conv(1, 9, 9, c, c, (3, 3), groups=c) for c in (12, 24)]
    assert [fitted(g, dot).lanes for g in depthwise] == [8, 16]
    assert fitted(depthwise[0], same) is same


def test_one_row_reads_its_weights_in_place() -> None:
    def best(dot, lanes: int) -> tuple[int, int]:
        return candidates(Linear((768,), 768, lanes), dot, dot.a_dtype, 1)[0]

    for group in (2, 4, 8):
        dot = maddubs(group)
        assert best(dot, 768) == (1, 4)
        assert best(replace(dot, folds=False), 768)[0] > 1
    assert best(FMA, 768)[0] > 1  # a row alone would wait for the sums before
