"""The compiled modules, one for each .pyx file; pyproject.toml has everything else.

Each module holds a digest of its sources, which `rsky_pipeline/atproto/compiled.py` compares with
the sources beside it. Where one cannot be built, for want of a C compiler or Python's headers,
everything works without.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
NATIVE = "rsky_pipeline/atproto/native"
digest_of = runpy.run_path(str(ROOT / NATIVE / "__init__.py"))["digest_of"]


def module(source: Path) -> Extension:
    """Return the module of a .pyx file."""
    path = source.relative_to(ROOT)
    return Extension(
        ".".join(path.with_suffix("").parts),
        [str(path), f"{NATIVE}/digest.c"],
        define_macros=[("SOURCES_DIGEST", f'"{digest_of(source).decode()}"')],
        extra_compile_args=["-O2"],
        optional=True,
    )


setup(ext_modules=[module(source) for source in sorted(ROOT.glob("rsky_pipeline/**/*.pyx"))])
