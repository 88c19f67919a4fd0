"""`make sanitize`: the compiled readers under AddressSanitizer and UndefinedBehaviorSanitizer.

A copy of the package is compiled for it, libsecp256k1 included, and read by the tests that hold the
readers against Python, which go over all recorded frames and repos, and by mutated inputs. Python
takes its memory from malloc, so that reading past the end of a byte string is seen. The first
finding ends the program with a report. Needs GCC with libasan and libubsan, and Python's headers.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("rsky_pipeline", "tests", "pyproject.toml", "setup.py", "README.md", "LICENSE")
TESTS = (
    "tests/unit/atproto/test_compiled.py",
    "tests/unit/atproto/test_compiled_commits.py",
    "tests/unit/atproto/test_signatures.py",
    "tests/unit/atproto/test_keys.py",
    "tests/unit/atproto/test_find_blocks.py",
    "tests/unit/atproto/test_mst_vectors.py",
    "tests/unit/atproto/test_repos.py",
    "tests/unit/atproto/test_window.py",
    "tests/unit/ingester/test_proofs.py",
    "tests/unit/ingester/test_vectors.py",
)
# Of what strangers send, the parts that compiled code reads.
FUZZED = ("frame", "relay_frame", "car", "node", "commit", "record", "identifiers")
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"


def main() -> None:
    """Compile, test, fuzz; the exit code is that of the first one that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of mutated inputs")
    parser.add_argument("--examples", type=int, default=500, help="of each property")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rsky-sanitize-") as scratch:
        place = Path(scratch, "copy")
        place.mkdir()
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, place / part)
        for stale in place.rglob("*.so"):
            stale.unlink()
        build(place, Path(scratch, "built"))
        environment = os.environ | {
            "LD_PRELOAD": " ".join(map(library, ("libasan.so", "libubsan.so"))),
            # Python leaves memory to the end of the process.
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:quarantine_size_mb=16",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
            "EXAMPLES": str(given.examples),
        }
        for command in (
            ("-c", "from rsky_pipeline.atproto import compiled; assert compiled.COMPILED"),
            ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0", *TESTS),
            *(
                ("-m", "tests.fuzz", name, "--minutes", str(given.minutes / len(FUZZED)))
                for name in FUZZED
            ),
        ):
            print("sanitized: python", *command, flush=True)
            done = subprocess.run(
                [sys.executable, *command], cwd=place, env=environment, check=False
            )
            if done.returncode:
                sys.exit(done.returncode)


def build(place: Path, target: Path) -> None:
    """Compile the readers of a copy with the sanitizers, and put them beside their sources."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-compile", "--target", str(target), str(place)],
        env=os.environ | {"CFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined"}, check=True,
    )  # fmt: skip
    for module in target.rglob("*.so"):
        shutil.copy(module, place / module.relative_to(target))


def library(name: str) -> str:
    """Return the path of a library of the compiler."""
    command = [os.environ.get("CC", "cc"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
