"""The folders into which program files unpack themselves, and removing those that nobody uses.

A program file unpacks at its first start to `$SHIV_ROOT/NAME_BUILD` (else `~/.shiv`), where it
stays: some 125 MB a version, for each account that runs it.
"""

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

UNPACKED = 4  # times the size of the file; measured: 37 MB become 123 MB
_OURS = Path("site-packages", "rsky_pipeline")
_UNFINISHED = ".tmp"
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def own_root() -> Path:
    """Return where program files unpack that this process starts."""
    return root_of(os.environ)


def root_of(environ: "os._Environ[str] | dict[str, str]") -> Path:
    """Return where program files unpack in an environment."""
    return Path(environ.get("SHIV_ROOT") or Path(environ.get("HOME") or Path.home(), ".shiv"))


def build_id(program: Path) -> str:
    """Return the name of a file's build in its folder; empty for what is no program file."""
    try:
        with zipfile.ZipFile(program) as archive:
            return str(json.loads(archive.read("environment.json"))["build_id"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError):
        return ""


def unused(roots: Iterable[Path], programs: Sequence[Path]) -> list[Path]:
    """Return folders that belong to none of these program files and that no process uses."""
    kept = {build for each in programs if (build := build_id(each))}
    found = []
    for root in dict.fromkeys(roots):
        with suppress(OSError):  # not there, or of another account
            found += [
                folder for folder in sorted(root.iterdir())
                if (folder / _OURS).is_dir() and folder.name.rpartition("_")[2] not in kept
            ]  # fmt: skip
    used = "\n".join(_used_files()) if found else ""
    return [folder for folder in found if f"{folder}/" not in used]


def remove(folder: Path) -> int:
    """Remove an unpacked program unless it is being unpacked; return the bytes that are freed."""
    with _alone(folder) as is_alone:
        if not is_alone:
            return 0
        freed = size(folder)
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        _lock_of(folder).unlink()
    return freed


def size(path: Path) -> int:
    """Return the bytes that a file or a folder takes."""
    total = 0
    for each in (path, *path.rglob("*")):
        with suppress(OSError):
            total += each.lstat().st_blocks * 512
    return total


def _used_files() -> Iterator[str]:
    """Yield the mapped files and search paths of all processes that may be looked at."""
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("maps", "environ", "cmdline"):
            with suppress(OSError):
                yield (process / name).read_text(errors="replace")


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.removesuffix(_UNFINISHED)}_lock")


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold the lock under which a program file unpacks."""
    try:
        descriptor = os.open(_lock_of(folder), _OPEN, 0o600)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
