"""Everything is read twice: by the compiled readers, and without them."""

from tests.unit.readers import readers

__all__ = ["readers"]
