"""Every exit code of the program; docs/configuration.md and `--help` are checked against it."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Why the program ended."""

    OK = 0
    FAILED = 1  # an unexpected error, or a degraded result
    USAGE = 2  # a wrong option, argument or setting
    NOT_RUNNING = 3
    UNREACHABLE = 4  # something is running but does not answer
    FORCED = 5  # stopped, but a process had to be killed
    DIFFERENCES = 6  # a comparison or verification found differences
    UNAVAILABLE = 69  # Redis, PostgreSQL or a host cannot be reached
    ALREADY_RUNNING = 75
    NO_PERMISSION = 77
    CONFIGURATION = 78  # a worker's configuration is wrong: final, not retried
