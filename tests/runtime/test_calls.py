"""Calling a compiled model: values in and out, bad input, state, trees."""

import numpy as np
import pytest
import torch

import qcompiler as qc
from qcompiler.runtime import InputError


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a, b) -> bool:
    return torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_torch_in_torch_out_numpy_in_numpy_out(load) -> None:
    model = load("mixed")
    x, y = floats(4, 6), floats(4, 6, seed=1)
    from_torch, from_numpy = model(x, y), model(x.numpy(), y.numpy())
    assert [type(v) for v in from_torch] == [torch.Tensor] * 3
    assert [type(v) for v in from_numpy] == [np.ndarray] * 3
    assert all(map(same, from_torch, qc.interpret(model.graph, x, y)))
    assert all(map(same, from_torch, from_numpy))
    assert isinstance(model(x, y.numpy())[0], torch.Tensor)


def test_a_single_result_is_bare(load) -> None:
    model, x = load("layers"), floats(1, 3, 6, 6)
    assert same(model(x), qc.interpret(model.graph, x))
    assert model(x).shape == (1, 128)


def test_call_tree_takes_and_gives_the_modules_own_nesting(load) -> None:
    model, x, y = load("mixed"), floats(4, 6), floats(4, 6, seed=1)
    result = model.call_tree(x, y)
    assert list(result) == ["sum", "same"]
    assert same(result["same"][0], x)
    assert same(result["same"][1], result["sum"])


def _strided(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def _shifted(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 4, np.uint8)[4:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    return raw


def _locked(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.setflags(write=False)
    return copy


@pytest.mark.parametrize("form", [_strided, _shifted, _locked, np.asfortranarray])
def test_arrays_may_lie_anyhow(load, form) -> None:
    model, x = load("mixed"), floats(4, 6).numpy()
    given = form(x)
    assert np.array_equal(given, x)
    assert np.array_equal(model(given, given)[0], model(x, x)[0])


def test_tensors_may_lie_anyhow_and_want_gradients(load) -> None:
    model, x = load("mixed"), floats(4, 6)
    expected = model(x, x)[0]
    shifted = torch.zeros(25)[1:].view(4, 6).copy_(x)
    for given in (x.T.contiguous().T, shifted, x.clone().requires_grad_()):
        assert same(model(given, given)[0], expected)


def test_results_are_the_callers_own(load) -> None:
    """Neither a later call, nor what the caller does to inputs or results, shows elsewhere."""
    model = load("mixed")
    for x in (floats(4, 6), floats(4, 6).numpy()):
        kept = [np.asarray(v).copy() for v in model(x, x)]
        first = model(x, x)
        assert same(first[1], x)
        model(x * 0, x * 0)
        assert all(map(same, first, kept))
        first[1][:] = 7.0
        assert not (np.asarray(x) == 7.0).any()
        x[:] = 5.0
        assert (np.asarray(first[1]) == 7.0).all()


BAD = [
    (lambda x: (x,), "expected 2 inputs (%x: float32[4,6], %y: float32[4,6]), got 1"),
    (lambda x: (x, x[:3]), "input %y: expected float32[4,6], got float32[3,6]"),
    (lambda x: (x[0], x), "input %x: expected float32[4,6], got float32[6]"),
    (lambda x: (x, x.double()), "input %y: expected float32[4,6], got float64[4,6]"),
    (lambda x: (x.numpy() > 0, x), "input %x: expected float32[4,6], got bool[4,6]"),
    (lambda x: (x, x.tolist()), "as a torch tensor or numpy array, got list"),
    (lambda x: (x, x.to("meta")), "input %y: expected a tensor on the CPU, got meta"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_input_that_does_not_fit_is_named(load, given, message: str) -> None:
    model, x = load("mixed"), floats(4, 6)
    with pytest.raises(InputError) as caught:
        model(*given(x))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "message"), BAD)
def test_it_is_named_after_calls_that_fit(load, given, message: str) -> None:
    model, x = load("mixed"), floats(4, 6)
    right = [model(x, x) for _ in range(3)][-1]
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            model(*given(x))
        assert message in str(caught.value)
    assert all(map(same, model(x, x), right))
    assert all(map(same, model(x.numpy(), x), right))


def test_symbolic_dimensions_are_bound_and_bounded(load) -> None:
    model = load("batch")
    for size in (2, 5, 8):
        x = floats(size, 64)
        assert same(model(x), qc.interpret(model.graph, x))
    for size in (1, 9):
        with pytest.raises(InputError, match=rf"input %x: expected batch in 2\.\.8, got {size}"):
            model(floats(size, 64))
    with pytest.raises(InputError, match=r"float32\[batch,64\], got float32\[3,63\]"):
        model(floats(3, 63))


@pytest.mark.parametrize("bad", [7, -1, 2**40, -(2**40)])
def test_ids_outside_their_table_are_refused(load, bad: int) -> None:
    model, ids = load("embed"), torch.tensor([[0, 6, 3, 1, 2]])
    expected = qc.interpret(model.graph, ids)
    assert same(model(ids), expected)
    ids[0, 2] = bad
    with pytest.raises(IndexError, match=r"indices in 0\.\.6") as caught:
        model(ids)
    assert "\n" not in str(caught.value)
    ids[0, 2] = 3
    assert same(model(ids), expected)


def test_state_is_kept_per_model_and_reset(load) -> None:
    first, second = load("counter"), load("counter")
    x = torch.ones(8)
    assert [float(first(x)[0]) for _ in range(3)] == [11.0, 12.0, 13.0]
    assert float(second(x)[0]) == 11.0
    first.reset_state()
    assert float(first(x)[0]) == 11.0


def test_state_is_out_of_the_callers_reach(load) -> None:
    model, x = load("counter"), torch.ones(8)
    model(x)[:] = 100.0
    assert float(model(x)[0]) == 12.0
    with pytest.raises(InputError):
        model(x[:3])
    assert float(model(x)[0]) == 13.0


def test_a_model_in_memory_runs_like_a_loaded_one(load) -> None:
    made = qc.compile(torch.nn.ReLU().eval(), (floats(2, 3),), recipe="float32")
    x = floats(2, 3, seed=2)
    assert same(made(x), x.relu())
    assert made.manifest.main.weights == ()
    assert made.threads >= 1
    with pytest.raises(ValueError, match="threads: expected a whole number from 1 to"):
        made.threads = 0


def test_what_a_model_says_of_itself(load) -> None:
    model = load("layers")
    assert repr(model).startswith("<CompiledModel int8 for x86-64-v3: (input: float32[1,3,6,6])")
    assert model.report.integer_share == 1.0
    assert str(model.graph) == model.text
    changed = model.with_report(model.report)
    x = floats(1, 3, 6, 6)
    assert same(changed(x), model(x))
