"""The innermost loops of the program, compiled. `compiled` is where to import them from, and says
how they share their work with Python.

`blocks` reads CARs and writes records as JSON, `frames` reads commits and identifiers, `trees`
reads nodes. All indexing of input is checked; where a length lies, the IndexError becomes None.
`proofs` makes and checks signatures, and proves whole commits in C (prove.h), many in one call that
does not hold the interpreter.

`libsecp256k1` holds what that takes of the library of this name, unchanged; docs/dependencies.md
says how to renew it.
"""

import hashlib
from pathlib import Path

LIBRARY_FILES = "libsecp256k1/SHA256SUMS"  # all that is taken of it
MARK = b"rsky-sources:"  # stands before the digest in a module's file


def digest_of(source: Path) -> bytes:
    """Return the digest of a .pyx file and of the files it is built with, in hexadecimal."""
    found = hashlib.sha256()
    folder = source.parent
    for path in (source, *sorted(folder.glob("*.pxd")), *sorted(folder.glob("*.h")),
                 folder / LIBRARY_FILES):  # fmt: skip
        if path.exists():
            found.update(path.read_bytes())
    return found.hexdigest().encode()
