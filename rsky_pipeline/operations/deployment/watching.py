"""Asking the new file whether the pipeline is well, until it is or the time is over."""

import time
from collections.abc import Sequence
from typing import Any

from rsky_pipeline.operations.deployment.program import Program
from rsky_pipeline.operations.ordered.movement import Tell
from rsky_pipeline.runtime.errors import WorkerError

PAUSE_SECONDS = 1.0


class NotWell(WorkerError):
    """The verification did not pass in time."""


def well(
    program: Program, tell: Tell, *, window: float, limit: float, accept: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the figures of the first verification that passes. Raises WorkerError.

    A pipeline that was just started needs a moment, so it is asked again for `limit` seconds.
    `accept` are beginnings of check names that may fail.
    """
    deadline = time.monotonic() + limit
    while True:
        answer = program.ask("verify", "--json", f"--window={window:.0f}s", seconds=window + 300)
        document = answer.document
        if not isinstance(document, dict) or "checks" not in document:
            raise WorkerError(f"`verify` of {program.path} does not answer: {answer.complaint()}")
        failed = [
            f"{check['name']}: {check['figure']}"
            for check in document["checks"]
            if check["status"] == "fail" and not check["name"].startswith(tuple(accept) or "\0")
        ]
        counts = ", ".join(f"{count} {status}" for status, count in document["counts"].items())
        if not failed:
            tell(f"verified: {counts}")
            return {"counts": document["counts"]}
        tell(f"not well yet: {'; '.join(failed)}")
        if time.monotonic() > deadline:
            raise NotWell("; ".join(failed))
        time.sleep(PAUSE_SECONDS)
