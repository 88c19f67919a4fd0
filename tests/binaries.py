"""Real program files, and variants of one as if they were other versions of it."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = "site-packages"


def build(output: Path) -> Path:
    """Build the program for the Python that runs, as `make binary` does for several.

    RSKY_TEST_BINARY names one that is there already; a build takes half a minute.
    """
    if ready := os.environ.get("RSKY_TEST_BINARY"):
        return Path(shutil.copy2(ready, output))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    builder = ROOT / "rsky_pipeline" / "development" / "binary.py"
    command = [sys.executable, str(builder), "--output", str(output)]
    result = subprocess.run(
        [*command, "--python", python], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def variant(
    original: Path, output: Path, version: str, added: Mapping[str, str] | None = None
) -> Path:
    """Write a copy that says another version; `added` is code for the end of files of ours."""
    changes = {f"{PACKAGES}/rsky_pipeline/{name}": code for name, code in (added or {}).items()}
    shutil.copy2(original, output)
    with warnings.catch_warnings(), zipfile.ZipFile(output, "a", zipfile.ZIP_DEFLATED) as archive:
        # A second file of a name hides the first; that is quicker than packing everything again.
        warnings.simplefilter("ignore", UserWarning)
        for name, code in changes.items():
            archive.writestr(name, archive.read(name) + code.encode())
        name = f"{PACKAGES}/rsky_pipeline/build.json"
        changed = _with(archive.read(name), version=version, commit=f"commit-{version}")
        archive.writestr(name, changed)
        identity = f"{version}-{os.getpid()}-{time.monotonic_ns()}"
        changed = _with(archive.read("environment.json"), build_id=identity)
        archive.writestr("environment.json", changed)
    return output


def _with(content: bytes, **values: str) -> bytes:
    return json.dumps({**json.loads(content), **values}).encode()
