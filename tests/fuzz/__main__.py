"""`make fuzz MINUTES=60`: all targets for a time, guided by coverage where atheris is installed.

Corpora and the inputs of faults are in `.fuzz`. `python -m tests.fuzz TARGET FILE` runs one input.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.mutation import BYTES
from tests.fuzz.search import search
from tests.fuzz.targets import TARGETS, Target

FOLDER = Path(".fuzz")
EXAMPLES = 2_000  # between two looks at the clock


def main() -> int:
    """Search for faults; returns 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS, help="default: each in turn")
    parser.add_argument("input", nargs="?", type=Path, help="a file to run once")
    parser.add_argument("--minutes", type=float, default=1.0, help="in all")
    given = parser.parse_args()
    if given.input is not None:
        TARGETS[given.target].run(given.input.read_bytes())
        return 0
    chosen = [TARGETS[given.target]] if given.target else list(TARGETS.values())
    seconds = given.minutes * 60 / len(chosen)
    guided = importlib.util.find_spec("atheris") is not None
    print("guided by coverage" if guided else "mutations only: atheris is not installed")
    run = _guided if guided else _unguided
    faults = [target.name for target in chosen if not run(target, seconds)]
    print(f"{len(chosen)} targets, faults in: {', '.join(faults) or 'none'}")
    return 1 if faults else 0


def _unguided(target: Target, seconds: float) -> bool:
    until = time.monotonic() + seconds
    print(f"{target.name}: {seconds:.0f} s", flush=True)
    while time.monotonic() < until:
        try:
            search(target, EXAMPLES)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a fault
            sys.excepthook(type(error), error, error.__traceback__)
            return False
    return True


def _guided(target: Target, seconds: float) -> bool:
    """Run a target in a process of its own, whose imports are instrumented."""
    corpus = FOLDER / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = FOLDER / "words"
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in BYTES if len(word) < 64)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    command = [
        sys.executable, "-m", "tests.fuzz.guided", target.name, f"-max_total_time={seconds:.0f}",
        f"-dict={words}", f"-artifact_prefix={FOLDER}/{target.name}-", "-timeout=60",
        "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    print(f"{target.name}: {seconds:.0f} s", flush=True)
    return subprocess.run(command, check=False, env=os.environ).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
