"""Ways to read with Python alone, and a fixture that runs the tests of a folder in both ways."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rsky_pipeline.atproto import compiled


@contextmanager
def python_alone() -> Iterator[None]:
    """Switch the compiled readers off."""
    with pytest.MonkeyPatch.context() as patch:
        for name in compiled.__all__:
            patch.setattr(compiled, name, lambda *_: None)
        yield


@pytest.fixture(scope="module", autouse=True, params=["compiled", "python"])
def readers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with and without the compiled readers."""
    if request.param == "python":
        with python_alone():
            yield
        return
    if not compiled.COMPILED:
        pytest.skip("the compiled readers could not be built: see docs/dependencies.md")
    yield
