"""One model, many threads: the same bits, whoever calls and however many threads TVM uses."""

import os
import threading

import numpy as np
import pytest

import qcompiler as qc
from qcompiler import machine
from qcompiler.runtime.tvm_runtime import THREADS

CALLERS = 4
CALLS = 25


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch) -> None:
    """As if there were so many, wherever the tests run."""
    monkeypatch.setattr(machine, "logical_cpus", lambda: 4)


def together(work) -> list:
    """`work(k)` in four threads that start at once; what they return, or the first error."""
    results: list = [None] * CALLERS
    gate = threading.Barrier(CALLERS)

    def run(k: int) -> None:
        gate.wait()
        try:
            results[k] = work(k)
        except BaseException as e:
            results[k] = e

    threads = [threading.Thread(target=run, args=(k,)) for k in range(CALLERS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("threads", [1, 2])
def test_four_callers_get_the_same_bits(load, threads: int) -> None:
    model = load("wide", threads=threads)
    inputs = [np.random.default_rng(k).standard_normal((64, 2048), np.float32) for k in range(3)]
    expected = [model(x) for x in inputs]

    def work(k: int) -> bool:
        calls = [(k + n) % 3 for n in range(CALLS)]
        return all(np.array_equal(model(inputs[c]), expected[c]) for c in calls)

    assert together(work) == [True] * CALLERS


def test_an_error_in_one_call_does_not_touch_the_others(load) -> None:
    model = load("embed")
    ids = np.array([[0, 6, 3, 1, 2]])
    expected = model(ids)

    def work(k: int) -> bool:
        good = True
        for _ in range(CALLS):
            if k == 0:
                with pytest.raises(IndexError):
                    model(ids + 5)
            else:
                good &= np.array_equal(model(ids), expected)
        return good

    assert together(work) == [True] * CALLERS


def test_no_update_of_the_state_is_lost(load) -> None:
    model, one = load("counter"), np.ones(8, np.float32)
    seen = together(lambda k: [float(model(one)[0]) for _ in range(CALLS)])
    assert sorted(v for row in seen for v in row) == [11.0 + n for n in range(CALLERS * CALLS)]
    assert all(row == sorted(row) for row in seen)


def test_one_thread_may_use_models_with_any_number_of_threads(artifacts) -> None:
    """TVM's pool of a thread cannot grow: what it cannot do runs on another thread."""
    x = np.random.default_rng(0).standard_normal((64, 2048), np.float32)

    def work() -> list:
        models = [qc.load(artifacts("wide"), threads=n) for n in (1, 3, 2, 1, 3)]
        return [model(x) for model in models]

    done: list = []
    thread = threading.Thread(target=lambda: done.extend(work()))
    thread.start()
    thread.join()
    assert len(done) == 5
    assert all(np.array_equal(y, done[0]) for y in done)


def test_tvm_really_uses_that_many_threads() -> None:
    import tvm_ffi

    def count() -> int:
        return int(tvm_ffi.get_global_func("runtime.NumThreads")())

    assert [THREADS.run(n, count) for n in (1, 3, 2)] == [1, 3, 2]


def test_calls_leave_the_callers_affinity_alone(load) -> None:
    before = os.sched_getaffinity(0)
    load("wide", threads=2)(np.zeros((64, 2048), np.float32))
    assert os.sched_getaffinity(0) == before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_call(load) -> None:
    """A child has none of the workers that its parent's pool counts on."""
    model = load("wide", threads=2)
    x = np.random.default_rng(0).standard_normal((64, 2048), np.float32)
    expected = model(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(model(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("count", [0, -1, 5, 1_000_000, True, 2.0, "2"])
def test_more_threads_than_cpus_are_refused(artifacts, load, count) -> None:
    message = r"threads: expected a whole number from 1 to 4, the logical CPUs .*, got"
    with pytest.raises(ValueError, match=message):
        qc.load(artifacts("wide"), threads=count)
    model = load("wide", threads=4)
    with pytest.raises(ValueError, match=message):
        model.threads = count
    assert model.threads == 4
