"""The compiled modules, one for each .pyx file; pyproject.toml has everything else.

Each module holds a digest of its sources, which `rsky_pipeline/atproto/compiled.py` compares with
the sources beside it. Where one cannot be built, for want of a C compiler or Python's headers,
everything works without.
"""

import platform
import runpy
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
NATIVE = "rsky_pipeline/atproto/native"
LIBRARY = f"{NATIVE}/libsecp256k1"
digest_of = runpy.run_path(str(ROOT / NATIVE / "__init__.py"))["digest_of"]

# More in the modules of these names. The tables of libsecp256k1 could be eight times as large: 2 %
# faster while nothing else uses the processor's cache, and no faster else.
SOURCES = {
    "proofs": [
        f"{LIBRARY}/src/{name}.c"
        for name in ("secp256k1", "precomputed_ecmult", "precomputed_ecmult_gen")
    ]
}
MACROS = {
    "proofs": [
        ("ECMULT_WINDOW_SIZE", "12"),
        ("COMB_BLOCKS", "11"),
        ("COMB_TEETH", "6"),
        ("SECP256K1_NO_API_VISIBILITY_ATTRIBUTES", "1"),
        *([("USE_ASM_X86_64", "1")] if platform.machine() == "x86_64" else []),
    ]
}


def module(source: Path) -> Extension:
    """Return the module of a .pyx file."""
    path = source.relative_to(ROOT)
    return Extension(
        ".".join(path.with_suffix("").parts),
        [str(path), f"{NATIVE}/digest.c", *SOURCES.get(path.stem, [])],
        include_dirs=[NATIVE, f"{LIBRARY}/include"],
        define_macros=[
            ("SOURCES_DIGEST", f'"{digest_of(source).decode()}"'),
            *MACROS.get(path.stem, []),
        ],
        extra_compile_args=["-O2", "-fvisibility=hidden"],
        optional=True,
    )


setup(ext_modules=[module(source) for source in sorted(ROOT.glob("rsky_pipeline/**/*.pyx"))])
