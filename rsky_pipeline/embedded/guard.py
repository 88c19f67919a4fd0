"""Ends an embedded store whose supervisor was killed: `python -m rsky_pipeline.embedded.guard`.

A server from a wheel does not watch our liveness pipe, so this small process does. When the
supervisor is gone, the guard waits until the workers have drained and released their locks (they
need the store for that), then stops the store.
"""

import argparse
import os
import select
import signal
import sys
import time
from pathlib import Path

from rsky_pipeline.runtime.lock import is_held

POLL_SECONDS = 0.2


def arguments(
    *, pid: int, liveness: int, stop_signal: int, locks: Path, patience: float
) -> list[str]:
    """Return the command line of a guard; it waits up to `patience` seconds for the workers."""
    return [
        *(sys.executable, "-P", "-m", "rsky_pipeline.embedded.guard"),
        *("--pid", str(pid)),
        *("--liveness-fd", str(liveness)),
        *("--stop-signal", str(int(stop_signal))),
        *("--locks", str(locks)),
        *("--patience", str(patience)),
    ]


def main() -> None:
    """Watch until the store or the supervisor is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--liveness-fd", type=int, required=True)
    parser.add_argument("--stop-signal", type=int, required=True)
    parser.add_argument("--locks", type=Path, required=True)
    parser.add_argument("--patience", type=float, required=True)
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # signals to the process group are ignored
    try:
        store = os.pidfd_open(given.pid)
    except ProcessLookupError:
        return
    if _store_ends_first(store, given.liveness_fd):
        return
    deadline = time.monotonic() + given.patience
    while _any_held(given.locks) and time.monotonic() < deadline:
        if _ended(store, POLL_SECONDS):
            return
    try:
        signal.pidfd_send_signal(store, given.stop_signal)
    except ProcessLookupError:
        return


def _store_ends_first(store: int, liveness: int) -> bool:
    watched = select.poll()
    watched.register(store, select.POLLIN)
    watched.register(liveness, select.POLLIN)  # never written to: only its end of file is reported
    return any(descriptor == store for descriptor, _ in watched.poll())


def _ended(store: int, seconds: float) -> bool:
    watched = select.poll()
    watched.register(store, select.POLLIN)
    return bool(watched.poll(seconds * 1000))


def _any_held(locks: Path) -> bool:
    return any(is_held(path) for path in locks.glob("*-*.lock"))


if __name__ == "__main__":
    main()
