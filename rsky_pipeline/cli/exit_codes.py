"""Every exit code of the program; docs/configuration.md and `--help` are checked against it."""

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """Why the program ended; `MEANINGS` has the text for operators."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    UNREACHABLE = 4
    FORCED = 5
    DIFFERENCES = 6
    UNAVAILABLE = 69
    ALREADY_RUNNING = 75
    NO_PERMISSION = 77
    CONFIGURATION = 78


MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.OK: "done as asked",
    ExitCode.FAILED: "an unexpected error, or a degraded result",
    ExitCode.USAGE: "a wrong option, argument or setting",
    ExitCode.NOT_RUNNING: "nothing is running",
    ExitCode.UNREACHABLE: "something is running and does not answer",
    ExitCode.FORCED: "stopped, but a process had to be killed",
    ExitCode.DIFFERENCES: "a comparison or verification found differences",
    ExitCode.UNAVAILABLE: "Redis, PostgreSQL or a host cannot be reached",
    ExitCode.ALREADY_RUNNING: "already running",
    ExitCode.NO_PERMISSION: "no permission",
    ExitCode.CONFIGURATION: "a worker's configuration is wrong; not retried",
}
