"""Errors that end a worker with an exit code of their own; the supervisor acts on the code."""

UNEXPECTED = 1
FORCED = 5
UNAVAILABLE = 69
NO_PERMISSION = 77
CONFIGURATION = 78
FINAL_CODES = frozenset({NO_PERMISSION, CONFIGURATION})  # trying again cannot help


class WorkerError(Exception):
    """Ends the worker; the message is for people: what, where, what to do."""

    exit_code = UNEXPECTED


class StoreError(Exception):
    """A store (Redis, PostgreSQL) did not do what it was asked; `streams` and `database` derive
    theirs from it. Two facts of each class say what a caller has to do (see `runtime.link`)."""

    reconnect = True  # the connection must not be used again
    retryable = True  # the same call can succeed later, by itself or when an operator acts


class UnavailableError(WorkerError):
    """A store or host is needed and cannot be reached; worth trying again later."""

    exit_code = UNAVAILABLE


class PermissionDeniedError(WorkerError):
    """The operating system or a store refuses us; final until a person changes it."""

    exit_code = NO_PERMISSION


class SettingError(WorkerError):
    """A setting cannot work; final until a person changes it."""

    exit_code = CONFIGURATION


def described(error: BaseException) -> str:
    """Return kind and message of an exception; a library's message may itself raise."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # noqa: BLE001
        return kind


def exit_code_of(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one-line reason of the gravest error in a (group of) errors.

    A final code wins over any other: restarting would meet it again.
    """
    leaves = list(_leaves(error))
    known = [leaf for leaf in leaves if isinstance(leaf, WorkerError)]
    for leaf in known:
        if leaf.exit_code in FINAL_CODES:
            return leaf.exit_code, str(leaf)
    if known and len(known) == len(leaves):
        return known[0].exit_code, str(known[0])
    worst = next((leaf for leaf in leaves if not isinstance(leaf, WorkerError)), error)
    return UNEXPECTED, described(worst)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
