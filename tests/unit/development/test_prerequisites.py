"""What `make` says where the system lacks something, and what it then makes."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from rsky_pipeline.development import prerequisites
from rsky_pipeline.development.documents import ROOT
from rsky_pipeline.development.prerequisites import INSTALL

SCRIPT = ROOT / "rsky_pipeline" / "development" / "prerequisites.py"


def test_this_system_lacks_nothing() -> None:
    assert prerequisites.main() == 0


def test_the_readme_names_the_packages() -> None:
    text = (ROOT / "README.md").read_text()
    for line in INSTALL.values():
        assert f"`{line}`" in text


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("ID=debian\n", "debian"),
        ('NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n', "ubuntu"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'\n".replace("'", '"'), "ubuntu"),
        ("ID=arch\n", None),
        ("", None),
    ],
)
def test_systems_are_known_by_their_release(
    tmp_path: Path, release: str, expected: str | None
) -> None:
    file = tmp_path / "os-release"
    file.write_text(release)
    assert prerequisites.system(str(file)) == expected
    assert prerequisites.system(str(tmp_path / "none")) is None


@pytest.mark.parametrize("lacking", ["venv", "ensurepip"])
def test_without_a_virtual_environment_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == lacking else find(name)
    )
    monkeypatch.setattr(prerequisites, "system", lambda: "debian")
    assert prerequisites.main() == 2
    said = capsys.readouterr().out
    assert f"the module {lacking}" in said
    assert INSTALL["debian"] in said


def test_without_headers_or_compiler_everything_is_made_but_the_compiled_readers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(prerequisites, "system", lambda: None)
    assert prerequisites.main() == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "Python.h") in said
    assert "a C compiler" in said
    assert all(line in said for line in INSTALL.values())


def test_make_stops_before_it_begins(tmp_path: Path) -> None:
    """A Python that cannot make virtual environments, as on a fresh Debian."""
    for name in ("Makefile", "pyproject.toml", "setup.py", ".ci", "rsky_pipeline"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/called\n'
        f'exec {sys.executable} -c "import sys, importlib.util as u; '
        f"u.find_spec = lambda name: None; sys.argv = ['$1']; "
        f"exec(compile(open('$1').read(), '$1', 'exec'), {{'__name__': '__main__'}})\"\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    result = subprocess.run(
        ["make", "--no-print-directory", f"PYTHON={python}", "VENV=none", "demo"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=60,
    )  # fmt: skip
    assert result.returncode != 0
    assert "the module ensurepip" in result.stdout
    assert (tmp_path / "called").read_text() == f"{SCRIPT.relative_to(ROOT)}\n"
    assert not (tmp_path / "none").exists()
