"""What cannot be traced is refused in one or two lines: what, where, what to do."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.frontend import TraceError, trace


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the error names
            return x + 1
        return x


class Odd(nn.Module):
    """Two ops that have no row and no decomposition, and one known op between them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, _ = torch.topk(x, 2)
        y = values * 2
        return torch.linalg.det(x @ x.T), torch.sort(y)[0]


def refused(source: nn.Module, *inputs: object, lines: int = 2, **options: object) -> str:
    with pytest.raises(TraceError) as caught:
        trace(source, inputs, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert 0 < len(text.splitlines()) <= lines, text
    assert max(map(len, text.splitlines())) < 300, text
    return text


def line_of(phrase: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(k for k, line in enumerate(lines, start=1) if phrase in line)


def test_training_mode():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    assert "it is in training mode; call module.eval()" in refused(module, torch.ones(1, 2))
    module.eval()[1][1].train()
    text = refused(module, torch.ones(1, 2), lines=1)
    assert "submodule '1.1' (Dropout) is in training mode" in text


def quantized_by_torch(module: nn.Module, convert: bool) -> nn.Module:
    ao = torch.ao.quantization
    module.qconfig = ao.get_default_qconfig("onednn")
    prepared = ao.prepare(nn.Sequential(ao.QuantStub(), module))
    prepared(torch.ones(1, 2))
    return ao.convert(prepared) if convert else prepared


@pytest.mark.filterwarnings("ignore")
def test_modules_that_torch_has_quantized():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    dynamic = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    for module in (
        dynamic, dynamic.eval(), dynamic[0], quantized_by_torch(net, False),
        quantized_by_torch(net, True),
    ):  # fmt: skip
        text = refused(module, torch.ones(1, 2), lines=1)
        assert "quantized by PyTorch already" in text and "pass the float model" in text


@pytest.mark.filterwarnings("ignore")
def test_float_modules_made_for_quantization_are_traced(agrees):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stub = torch.ao.quantization.QuantStub()
            self.sum = torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: Tensor) -> Tensor:
            return self.sum.add(self.stub(x), x)

    agrees(Both(), torch.ones(2))


def test_exported_in_training_mode():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    program = torch.export.export(module, (torch.ones(3, 2),))
    with pytest.raises(TraceError, match="dropout in training mode; export the model in eval"):
        trace(program)


def test_data_dependent_branch():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Branch())).eval()
    text = refused(module, torch.ones(1, 2))
    line = line_of("# the line that the error names")
    assert f"depends on its data at '1.0' (Branch), test_errors.py:{line}" in text
    assert "use torch.where" in text


