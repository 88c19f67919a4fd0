"""Roles under our own supervisors, asked by their control sockets."""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import start_order
from rsky_pipeline.embedded import locations
from rsky_pipeline.operations.ordered.movement import Launch, RoleMove, Tell
from rsky_pipeline.runtime.errors import WorkerError, printable
from rsky_pipeline.runtime.log_file import open_private
from rsky_pipeline.runtime.program import clean_environment, started_program
from rsky_pipeline.supervisor import client
from rsky_pipeline.supervisor.errors import (
    CANNOT_START,
    NoAnswerError,
    NotRunningError,
    RequestRefusedError,
)
from rsky_pipeline.supervisor.role_settings import settings_digests

POLL_SECONDS = 0.2
_OURS = re.compile(r"(?:<[0-9]>)?\{|[0-9]{2}:[0-9]{2}:[0-9]{2} ")  # lines of both log formats
_FATAL = "Fatal Python error: "
UP = "running"


class Supervised:
    """The supervisors of one run directory."""

    name = "supervisor"

    def __init__(self, settings: Settings) -> None:
        """`settings` went through `resolve_directories`."""
        self._run_dir = locations.run_directory(settings)
        self._settings = settings

    def running(self) -> tuple[str, ...]:
        """Return the roles with a process that is wanted or alive."""
        roles = {
            child["role"]
            for each in self.supervisors()
            for child in each.status["processes"]
            if child["kind"] == "worker" and (child["pid"] or child["wanted"])
        }
        return start_order(roles)

    def supervised(self) -> frozenset[str]:
        """Return the roles that a supervisor is there for, whether they run or not."""
        return frozenset(role for each in self.supervisors() for role in each.roles)

    def stop(self, role: str, deadline: float | None, tell: Tell) -> RoleMove:
        """Stop a role; its supervisor and the embedded stores stay."""
        arguments = {"roles": [role], "timeout": deadline, "stay": True}
        moved = self._ask("stop", role, tell, **arguments)
        cursors = client.reported_cursors(self.supervisors(), role)
        return RoleMove(moved.lines, moved.forced, moved.ok, cursors)

    def start(self, role: str, tell: Tell) -> RoleMove:
        """Start a role that was stopped under a supervisor that still runs."""
        return self._ask("start", role, tell, roles=[role])

    def reload(self, roles: Sequence[str], tell: Tell) -> None:
        """Have supervisors read the configuration for the next workers of roles.

        Raises WorkerError where one cannot apply it; nothing is changed there.
        """
        digests = settings_digests(self._settings)
        for each in self.supervisors():
            own = [role for role in roles if role in each.roles]
            if not own:
                continue
            try:
                answer = client.ask(each.path, "reload", roles=own, digests=digests)
            except RequestRefusedError as error:
                if "unknown command" not in str(error):
                    raise
                tell("the supervisor is of an older release, and keeps the settings of its start")
                continue
            for role, names in answer["changed"].items():
                tell(f"{role}: new settings: {', '.join(names)}")
            if answer["different"]:
                tell(
                    f"the configuration of the supervisor (pid {each.status['pid']}) has another "
                    f"{', '.join(answer['different'])} than this command's: it was started with "
                    "other options or variables, which stay"
                )

    def restart(self, role: str, tell: Tell) -> RoleMove:
        """Replace the workers of a role one at a time."""
        return self._ask("restart", role, tell, roles=[role])

    def crash_loops(self, roles: Sequence[str]) -> list[str]:
        """Return a line for each worker of roles that ends again and again since its start."""
        try:
            return client.crash_loops(self.supervisors(), roles)
        except NoAnswerError:
            return []

    def close(self, tell: Tell, deadline: float | None = None) -> RoleMove:
        """Stop every supervisor and its embedded stores; after `deadline` seconds by force."""
        lines: list[str] = []
        forced = False

        def news(line: str) -> None:
            if not line.endswith("was not running"):  # roles that were stopped before
                lines.append(line)
                tell(line)

        for each in self.supervisors():
            answer = client.ask(
                each.path, "stop", on_step=news, wait_seconds=None, timeout=deadline
            )
            forced = forced or bool(answer.get("forced"))
            _wait_until_gone(int(each.status["pid"]))
        return RoleMove(tuple(lines), forced)

    def launches(self) -> list[Launch]:
        """Return how each supervisor was started, producers first. Raises WorkerError."""
        found = [_launch(each) for each in self.supervisors()]
        order = start_order()
        return sorted(found, key=lambda launch: min(order.index(role) for role in launch.roles))

    def launch(self, program: Sequence[str], launch: Launch, tell: Tell) -> RoleMove:
        """Start a supervisor in the background and wait until it runs.

        It lives in a session of its own and writes to `data_dir/supervisor.log`. Raises
        WorkerError.
        """
        log = locations.supervisor_log(self._settings)
        locations.make_private(log.parent)
        try:
            descriptor = open_private(log)
        except OSError as error:
            raise WorkerError(f"{log} cannot be written: {error.strerror}") from error
        command = [*program, *launch.arguments]
        tell(f"starting {', '.join(launch.roles)}; log: {log}")
        with os.fdopen(descriptor, "ab") as stream:
            position = stream.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=launch.directory,
                env=clean_environment(os.environ),
                start_new_session=True,
            )
        try:
            return self._wait(process, log, position, launch, tell)
        except BaseException:
            _end(process)
            raise

    def _wait(
        self,
        process: "subprocess.Popen[bytes]",
        log: Path,
        position: int,
        launch: Launch,
        tell: Tell,
    ) -> RoleMove:
        limit = len(launch.roles) * self._settings.ready_timeout_seconds + 300
        deadline = time.monotonic() + limit
        told = 0
        while time.monotonic() < deadline:
            if process.poll() is not None:
                last = last_words(_written(log, position))
                raise WorkerError(f"the supervisor ended with code {process.returncode}: {last}")
            for each in self.supervisors():
                if each.status["pid"] != process.pid:
                    continue
                steps = each.status.get("steps", ())
                for step in steps[told:]:
                    tell(f"  {step}")
                told = len(steps)
                if each.status["state"] == UP:
                    late = client.not_ready([each])
                    line = f"{', '.join(launch.roles)} running (pid {process.pid})"
                    if late:
                        line = with_complaint("; ".join(late), _written(log, position))
                    tell(line)
                    return RoleMove((line,), ok=not late)
            time.sleep(POLL_SECONDS)
        raise WorkerError(f"the supervisor (pid {process.pid}) is not up after {limit:.0f} s")

    def _ask(self, command: str, role: str, tell: Tell, **arguments: Any) -> RoleMove:
        lines: list[str] = []
        forced, ok = False, True

        def news(line: str) -> None:
            lines.append(line)
            tell(line)

        for each in self.supervisors():
            if role not in each.roles:
                continue
            try:
                answer = client.ask(
                    each.path, command, on_step=news, wait_seconds=None, **arguments
                )
                forced = forced or bool(answer.get("forced"))
            except RequestRefusedError as error:
                news(str(error))
                ok = False
        return RoleMove(tuple(lines), forced, ok)

    def supervisors(self) -> list[client.Supervisor]:
        """Return the supervisors that answer; none is no error."""
        try:
            return client.find(self._run_dir)
        except NotRunningError:
            return []


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a supervisor that did not come up: in order, then at once."""
    limit = 60.0
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            limit = 10.0


def last_words(text: str) -> str:
    """Return why a supervisor ended, from its log: the reason that it gave, or its last lines.

    Its workers write to the same log; what they say while they are stopped is no reason.
    """
    lines = [each for each in text.splitlines() if each.strip()]
    messages = [_message(each) for each in lines]
    reasons = [each for each in messages if CANNOT_START in each]
    if reasons:
        return reasons[-1].partition(CANNOT_START)[2]
    fatal = [each for each in messages if each.startswith(_FATAL)]
    if fatal:  # the stacks of all threads follow
        return fatal[-1]
    return " | ".join(messages[-3:])


def last_complaint(text: str) -> str:
    """Return what a worker printed when it ended for a reason that it could not report.

    That is the last line which is none of our log, such as the end of a traceback.
    """
    plain = [each for each in text.splitlines() if each.strip() and not _OURS.match(each)]
    return printable(plain[-1].strip()[:500]) if plain else ""


def with_complaint(line: str, log: str) -> str:
    """Return a line about a worker with what it printed last, unless the line has it."""
    complaint = last_complaint(log)
    return line if not complaint or complaint in line else f"{line}; {complaint}"


def _written(log: Path, position: int) -> str:
    """Return the end of what a log has behind a position."""
    with log.open("rb") as text:
        text.seek(position)
        return text.read()[-64_000:].decode(errors="replace")


def _message(line: str) -> str:
    """Return the message of a line of JSON with its reason, and any other line as it is."""
    try:
        document = json.loads(line)
        message = str(document["msg"])
    except (ValueError, KeyError, TypeError):
        return line.strip()
    reasons = [str(document[name]) for name in ("reason", "error") if document.get(name)]
    return ": ".join([message, *reasons])


def _wait_until_gone(pid: int) -> None:
    """The supervisor answers before it has let go of its locks."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(30_000)
    finally:
        os.close(descriptor)


def _launch(supervisor: client.Supervisor) -> Launch:
    """Read how a supervisor was started from the kernel. Raises WorkerError."""
    pid = supervisor.status["pid"]
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        directory = Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError as error:
        raise WorkerError(
            f"cannot see how the supervisor (pid {pid}) was started: {error.strerror}; "
            "run this as its account or as root"
        ) from error
    words = raw.decode(errors="surrogateescape").rstrip("\0").split("\0")
    if "run" not in words:
        raise WorkerError(f"the supervisor (pid {pid}) was not started with `rsky-pipeline run`")
    at = words.index("run")
    program = started_program(words[:at], directory)
    return Launch(program, tuple(words[at:]), supervisor.roles, directory)
