"""Real program files, and variants of one as if they were other versions of it."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = "site-packages"


def build(output: Path) -> Path:
    """Build the program for the Python that runs, as `make binary` does for several."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, str(ROOT / "tools" / "binary.py"), "--output", str(output)]
    result = subprocess.run(
        [*command, "--python", python], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def variant(
    original: Path, output: Path, version: str, changes: Mapping[str, tuple[str, str]] | None = None
) -> Path:
    """Write a copy that says another version; `changes` replace a text in a file of ours."""
    changed = {f"{PACKAGES}/rsky_pipeline/{name}": pair for name, pair in (changes or {}).items()}
    with zipfile.ZipFile(original) as source, output.open("wb") as stream:
        stream.write(f"#!{sys.executable}\n".encode())
        with zipfile.ZipFile(stream, "w") as target:
            for item in source.infolist():
                content = source.read(item)
                if item.filename in changed:
                    old, new = changed.pop(item.filename)
                    assert old in content.decode(), f"{old!r} is not in {item.filename}"
                    content = content.replace(old.encode(), new.encode())
                elif item.filename == f"{PACKAGES}/rsky_pipeline/build.json":
                    content = _with(content, version=version, commit=f"commit-{version}")
                elif item.filename == "environment.json":
                    content = _with(content, build_id=f"{output.name}-{version}-{os.getpid()}")
                target.writestr(item, content)
    assert not changed, f"not in the file: {', '.join(changed)}"
    output.chmod(0o755)
    return output


def _with(content: bytes, **values: str) -> bytes:
    return json.dumps({**json.loads(content), **values}).encode()
