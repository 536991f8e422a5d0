"""What is read of the machine, and files that appear whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from qcompiler import atomic, machine
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


def test_links_stay_and_the_file_they_name_is_written(tmp_path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "a.bin", tmp_path / "there" / "b.bin"
    link.symlink_to("there/b.bin")
    for content in (b"new", b"newer"):  # a link to nothing, and one to a file
        with replacing(link) as file:
            file.write(content)
        assert link.is_symlink() and target.read_bytes() == content
        assert list(target.parent.iterdir()) == [target]


def test_what_is_no_plain_file_is_not_replaced(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for bad in (pipe, link):
        with pytest.raises(OSError, match="it is no plain file") as caught, replacing(bad):
            pass
        assert caught.value.filename == str(bad)
        with pytest.raises(OSError, match="cannot write: it is no plain file"):
            probe(bad)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_the_reason_is_that_of_the_file_asked_for(tmp_path, monkeypatch) -> None:
    file = tmp_path / "good.qcm"
    file.write_text("in the way")
    cases = {file / "x.qcm": "Not a directory", tmp_path / ("x" * 300): "File name too long"}
    for path, reason in cases.items():
        for write in (probe, _written):
            with pytest.raises(OSError, match=f"cannot write: {reason}") as caught:
                write(path)
            assert caught.value.filename == str(path)
    with replacing(tmp_path / ("x" * 255)) as longest:  # what a file system just allows
        longest.write(b"")

    def readonly(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "a.part")

    for name in ("unlink", "touch"):
        monkeypatch.setattr(Path, name, readonly)
    monkeypatch.setattr(atomic.os, "replace", readonly)
    path = tmp_path / "a.bin"
    for write in (probe, _written):
        with pytest.raises(OSError, match="cannot write: Read-only") as caught:
            write(path)
        assert caught.value.filename == str(path)


def _written(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"new")
