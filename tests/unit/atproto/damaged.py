"""What both tests of the compiled readers are made of."""

import shutil
import sysconfig
from pathlib import Path

import pytest
from hypothesis import strategies as st

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.cid import RAW, Cid

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
can_build = HEADERS.exists() and shutil.which("cc") is not None
cids = st.builds(Cid.of, st.binary(max_size=8), st.sampled_from([0x71, RAW]))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PLC = "did:plc:z72i7hdynmk6r22z27h6tvur"
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | st.binary() | cids
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20
)
records = st.dictionaries(texts, values, max_size=6)
odd_bytes = st.sampled_from(b'\x00\x01\x18\x1b\x2a/"\\aplt\x58\x60\x78\x80\xa0\xa2\xd8\xf6\xff')


def damage(block: bytes, data: st.DataObject) -> bytes:
    """Change, drop or repeat a little."""
    kind = data.draw(st.sampled_from(["change", "cut", "add", "drop"]))
    at = data.draw(st.integers(0, max(len(block) - 1, 0)))
    match kind:
        case "change":
            return block[:at] + bytes([data.draw(odd_bytes)]) + block[at + 1 :]
        case "cut":
            return block[:at]
        case "add":
            return block + block[at : at + 5]
    return block[:at] + block[at + 1 :]


@pytest.fixture(scope="module", autouse=True)
def readers() -> None:
    """Leave the readers as they are, and have some where they can be built."""
    if not compiled.COMPILED and not can_build:
        pytest.skip("needs a C compiler and Python's headers")
