"""What is read of the machine, and files that appear whole or not at all."""

import os

import pytest

from qcompiler import machine
from qcompiler.atomic import probe, replacing

CPUINFO = """processor\t: 0
flags\t\t: fpu avx2 fma amx
bugs\t\t: spectre_v1 avx512f

processor\t: 1
flags\t\t: fpu avx2 fma
"""


def test_a_feature_is_one_that_every_core_has(tmp_path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO)
    assert machine.x86_features(path) == {"fpu", "avx2", "fma"}
    assert machine.x86_features(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({16: 1 << 1}, {"asimd"}),
        ({16: 1 << 1 | 1 << 20}, {"asimd", "asimddp"}),
        ({16: 1 << 1 | 1 << 20, 26: 1 << 13}, {"asimd", "asimddp", "i8mm"}),
        ({26: 1 << 1 | 1 << 20}, set()),
    ],
)
def test_arm_features_are_those_of_the_auxiliary_vector(monkeypatch, words, expected) -> None:
    assert machine.arm_features(lambda word: words.get(word, 0)) == expected
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(machine, "arm_features", lambda capabilities: {"told": capabilities(16)})
    assert set(machine.features()) == {"told"}


def test_two_threads_of_a_core_are_one_core(tmp_path, monkeypatch) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    for allowed, expected in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({3}, 1), ({0, 1, 7}, 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, a=allowed: a)
        assert machine.cores(tmp_path) == expected


def test_a_file_appears_when_it_is_whole(tmp_path) -> None:
    path = tmp_path / "a.bin"
    with replacing(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_probe_changes_nothing(tmp_path) -> None:
    path = tmp_path / "a.bin"
    probe(path)
    assert list(tmp_path.iterdir()) == []
    for bad in (tmp_path, tmp_path / "none" / "a.bin"):
        with pytest.raises(OSError, match="cannot write") as caught:
            probe(bad)
        assert caught.value.filename == str(bad)
