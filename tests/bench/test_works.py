"""The built-in works: their inputs, their models, and what a SOURCE becomes."""

import math

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.bench import task, works
from qcompiler.bench.works import ALL, CALIBRATION, HELD_OUT
from qcompiler.peers import Family
from qcompiler.zoo import MODELS, gpt2, products

SHAPES = {
    "resnet50": [(1, 3, 224, 224)],
    "mobilenet_v2": [(1, 3, 224, 224)],
    "bert_base": [(1, 128), (1, 128)],
    "vit_b16": [(1, 3, 224, 224)],
    "gpt2_small": [(1, 128)],
    "gpt2_decode": [(1, 1), (24, 1, 12, 128, 64)],
    "gemm768": [(768, 768)],
    "gemv": [(1, 4096)],
}


@pytest.mark.parametrize("work", ALL, ids=lambda w: w.name)
def test_inputs_have_their_shapes_and_are_the_same_each_time(work) -> None:
    first = work.draw(1, 3)
    assert [tuple(t.shape) for t in first] == SHAPES[work.name]
    assert all(torch.equal(a, b) for a, b in zip(first, work.draw(1, 3), strict=True))
    assert not torch.equal(first[0], work.draw(1, 4)[0])
    double = [t.numel() for t in work.draw(2, 3)]
    assert double == [2 * math.prod(shape) for shape in SHAPES[work.name]]


def test_the_held_out_input_is_no_calibration_input() -> None:
    work = works.find("gemv")
    assert work is not None
    calibration = work.calibration()
    assert len(calibration) == len(CALIBRATION) == 8
    assert not any(torch.equal(c[0], work.held_out()[0]) for c in calibration)
    assert torch.equal(work.held_out()[0], work.draw(1, HELD_OUT)[0])


def test_no_calibration_input_is_a_row_of_the_weights() -> None:
    work = works.find("gemm768")
    assert work is not None
    with torch.no_grad():
        largest = [float(work.module()(x).abs().max()) for (x,) in work.calibration()]
    assert max(largest) < 7.0  # standard deviations: 5 million normal numbers stay below 6


def test_works_are_sources_of_the_zoo() -> None:
    assert {w.source for w in ALL} <= set(MODELS.values())
    assert works.find("unet") is None


def test_a_product_keeps_the_spread_of_its_input() -> None:
    module, (x,) = products.gemm768()
    with torch.no_grad():
        assert 0.9 < float(module(x).std()) < 1.1
    assert torch.equal(products.gemm768()[0].weight, module.weight)


def test_decoding_one_more_token_is_the_prompt_with_it() -> None:
    prefill = gpt2.made(gpt2.Prefill, layers=2, vocabulary=50)
    decode = gpt2.made(gpt2.Decode, layers=2, vocabulary=50)
    ids = gpt2.token_ids(2, 9, vocabulary=50)
    rows: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: object, out: torch.Tensor) -> None:
        _, k, v = out[:, :-1].split(gpt2.WIDTH, -1)
        rows.extend(p.unflatten(-1, (gpt2.HEADS, gpt2.HEAD)).transpose(1, 2) for p in (k, v))

    for block in prefill.blocks:
        block.qkv.register_forward_hook(keep)
    with torch.no_grad():
        expected = prefill(ids)
        found = decode(ids[:, -1:], torch.stack(rows))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_family_follows_the_weights() -> None:
    assert works.family_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(2, 2))) is Family.CONVOLUTION
    assert works.family_of(nn.Linear(8, 8)) is Family.TRANSFORMER
    assert works.family_of(object()) is Family.TRANSFORMER


class Named(nn.Module):
    def forward(self, pair, scale=1.0, y=None):
        return {"sum": pair[0] + scale * pair[1], "y": y}


def test_a_job_has_flat_positional_tensors(tmp_path) -> None:
    a, b, y = torch.ones(1, 3), torch.full((1, 3), 2.0), torch.zeros(1, 2)
    made = task.of_source("n", Named().eval(), ((a, b),), {"kwargs": {"y": y}}, None)
    assert not made.judged
    graph = qc.trace(made.module, made.args, made.kwargs)
    pieces = lambda: [(a, b, y), (b, a, y)]  # noqa: E731
    judged = task.of_source("n", Named().eval(), ((a, b),), {"kwargs": {"y": y}}, pieces)
    assert judged.judged
    job = judged.job(graph, 1, tmp_path)
    assert [t.shape for t in job.inputs] == [a.shape, b.shape, y.shape]
    assert torch.equal(job.module(*job.inputs)["sum"], a + b)
    assert len(job.calibration) == 2


def test_a_dict_of_inputs_goes_by_name(tmp_path) -> None:
    x = torch.ones(2, 4)
    made = task.of_source("n", nn.Linear(4, 3).eval(), {"input": x}, {}, None)
    graph = qc.trace(made.module, made.args, made.kwargs)
    job = made.job(graph, 1, tmp_path)
    assert torch.equal(job.module(*job.inputs), made.module(x))
