"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when the block ends without an error.

    Until then an older file stays what it was. Raises OSError naming `path`.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        file = open(part, "x+b")  # noqa: SIM115 (closed below, before it is renamed)
    except OSError as e:
        raise _named(e, path) from None
    try:
        with file:
            yield file
        os.replace(part, path)
    except OSError as e:
        raise _named(e, path) from None
    finally:
        part.unlink(missing_ok=True)


def _named(error: OSError, path: Path) -> OSError:
    """The error for the file that was asked for, not for the temporary one beside it."""
    if error.errno is None:
        return error
    return OSError(error.errno, f"cannot write: {error.strerror}", str(path))


def probe(path: Path) -> None:
    """Raises OSError when a file of that name could not be written; leaves nothing behind."""
    if path.is_dir():
        raise _named(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)), path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
    except OSError as e:
        raise _named(e, path) from None
    finally:
        part.unlink(missing_ok=True)
