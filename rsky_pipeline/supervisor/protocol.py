"""The control protocol: one request a connection, answered by lines of JSON.

A request is one JSON object on one line: `{"command": ..., "version": 1, ...}`. The answer is any
number of `{"step": TEXT}` lines and then one object with `ok`, which ends it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.settings import LOG_LEVELS
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.embedded.locations import socket_directory

VERSION = 1
MAX_REQUEST_BYTES = 64_000
MAX_ANSWER_BYTES = 1_000_000
REQUEST_TIMEOUT_SECONDS = 5.0
PREFIX = "control-"
SUFFIX = ".sock"


class BadRequestError(ValueError):
    """A request that is not understood; the message goes back to the client."""


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """A checked request. `timeout` is the longest a stop may take before it is forced, seconds.

    `stay` keeps the supervisor and its embedded stores when no role is left.
    """

    command: str
    roles: tuple[str, ...] = ()
    timeout: float | None = None
    stay: bool = False
    level: str = ""  # of `log_level`
    supervisor: bool = False  # `log_level` of the supervisor itself, too
    digests: Mapping[str, str] = field(default_factory=dict)  # `reload`: the command's settings


COMMANDS = ("status", "start", "stop", "restart", "reload", "log_level")


def socket_name(roles: tuple[str, ...]) -> str:
    """Return the name of the control socket of a supervisor of these roles."""
    names = sorted(roles)
    return f"{PREFIX}{'all' if names == sorted(ROLE_NAMES) else '+'.join(names)}{SUFFIX}"


def socket_path(run_dir: Path, roles: tuple[str, ...]) -> Path:
    """Return where the control socket of a supervisor of these roles is."""
    return socket_directory(run_dir) / socket_name(roles)


def sockets(run_dir: Path) -> list[Path]:
    """Return every control socket in a run directory, also those that nobody serves any more."""
    return sorted(socket_directory(run_dir).glob(f"{PREFIX}*{SUFFIX}"))


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as one line."""
    return json.dumps(message, default=str, separators=(",", ":")).encode() + b"\n"


def parse_request(line: bytes) -> ControlRequest:
    """Check a request. Raises BadRequestError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("the request is not JSON") from error
    if not isinstance(message, dict):
        raise BadRequestError("the request is not an object")
    if message.get("version") != VERSION:
        raise BadRequestError(
            f"protocol version {message.get('version')!r} is not understood, only {VERSION}; "
            "the command and the supervisor come from different releases"
        )
    command, roles, timeout = (message.get(name) for name in ("command", "roles", "timeout"))
    if command not in COMMANDS:
        raise BadRequestError(
            f"unknown command {str(command)[:50]!r}; known: {', '.join(COMMANDS)}"
        )
    roles = [] if roles is None else roles
    if not isinstance(roles, list) or not all(role in ROLE_NAMES for role in roles):
        raise BadRequestError(f"roles must be a list of {', '.join(ROLE_NAMES)}")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0
    ):
        raise BadRequestError("timeout must be a number of seconds")
    stay = message.get("stay", False)
    if not isinstance(stay, bool):
        raise BadRequestError("stay must be true or false")
    level, digests = message.get("level", ""), message.get("digests", {})
    if command == "log_level" and level not in LOG_LEVELS:
        raise BadRequestError(f"level must be one of {', '.join(LOG_LEVELS)}")
    if not isinstance(digests, dict):
        raise BadRequestError("digests must be an object")
    own = message.get("supervisor") is True
    return ControlRequest(str(command), tuple(roles), timeout, stay, str(level), own, digests)
