"""Set-up shared by all tests: one thread per worker, and texts compared with golden files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Read by OpenMP when torch is first imported; `make test` runs one worker per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/ files")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`golden(text)` holds a text to golden/<test file>/<test name>.txt; no file is a failure."""
    path = GOLDEN / request.path.stem / f"{request.node.name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run pytest --update-golden and read the result"
        assert text == path.read_text()

    return check
