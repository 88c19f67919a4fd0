"""Records the calls of our functions in a worker; `trace` puts it there as `sitecustomize`.

It imports nothing of ours, and records into memory. When the file `write` appears in
RSKY_TRACE_FOLDER, a thread writes the calls as JSON lines to `PID.jsonl` there.
"""

import json
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = os.environ.get("RSKY_TRACE_FOLDER", "")
ROOT = os.environ.get("RSKY_TRACE_ROOT", "")
calls: deque[tuple[int, str, str, int, str, str]] = deque(maxlen=3_000_000)


def hook(frame: FrameType, event: str, _: Any) -> None:
    """Record a call; a coroutine that goes on is one, too."""
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(ROOT) or code.co_name[0] == "<":
        return
    depth, outer = 0, frame.f_back
    while outer is not None:
        depth += outer.f_code.co_filename.startswith(ROOT)
        outer = outer.f_back
    calls.append((
        time.monotonic_ns(), threading.current_thread().name, task_name(), depth,
        code.co_filename[len(ROOT) + 1 :], code.co_qualname,
    ))  # fmt: skip


def task_name() -> str:
    """Return the name of the trio task that runs in this thread, '' outside of trio."""
    trio = sys.modules.get("trio")
    try:
        return str(trio.lowlevel.current_task().name) if trio is not None else ""
    except (RuntimeError, AttributeError):  # no loop here, or trio is just being imported
        return ""


def write_when_asked() -> None:
    """Wait for the file `write`, then write the calls of this process."""
    folder = Path(FOLDER)
    while not (folder / "write").exists():
        time.sleep(0.05)
    threading.setprofile(None)
    lines = [json.dumps({"argv": sys.orig_argv})]
    lines += [json.dumps(call) for call in list(calls)]
    unfinished = folder / f"{os.getpid()}.new"
    unfinished.write_text("\n".join(lines))
    unfinished.rename(folder / f"{os.getpid()}.jsonl")


if FOLDER and "worker" in sys.orig_argv:
    threading.Thread(target=write_when_asked, name="trace", daemon=True).start()
    threading.setprofile(hook)
    sys.setprofile(hook)
