"""The status document of a supervisor and its children, and the metrics port that serves it.

Its forms are in `status_document`.
"""

import os
import time
from collections.abc import Callable, Sequence

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.health.rules import HEARTBEAT
from rsky_pipeline.observability.build import build
from rsky_pipeline.observability.server import process_registry
from rsky_pipeline.observability.supervisor import SupervisorCollector
from rsky_pipeline.runtime.findings import complaint, found, of_process
from rsky_pipeline.runtime.health_document import FindingHealth, HealthDocument
from rsky_pipeline.runtime.metrics_port import (
    SUPERVISOR,
    open_metrics_server,
    supervisor_instance,
)
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.machine import ALIVE, Exit, Phase
from rsky_pipeline.supervisor.status_document import (
    SCHEMA_VERSION,
    ExitStatus,
    FindingStatus,
    ProblemStatus,
    ProcessStatus,
    SupervisorPhase,
    SupervisorStatus,
)

MAX_STEPS = 100  # lines of a start; a store that is away adds one for each reason
MEMORY_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Exporter:
    """Serves the status document as metrics and health.

    The loop leaves a document with `refresh`; the metrics thread only reads it.
    """

    def __init__(
        self, settings: Settings, roles: Sequence[str], document: Callable[[], SupervisorStatus]
    ) -> None:
        self._make = document
        self.refresh()
        registry = process_registry()
        registry.register(SupervisorCollector(lambda: self._document["processes"]))
        number = supervisor_instance(roles)
        self._server = open_metrics_server(settings, SUPERVISOR, number, registry, self._health)
        self.port = self._server.port

    def close(self) -> None:
        """Free the metrics port."""
        self._server.close()

    def refresh(self) -> None:
        """Take a new document; called by the loop."""
        self._document = self._make()
        self._refreshed = time.monotonic()

    def _health(self) -> tuple[int, SupervisorStatus]:
        document = self._document
        stale = HEARTBEAT.verdict(time.monotonic() - self._refreshed) == "fail"
        return (200 if document["healthy"] and not stale else 503), document


def child_document(child: ChildDriver) -> ProcessStatus:
    """Describe one child."""
    state = child.state
    reason = state.last_exit.reason if state.last_exit else None
    loops = state.phase in (Phase.STARTING, Phase.BACKOFF) and state.crash_looping(child.policy)
    phase = Phase.CRASHLOOP if loops else state.phase
    own = of_process(child.name, child.role, phase.value, wanted=state.wanted, reason=reason)
    process = [own] if own is not None else []
    # The last document of a process that is gone has its cursors, and no present figures.
    health = child.health if state.phase in ALIVE else HealthDocument()
    return {
        "name": child.name,
        "role": child.role,
        "instance": child.instance,
        "kind": "store" if child.instance is None else "worker",
        "pid": state.pid,
        "state": state.phase.value,
        "state_seconds": round(trio.current_time() - state.since, 1),
        "wanted": state.wanted,
        "uptime_seconds": health.get("uptime_seconds") if child.instance else _age(child),
        "restarts": state.restarts,
        "kills": state.kills,
        "crash_looping": state.crash_looping(child.policy),
        "last_exit": _exit(state.last_exit),
        "metrics_port": child.metrics_port,
        "rss_bytes": resident_bytes(state.pid),
        "rate": health.get("rate"),
        "lag": health.get("lag"),
        "lag_seconds": health.get("lag_seconds"),
        "trouble": complaint(health),
        "problems": _problems(health),
        "findings": [finding_status(each) for each in (*process, *found(health))],
        "health": child.health,
    }


def document(
    *,
    state: SupervisorPhase,
    roles: Sequence[str],
    children: Sequence[ChildDriver],
    began: float,
    run_dir: str,
    steps: Sequence[str] = (),
) -> SupervisorStatus:
    """Describe a supervisor; `steps` are the lines of its start so far."""
    processes = [child_document(child) for child in children]
    streams: dict[str, int] = {}
    letters: dict[str, int] = {}
    for child in children:
        streams.update(child.health.get("streams", {}))
        letters.update(child.health.get("dead_letters", {}))
        letters.update(child.health.get("raw_dead_letters", {}))
    return {
        "schema_version": SCHEMA_VERSION,
        "version": build().version,
        "commit": build().commit,
        "built_at": build().built_at,
        "time": round(time.time(), 3),
        "pid": os.getpid(),
        "state": state,
        "roles": list(roles),
        "uptime_seconds": round(trio.current_time() - began, 1),
        "run_dir": run_dir,
        "healthy": all(
            child.is_ready and not process["trouble"]
            for child, process in zip(children, processes, strict=True)
        ),
        "processes": processes,
        "streams": streams,
        "dead_letters": letters,
        "steps": list(steps)[:MAX_STEPS],
    }


def resident_bytes(pid: int | None) -> int | None:
    """Return the memory a process holds, or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * MEMORY_PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def _age(child: ChildDriver) -> float | None:
    if child.state.phase is not Phase.READY:
        return None
    return round(trio.current_time() - child.state.since, 1)


def _exit(how: Exit | None) -> ExitStatus | None:
    if how is None:
        return None
    return {"code": how.code, "signal": how.signal, "reason": how.reason}


def _problems(health: HealthDocument) -> list[ProblemStatus]:
    problems: list[ProblemStatus] = []
    if text := health.get("trouble"):
        problems.append({"code": "unhealthy", "text": text})
    if text := health.get("degraded"):
        problems.append({"code": "degraded", "text": text})
    if text := health.get("problem"):
        problems.append({"code": "relays", "text": text})
    return problems


def finding_status(finding: FindingHealth) -> FindingStatus:
    """Return a finding as the status document has it."""
    return {
        "kind": finding["finding"],
        "subject": finding["subject"],
        "verdict": finding["verdict"],
        "title": finding["title"],
        "figure": finding["figure"],
        "remedy": finding["remedy"],
    }
