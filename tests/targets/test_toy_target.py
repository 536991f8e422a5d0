"""A machine of one's own in under 40 lines: the demo model compiles for it, bit for bit."""

import inspect

import torch

import qcompiler as qc
from qcompiler.targets.base import FAMILIES, REFUSALS, Target
from qcompiler.targets.kernels import anchors
from qcompiler.targets.kernels.algebra import Primitives, fenced_product
from qcompiler.targets.kernels.dot import Dot, float_products, integer_products
from qcompiler.zoo import load


def toy() -> Target:
    """x86-64 as of 2003: 128-bit vectors, and no instruction that multiplies codes."""
    common = {"lanes": 4, "cycles": 4.0, "latency": 4.0, "accumulators": 8}
    codes = Dot(
        "plain", depth=2, a_dtype="uint8", b_dtype="int8", acc_dtype="int32",
        reference=integer_products(4, 2), emit=integer_products(4, 2), **common,
    )  # fmt: skip
    pairs = Dot(
        "plain_pairs", depth=1, a_dtype="int16", b_dtype="int16", acc_dtype="int32",
        reference=integer_products(4, 1), emit=integer_products(4, 1), **common,
    )  # fmt: skip
    floats = Dot(
        "plain_float", depth=1, a_dtype="float32", b_dtype="float32", acc_dtype="float32",
        reference=float_products, emit=float_products, **common,
    )  # fmt: skip
    return Target(
        name="toy",
        tvm={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
        isa=(codes, pairs, floats),
        primitives=Primitives(product=fenced_product, bits=128),
        features=("sse2",),
        support=REFUSALS,
        kernels=tuple(family.lower for family in FAMILIES),
        packings=anchors.packing,
    )


def test_the_demo_model_compiles_for_a_toy_target() -> None:
    assert len(inspect.getsource(toy).splitlines()) < 40
    net, inputs = load("efficientnet_lite0")
    quantized = qc.quantize(qc.trace(net, inputs), [inputs], "x86-64-v3", "int8")
    model = qc.build(quantized, toy())
    assert model.manifest.target == "toy"
    assert torch.equal(model(*inputs), qc.interpret(quantized, *inputs))
