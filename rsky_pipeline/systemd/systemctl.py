"""Asking and telling the system's service manager, by its own commands."""

import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.configuration.topology import start_order
from rsky_pipeline.runtime.errors import UnavailableError, WorkerError

TARGET = "rsky-pipeline.target"
RUNNING = Path("/run/systemd/system")  # exists where systemd is the init, see sd_booted(3)
ASK_SECONDS = 30.0
_FACTS = (
    *("Id", "LoadState", "ActiveState", "SubState", "Result", "MainPID"),
    *("ExecStart", "Environment", "InvocationID", "NRestarts", "ExecMainCode", "ExecMainStatus"),
)
_EXITED, _KILLED = "1", ("2", "3")  # ExecMainCode, which is si_code of waitid(2)


@dataclass(frozen=True, slots=True)
class Unit:
    """The state of a unit; program and configuration are the files that its ExecStart names."""

    name: str
    load: str  # "loaded", "not-found"
    active: str  # "active", "inactive", "failed", "activating", "deactivating"
    sub: str
    result: str  # "success", "timeout", "exit-code", "signal", "watchdog"
    pid: int | None
    program: Path | None
    configuration: Path | None = None
    unpacks_to: Path | None = None  # the folder where its program file unpacks
    restarts: int = 0  # by systemd itself, since somebody started it
    exit_code: int | None = None  # of its last process that ended
    signal: int | None = None  # that killed its last process
    invocation: str = ""  # the id of its last start

    @property
    def is_up(self) -> bool:
        """Whether a process of it may run."""
        return self.active not in ("inactive", "failed")

    @property
    def end(self) -> str:
        """How its last process ended, empty where none has."""
        if self.signal is not None:
            return f"killed by {signal.Signals(self.signal).name}"
        return "" if self.exit_code is None else f"exit code {self.exit_code}"


class Systemd:
    """Talks to systemctl. Every method blocks; they raise UnavailableError or WorkerError."""

    def __init__(self, program: str = "systemctl") -> None:
        self._program = program

    def units(self, role: str) -> list[Unit]:
        """Return the loaded units of a role: the main one, then further workers."""
        main = f"rsky-{role}.service"
        listed = self._run(
            *("list-units", "--all", "--plain", "--no-legend", "--type=service"),
            f"rsky-{role}@*.service",
        )
        further = [line.split()[0] for line in listed.splitlines() if line.strip()]
        return [
            unit for name in (main, *sorted(further)) if (unit := self.show(name)).load == "loaded"
        ]

    def show(self, name: str) -> Unit:
        """Return the state of a unit."""
        text = self._run("show", f"--property={','.join(_FACTS)}", name)
        facts = dict(line.partition("=")[::2] for line in text.splitlines())
        pid = facts.get("MainPID", "0")
        how, status = facts.get("ExecMainCode"), int(facts.get("ExecMainStatus") or 0)
        return Unit(
            name=name,
            load=facts.get("LoadState", "not-found"),
            active=facts.get("ActiveState", "inactive"),
            sub=facts.get("SubState", ""),
            result=facts.get("Result", ""),
            pid=int(pid) if pid.isdigit() and pid != "0" else None,
            program=_program(facts.get("ExecStart", "")),
            configuration=_configuration(facts.get("ExecStart", "")),
            unpacks_to=_unpacks_to(facts.get("Environment", "")),
            restarts=int(facts.get("NRestarts") or 0),
            exit_code=status if how == _EXITED else None,
            signal=status if how in _KILLED else None,
            invocation=facts.get("InvocationID", ""),
        )

    def start(self, names: Sequence[str]) -> None:
        """Start units and wait until each is ready."""
        self._begin("start", names)

    def stop(self, names: Sequence[str]) -> None:
        """Stop units and wait until each is gone."""
        self._run("stop", *names, seconds=None)

    def restart(self, names: Sequence[str]) -> None:
        """Restart units and wait until each is ready."""
        self._begin("restart", names)

    def _begin(self, verb: str, names: Sequence[str]) -> None:
        """Start or restart units, past their start limit.

        The limit is for crash loops, not for starts that somebody asks for: ten restarts in five
        minutes of ordinary work would leave units that cannot be started, and so would the crashes
        of a version that is rolled back. A unit that systemd gave up keeps the result of its last
        crash, so the limit is lifted without a look.
        """
        with suppress(WorkerError):  # a unit that is not loaded has no limit
            self._run("reset-failed", *names)
        self._run(verb, *names, seconds=None)

    def kill(self, names: Sequence[str]) -> None:
        """Send SIGKILL to every process of units."""
        self._run("kill", "--signal=SIGKILL", *names)

    def last_lines(self, unit: Unit, count: int = 200) -> str:
        """Return the end of what a unit's processes logged since its last start.

        Empty where the journal is not readable. Without what systemd says of the unit.
        """
        command = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={count}"]
        if unit.invocation:
            command.append(f"_SYSTEMD_INVOCATION_ID={unit.invocation}")
        try:
            result = subprocess.run(
                [*command, f"_SYSTEMD_UNIT={unit.name}"], capture_output=True, text=True,
                timeout=ASK_SECONDS, errors="replace", check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return result.stdout

    def reload(self) -> None:
        """Have systemd read its unit files again."""
        self._run("daemon-reload")

    def _run(self, *arguments: str, seconds: float | None = ASK_SECONDS) -> str:
        command = [self._program, "--no-pager", "--no-ask-password", *arguments]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
        except FileNotFoundError as error:
            raise UnavailableError(
                f"{self._program} is not there: is this a systemd host?"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{' '.join(command)} did not end in {seconds:.0f} s") from error
        if result.returncode and arguments[0] not in ("show", "list-units"):
            words = " ".join((result.stderr or result.stdout).split())
            raise WorkerError(f"systemctl {' '.join(arguments)}: {words}")
        return result.stdout


def is_running() -> bool:
    """Return whether systemd manages this host."""
    return RUNNING.is_dir()


def installed(manager: Systemd) -> dict[str, list[Unit]]:
    """Return the units by role, in the order of the data flow; roles without units are left out."""
    found = {role: manager.units(role) for role in start_order()}
    return {role: units for role, units in found.items() if units}


def _program(exec_start: str) -> Path | None:
    """Return the file of `{ path=/usr/local/bin/x ; argv[]=... }`."""
    _, _, rest = exec_start.partition("path=")
    name = rest.partition(" ;")[0].strip()
    return Path(name) if name else None


def _configuration(exec_start: str) -> Path | None:
    """Return the file behind `--config` of `{ path=... ; argv[]=/x run --config FILE ; ... }`."""
    _, _, rest = exec_start.partition("argv[]=")
    words = rest.partition(" ;")[0].replace("--config=", "--config ").split()
    return Path(words[words.index("--config") + 1]) if "--config" in words[:-1] else None


def _unpacks_to(environment: str) -> Path | None:
    """Return SHIV_ROOT of a unit's environment, as `systemctl show` prints it."""
    pairs = (word.partition("=") for word in shlex.split(environment))
    return next((Path(value) for name, _, value in pairs if name == "SHIV_ROOT"), None)
