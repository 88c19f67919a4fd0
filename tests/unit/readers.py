"""A fixture that runs the tests of a folder twice: with the compiled readers, and without them."""

from collections.abc import Iterator

import pytest

from rsky_pipeline.atproto import compiled


@pytest.fixture(scope="module", autouse=True, params=["compiled", "python"])
def readers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Switch the compiled readers off for one of the two."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            for name in compiled.__all__:
                patch.setattr(compiled, name, lambda *_: None)
        elif not compiled.COMPILED:
            pytest.skip("the compiled readers could not be built: see docs/dependencies.md")
        yield
