"""Why a supervisor does not run, or cannot be asked."""

from rsky_pipeline.runtime.errors import WorkerError

NOT_RUNNING = 3
UNREACHABLE = 4
ALREADY_RUNNING = 75


class AlreadyRunningError(WorkerError):
    """Another process does this job on these directories."""

    exit_code = ALREADY_RUNNING


class StartFailedError(WorkerError):
    """A child that everything depends on did not come up."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotRunningError(WorkerError):
    """No supervisor listens in the run directory."""

    exit_code = NOT_RUNNING


class NoAnswerError(WorkerError):
    """A supervisor listens and does not answer, or not sensibly."""

    exit_code = UNREACHABLE


class RequestRefusedError(WorkerError):
    """The supervisor understood the request and will not do it."""
