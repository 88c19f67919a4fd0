"""`make mutate`: plant each bug of the list in a copy of the working tree and run its tests.

A bug is killed if one of its tests fails, or hangs until it is stopped; it survives if all pass.
Before the first bug all named tests run on the unchanged copy: a test that fails anyway would kill
every bug. `ONLY=text,text` takes the bugs whose name or file contains one of the texts.

Most of the time of a short pytest run goes into importing libraries. So these are imported here,
once, and each run is a fork of this process, which has no threads; all share one PostgreSQL.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import psycopg
import pytest

from tests import stores
from tests.mutation.bugs import BUGS, SUBJECTS, Bug

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0  # after which a bug's tests have hung
_LEFT_OUT = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist")
_OPTIONS = (
    "-q", "-x", "-p", "no:cacheprovider", "--timeout=60",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # of libraries imported before
)  # fmt: skip
_LIBRARIES = (
    "hypothesis",
    "trio",
    "trio.testing",
    "redis",
    "psycopg",
    "prometheus_client",
    "orjson",
)
_OURS = ("rsky_pipeline", "tests")
_FAILED = re.compile(r"^(?:FAILED|ERROR) \S+::(\w+)", re.MULTILINE)
_DATABASES = "SELECT datname FROM pg_database WHERE datname LIKE 'test\\_%%' OR datname = %s"


class Copy:
    """A copy of the working tree, in which bugs are planted and removed."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self._output = folder / "output"
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)

    def plant(self, bug: Bug) -> None:
        """Put a bug into its file. Raises ValueError unless its text occurs exactly once."""
        self._write(bug.file, planted((self.root / bug.file).read_text(), bug))

    def remove(self, bug: Bug, original: str) -> None:
        """Restore the file of a bug."""
        self._write(bug.file, original)

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.write_text(text)
        # Python compares times in seconds, and sizes: a bug may be as long as the code it replaces.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def run(self, tests: Iterable[str], seconds: float) -> tuple[int | None, str]:
        """Run tests; return the exit code of pytest, None if they hung, and the output."""
        _drop_databases()
        child = os.fork()
        if child == 0:
            self._be_pytest([*_OPTIONS, *tests])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), self._output.read_text()
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None, self._output.read_text()

    def _be_pytest(self, arguments: list[str]) -> None:
        """Be a pytest in the copy, and end; in the forked process."""
        code = 3
        try:
            os.setsid()
            with self._output.open("w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            os.chdir(self.root)
            sys.path[:] = [str(self.root), *(p for p in sys.path if p not in {"", str(ROOT)})]
            os.environ["PYTHONPATH"] = str(self.root)
            for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
                del sys.modules[name]
            code = int(pytest.main(arguments))
        except Exception:  # noqa: BLE001 - nobody else would print it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _drop_databases() -> None:
    """Drop the databases that the run before left behind; the server is that of all runs."""
    url = os.environ["RSKY_TEST_DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as connection:
        for (name,) in connection.execute(_DATABASES, [stores.TEMPLATE]).fetchall():
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def planted(text: str, bug: Bug) -> str:
    """Return the text of a file with a bug. Raises ValueError unless it can be planted."""
    count = text.count(bug.old)
    if count != 1:
        raise ValueError(f"{bug.name}: its text occurs {count} times in {bug.file}")
    return text.replace(bug.old, bug.new)


def chosen(only: str) -> list[Bug]:
    """Return the bugs that `ONLY` asks for."""
    texts = [text for text in only.split(",") if text]
    return [bug for bug in BUGS if not texts or any(t in bug.name or t in bug.file for t in texts)]


def table(results: Sequence[tuple[Bug, bool]]) -> str:
    """Return the planted and the killed bugs of each subject, as a table in Markdown."""
    subjects = {file: subject for subject, files in SUBJECTS.items() for file in files}
    total, killed = Counter[str](), Counter[str]()
    for bug, dead in results:
        total[subjects[bug.file]] += 1
        killed[subjects[bug.file]] += dead
    rows = ["| subject | bugs | killed |", "|---|---|---|"]
    rows += [f"| {name} | {total[name]} | {killed[name]} |" for name in SUBJECTS if total[name]]
    return "\n".join([*rows, f"| all | {total.total()} | {killed.total()} |"])


def plant_all(bugs: Sequence[Bug], copy: Copy) -> list[tuple[Bug, bool]] | None:
    """Plant one bug after the other; return which were killed, None if tests could not run."""
    tests = sorted({test for bug in bugs for test in bug.tests})
    print(f"{len(bugs)} bugs; first their tests without any of them", flush=True)
    code, output = copy.run(tests, SECONDS * 10)
    if code != 0:
        print(output[-4_000:], "\nthe tests fail without a bug", sep="")
        return None
    results: list[tuple[Bug, bool]] = []
    for number, bug in enumerate(bugs, start=1):
        started = time.monotonic()
        original = (copy.root / bug.file).read_text()
        copy.plant(bug)
        code, output = copy.run(bug.tests, SECONDS)
        copy.remove(bug, original)
        found = _FAILED.search(output)
        if code and not found:  # not even collected: that proves nothing
            print(output[-4_000:], f"\n{bug.name}: its tests do not run", sep="")
            return None
        by = "hung" if code is None else found[1] if found else ""
        results.append((bug, bool(by)))
        mark = "killed  " if by else "SURVIVED"
        seconds = time.monotonic() - started
        print(f"{number:3}/{len(bugs)} {mark} {seconds:5.1f} s  {bug.name}  {by}", flush=True)
    return results


def main() -> int:
    bugs = chosen(os.environ.get("ONLY", ""))
    if not bugs:
        print("no bug has such a name or file")
        return 2
    began = time.monotonic()
    stores.use_memory()
    for library in _LIBRARIES:
        importlib.import_module(library)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mutation-"))
        os.environ["RSKY_TEST_DATABASE_URL"] = stack.enter_context(stores.running_postgres())
        results = plant_all(bugs, Copy(Path(folder)))
    if results is None:
        return 2
    alive = [bug for bug, dead in results if not dead]
    print(f"\n{table(results)}\n")
    for bug in alive:
        print(f"SURVIVED {bug.name}: {bug.file}\n-   {bug.old}\n+   {bug.new}")
    print(
        f"{len(results) - len(alive)} of {len(results)} killed in {time.monotonic() - began:.0f} s"
    )
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