def test_data_dependent_size():
    class Item(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(int(x[0].item()))

    assert "depends on its data" in refused(Item().eval(), torch.ones(2))


@pytest.mark.parametrize("function", [lambda x: x[x > 0], torch.nonzero])
def test_data_dependent_shape(function):
    class Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    assert "a size that depends on the data" in refused(Mask().eval(), torch.ones(3))


def test_control_flow_op():
    class Cond(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    assert "control flow that depends on the data" in refused(Cond().eval(), torch.ones(3))


def test_all_unknown_ops_in_one_error():
    module = nn.Sequential(nn.Identity(), Odd()).eval()
    text = refused(module, torch.randn(3, 3), lines=4)
    head, *rest = text.splitlines()
    assert head == "cannot trace 3 operations; replace them in the model:"
    form = r"  aten\.(\w+)\.default at '1', test_errors\.py:(\d+): (.*)"
    places = [re.fullmatch(form, x) for x in rest]
    found = {m[1]: (int(m[2]), m[3]) for m in places if m}
    assert found == {
        "topk": (line_of("torch.topk"), "the op is unknown"),
        "_linalg_det": (line_of("torch.linalg.det"), "the op is unknown"),
        "sort": (line_of("torch.sort"), "the op is unknown"),
    }


class Quiet(nn.Module):
    """Regions that set modes, one inside another, one that calls a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(), Odd())

    @torch.no_grad()
    def forward(self, x: Tensor) -> object:
        y = torch.erfinv(x)
        with torch.autocast("cpu", enabled=False):
            z = torch.special.i0(y)
        with torch.enable_grad():
            z = torch.special.i1(z)
        return torch.cummax(z, 1)[0], self.inner(x)


@pytest.mark.parametrize("path", ["", "0"])
def test_unknown_ops_under_modes_keep_their_place(path):
    module = (nn.Sequential(Quiet()) if path else Quiet()).eval()
    inner = ".".join([p for p in (path, "inner.1") if p])
    head, *rest = refused(module, torch.randn(3, 3), lines=8).splitlines()
    assert head == "cannot trace 7 operations; replace them in the model:"
    marks = {
        "erfinv": "torch.erfinv(x)", "i0": "special.i0(y)", "special_i1": "special.i1(z)",
        "cummax": "torch.cummax(z, 1)",
    }  # fmt: skip
    inside = {"topk": "torch.topk", "_linalg_det": "torch.linalg.det", "sort": "torch.sort"}
    want = {
        f"  aten.{op}.default at {where}test_errors.py:{line_of(mark)}: the op is unknown"
        for ops, where in ((marks, f"{path!r}, " if path else ""), (inside, f"{inner!r}, "))
        for op, mark in ops.items()
    }
    assert set(rest) == want
    program = torch.export.export(module, (torch.randn(3, 3),))
    with pytest.raises(TraceError) as caught:
        trace(program)
    assert set(str(caught.value).splitlines()[1:]) == want


def test_origins_under_modes():
    class Turn(nn.Module):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return x.cos()  # the line of the cosine

    graph = trace(nn.Sequential(Turn()).eval(), torch.ones(2))
    (node,) = [n for n in graph.nodes() if n.inputs]
    assert node.note.origin == f"0 test_errors.py:{line_of('# the line of the cosine')}"


def test_an_op_with_an_effect_hides_no_other():
    class Effects(nn.Module):
        def forward(self, x: Tensor) -> object:
            return torch.linalg.inv(x), torch.erfinv(x), torch.sort(x)[0]

    lines = refused(Effects().eval(), torch.eye(3), lines=4).splitlines()
    assert [x.split()[0] for x in lines[1:]] == [
        "aten.linalg_inv_ex.default", "aten.erfinv.default", "aten.sort.default",
    ]  # fmt: skip
    assert all(re.search(r"test_errors\.py:\d+: the op is unknown", x) for x in lines[1:])


def test_an_op_with_an_effect_is_named():
    with torch.library._scoped_library("qctest", "DEF") as library:
        library.define("shout(Tensor x) -> Tensor")
        library.impl("shout", lambda x: x.clone(), "CompositeExplicitAutograd")
        library.impl("shout", lambda x: torch.empty_like(x), "Meta")
        kind = torch._higher_order_ops.effects._EffectType.ORDERED
        shout = torch.ops.qctest.shout.default
        torch._higher_order_ops.effects._register_effectful_op(shout, kind)

        class Loud(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.qctest.shout(x) + torch.erfinv(x)

        text = refused(Loud().eval(), torch.ones(2), lines=3)
    assert "qctest.shout.default at test_errors.py" in text and "an effect" in text
    assert "aten.erfinv" in text


@pytest.mark.parametrize(
    ("layer", "inputs", "reason"),
    [
        (nn.LSTM(4, 3), torch.ones(65, 1, 4), "over 65 steps; it is unrolled, over at most 64"),
        (nn.LSTM(4, 3, proj_size=2), torch.ones(5, 1, 4), "proj_size"),
        (nn.Conv3d(1, 1, 1), torch.ones(1, 1, 2, 2, 2), "a convolution over 3 axes"),
        (nn.AdaptiveAvgPool2d(2), torch.ones(1, 1, 5, 4), r"from [5, 4] to [2, 2]"),
        (nn.BatchNorm1d(2, track_running_stats=False), torch.ones(3, 2), "batch's own statistics"),
        (nn.MaxPool2d(2, return_indices=True), torch.ones(1, 1, 4, 4), "the indices of a max pool"),
        (nn.Linear(2, 2).half(), torch.ones(1, 2).half(), "call module.float()"),
        (nn.Softplus(threshold=3), torch.ones(2), "softplus with threshold 3"),
    ],
)  # fmt: skip
def test_refusals_name_the_reason(layer, inputs, reason):
    assert reason in refused(nn.Sequential(layer).eval(), inputs, lines=1)


def test_random_numbers_are_not_constants():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(2)

    assert "aten.rand.default" in refused(Noise().eval(), torch.ones(2))


def test_unsupported_dtype():
    assert "input 'input'" in refused(nn.ReLU().eval(), torch.ones(2, dtype=torch.complex64))


def test_wrong_example_inputs():
    text = refused(nn.Linear(3, 2).eval(), torch.ones(1, 4), lines=1)
    assert text.startswith("the module itself fails on the example inputs (float32[1,4]): Runtime")


def test_a_failure_of_the_module_says_where_and_changes_nothing():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.last = nn.Linear(3, 2)

        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            self.calls.add_(1)
            return self.last(x * scale)

    module, x = Counts().eval(), torch.ones(1, 4)
    text = refused(module, x, kwargs={"scale": 2.0}, lines=1)
    assert "(float32[1,4], scale=float)" in text and "test_errors.py:" in text
    assert module.calls.tolist() == [0.0] and x.tolist() == [[1.0] * 4]


def test_numbers_read_out_of_tensors():
    class Times(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sum().item()

    assert "it needs .item(), which makes a Python number" in refused(Times().eval(), torch.ones(3))


def test_not_a_module():
    assert "got str" in refused("model.pt", torch.ones(1))  # type: ignore[arg-type]
    scripted = torch.jit.script(nn.ReLU().eval())
    assert "TorchScript" in refused(scripted, torch.ones(1))


def test_batch_that_the_model_fixes():
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).reshape(2, 2)

    batch = torch.export.Dim("batch", min=1, max=8)
    text = refused(Fixed().eval(), torch.ones(2, 2), dynamic_shapes={"x": {0: batch}})
    assert "batch" in text and "constant (2)" in text


def test_steps_of_a_recurrent_layer_are_not_symbolic():
    steps = torch.export.Dim("steps", min=2, max=32)
    inputs = torch.ones(5, 1, 4)
    text = refused(nn.GRU(4, 3).eval(), inputs, dynamic_shapes={"input": {0: steps}})
    assert "steps" in text and "constant (5)" in text


def test_arithmetic_with_a_symbolic_size():
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) / x.shape[1]

    length = torch.export.Dim("length", min=2, max=32)
    text = refused(Scaled().eval(), torch.ones(1, 8), dynamic_shapes={"x": {1: length}})
    assert "aten.div.Tensor" in text and "arithmetic with the symbolic size length" in text


def test_sizes_outside_what_the_model_takes():
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:-1].sum(1)

    length = torch.export.Dim("length", min=2, max=32)
    text = refused(Inner().eval(), torch.ones(1, 8), dynamic_shapes={"x": {1: length}})
    assert "Not all values of length" in text and "length <= 32" in text


def test_nothing_is_printed(capfd):
    refused(Branch().eval(), torch.ones(2))
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""
