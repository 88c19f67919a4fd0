"""The client of the control sockets. Blocking: `status` needs no event loop."""

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.runtime.errors import UNAVAILABLE
from rsky_pipeline.runtime.health_document import CursorHealth, read_health
from rsky_pipeline.supervisor.errors import NoAnswerError, NotRunningError, RequestRefusedError
from rsky_pipeline.supervisor.machine import Exit
from rsky_pipeline.supervisor.protocol import MAX_ANSWER_BYTES, VERSION, encode, sockets

CONNECT_SECONDS = 5.0
OFTEN = 2  # unplanned ends of one worker that are no accident any more


@dataclass(frozen=True, slots=True)
class Supervisor:
    """A supervisor that listens, and its status document."""

    path: Path
    status: dict[str, Any]

    @property
    def roles(self) -> tuple[str, ...]:
        """Return its roles."""
        return tuple(self.status["roles"])


def ask(
    path: Path,
    command: str,
    *,
    on_step: Callable[[str], None] = lambda _: None,
    wait_seconds: float | None = CONNECT_SECONDS,
    **arguments: Any,
) -> dict[str, Any]:
    """Send a request; call `on_step` for each step; return the closing object.

    `wait_seconds` bounds the time between two lines; None waits for ever. Raises NotRunningError if
    no process listens, NoAnswerError, or RequestRefusedError.
    """
    request = encode({"command": command, "version": VERSION, **arguments})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _connect(connection, path)
        connection.settimeout(wait_seconds)
        try:
            connection.sendall(request)
            for message in _lines(connection):
                if "step" in message:
                    on_step(str(message["step"]))
                elif message.get("ok") is True:
                    return message
                else:
                    raise RequestRefusedError(str(message.get("error", "the supervisor refused")))
        except OSError as error:
            raise NoAnswerError(f"the supervisor behind {path} does not answer: {error}") from error
    raise NoAnswerError(f"the supervisor behind {path} broke off")


def find(run_dir: Path) -> list[Supervisor]:
    """Return every supervisor that listens in a run directory.

    Raises NotRunningError when there is none, NoAnswerError when one does not answer.
    """
    found = []
    for path in sockets(run_dir):
        try:
            found.append(Supervisor(path, ask(path, "status")["status"]))
        except NotRunningError:
            continue  # left behind by a supervisor that was killed
    if not found:
        raise NotRunningError(f"no pipeline is running in {run_dir}; to do: `rsky-pipeline start`")
    return found


def not_ready(supervisors: Iterable[Supervisor], roles: Sequence[str] = ROLE_NAMES) -> list[str]:
    """Return a line for each process of these roles that is not ready: its state, its last exit."""
    return [
        _described(child)
        for each in supervisors
        for child in each.status["processes"]
        if child["state"] != "ready" and (child["kind"] == "store" or child["role"] in roles)
    ]


def crash_loops(supervisors: Iterable[Supervisor], roles: Sequence[str]) -> list[str]:
    """Return a line for each worker of roles that ends again and again, or for good.

    Also one that is between two of its ends: it ended OFTEN times since its supervisor started.
    """
    workers = [child for each in supervisors for child in each.status["processes"]
               if child["kind"] == "worker" and child["role"] in roles]  # fmt: skip
    return [
        *(_described(each) for each in workers if each["state"] in ("crashloop", "failed")),
        *(f"{each['name']} ended {each['restarts']} times: {Exit(**each['last_exit']).describe()}"
          for each in workers
          if each["state"] not in ("crashloop", "failed") and each["restarts"] >= OFTEN
          and _is_to_blame(each["last_exit"])),
    ]  # fmt: skip


def _is_to_blame(last_exit: dict[str, Any] | None) -> bool:
    """Return whether a worker ended because of its work, and not of a store that was away."""
    how = Exit(**last_exit) if last_exit else None
    return how is not None and not how.blameless and how.code != UNAVAILABLE


def _described(child: dict[str, Any]) -> str:
    how = child["last_exit"]
    if how is None:
        return f"{child['name']} is {child['state']}"
    return f"{child['name']} is {child['state']}: {Exit(**how).describe()}"


def reported_cursors(supervisors: Iterable[Supervisor], role: str) -> tuple[CursorHealth, ...]:
    """Return the cursors that the workers of a role last reported, also those that ended since."""
    return tuple(
        cursor
        for each in supervisors
        for child in each.status["processes"]
        if child["role"] == role
        for cursor in read_health(child["health"]).get("cursors", ())
    )


def stop_everything(
    supervisors: list[Supervisor], *, timeout: float | None, on_step: Callable[[str], None]
) -> bool:
    """Stop all supervisors, each its own roles consumers first; return whether one had to kill."""
    answers = [
        ask(each.path, "stop", on_step=on_step, wait_seconds=None, timeout=timeout)
        for each in supervisors
    ]
    return any(answer.get("forced") for answer in answers)


def _connect(connection: socket.socket, path: Path) -> None:
    connection.settimeout(CONNECT_SECONDS)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunningError(f"no supervisor listens on {path}") from error
    except OSError as error:
        raise NoAnswerError(f"cannot connect to {path}: {error.strerror or error}") from error


def _lines(connection: socket.socket) -> Iterator[dict[str, Any]]:
    rest = b""
    while chunk := connection.recv(65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_ANSWER_BYTES:
            raise NoAnswerError("the supervisor's answer is too long")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError as error:
                raise NoAnswerError("the supervisor's answer is not JSON") from error
            if not isinstance(message, dict):
                raise NoAnswerError("the supervisor's answer is not an object")
            yield message
