"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

ODD = "it is no plain file (a pipe, socket or device); give a file's name"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when the block ends without an error.

    Until then an older file stays what it was; a symbolic link stays, and the file it names is
    written. Raises OSError naming `path`.
    """
    path = Path(path)
    target = _destination(path)
    part = _beside(target)
    try:
        file = open(part, "x+b")  # noqa: SIM115 (closed below, before it is renamed)
    except OSError as e:
        raise named(e, path) from None
    try:
        with file:
            yield file
        os.replace(part, target)
    except OSError as e:
        raise named(e, path) from None
    finally:
        _remove(part)


def probe(path: Path) -> None:
    """Raises OSError when a file of that name could not be written; leaves nothing behind."""
    part = _beside(_destination(path))
    try:
        part.touch(exist_ok=False)
    except OSError as e:
        raise named(e, path) from None
    finally:
        _remove(part)


def named(error: OSError, path: Path) -> OSError:
    """The error for the file that was asked for, not for the temporary one beside it."""
    if error.errno is None or (error.strerror or "").startswith(CANNOT):
        return error
    return OSError(error.errno, f"{CANNOT}: {error.strerror}", str(path))


CANNOT = "cannot write"


def _destination(path: Path) -> Path:
    """Where links lead. Raises OSError naming `path` unless that is a plain file or free."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as e:
        raise named(e, path) from None
    if stat.S_ISDIR(mode):
        raise named(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)), path)
    if not stat.S_ISREG(mode):
        raise named(OSError(errno.EINVAL, ODD), path)
    return Path(os.path.realpath(path))


def _beside(target: Path) -> Path:
    """A name of its own in the same folder, short enough wherever the target's is."""
    return target.with_name(f".{secrets.token_hex(8)}.part")


def _remove(part: Path) -> None:
    """Gone or never there; that it cannot be removed must not hide why it could not be written."""
    with suppress(OSError):
        part.unlink(missing_ok=True)
