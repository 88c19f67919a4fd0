"""Messages to systemd (sd_notify(3)): one datagram each, to the socket in NOTIFY_SOCKET."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from rsky_pipeline.runtime.errors import printable

SERVICE_VARIABLES = (
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
)


@dataclass(slots=True)
class Notifier:
    """Sends service states; a no-op without NOTIFY_SOCKET. Failures are counted, not raised."""

    address: str | None
    failures: int = field(default=0, init=False)

    def send(self, **states: str | int) -> bool:
        """Send `NAME=value` lines in one datagram; return whether it was delivered."""
        if self.address is None:
            return False
        message = "\n".join(f"{name}={_one_line(value)}" for name, value in states.items())
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as connection:
                connection.sendto(message.encode(), name)
        except OSError:
            self.failures += 1
            return False
        return True

    def ready(self, status: str) -> None:
        """Report that start-up is complete (READY=1)."""
        self.send(READY=1, STATUS=status)

    def status(self, status: str) -> None:
        """Set the status line of `systemctl status`."""
        self.send(STATUS=status)

    def watchdog(self) -> None:
        """Report that the main loop runs."""
        self.send(WATCHDOG=1)

    def stopping(self, status: str) -> None:
        """Report that an orderly stop has begun."""
        self.send(STOPPING=1, STATUS=status)

    def extend(self, seconds: float) -> None:
        """Extend the timeout of the current start or stop."""
        self.send(EXTEND_TIMEOUT_USEC=int(seconds * 1_000_000))


def from_environment(environment: Mapping[str, str] = os.environ) -> Notifier:
    """Return a notifier for NOTIFY_SOCKET, or a no-op one if it is unset."""
    address = environment.get("NOTIFY_SOCKET", "")
    return Notifier(address if address.startswith(("/", "@")) else None)


def strip(environment: MutableMapping[str, str]) -> None:
    """Remove systemd's variables, so that no child sends notifications in our name."""
    for name in SERVICE_VARIABLES:
        environment.pop(name, None)


def _one_line(value: str | int) -> str:
    return printable(str(value).replace("\n", " "))
