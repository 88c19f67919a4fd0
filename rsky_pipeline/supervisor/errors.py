"""Errors of starting a supervisor, and of requests to one."""

from rsky_pipeline.runtime.errors import WorkerError

# How the log gives the reason of a start that fails; `start` looks for it.
CANNOT_START = "cannot start: "
NOT_RUNNING = 3
UNREACHABLE = 4
ALREADY_RUNNING = 75


class AlreadyRunningError(WorkerError):
    """Another process runs the same roles or stores on these directories."""

    exit_code = ALREADY_RUNNING


class StartFailedError(WorkerError):
    """A required child, such as an embedded store, did not start."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotRunningError(WorkerError):
    """No supervisor listens in the run directory."""

    exit_code = NOT_RUNNING


class NoAnswerError(WorkerError):
    """A supervisor listens, but gives no answer or an invalid one."""

    exit_code = UNREACHABLE


class RequestRefusedError(WorkerError):
    """The supervisor refused the request."""
