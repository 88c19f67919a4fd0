"""Errors that end a worker with an exit code of their own; the supervisor acts on the code."""

import re

UNEXPECTED = 1
FORCED = 5
UNAVAILABLE = 69
NO_PERMISSION = 77
CONFIGURATION = 78
FINAL_CODES = frozenset({NO_PERMISSION, CONFIGURATION})  # a restart cannot help


class WorkerError(Exception):
    """Ends the worker; the message names the failure, its place and the remedy."""

    exit_code = UNEXPECTED


class StoreError(Exception):
    """A call to Redis or PostgreSQL failed; base of the errors of `streams` and `database`.

    `runtime.link` reacts by the first two attributes; `finding` is the rule of health that the
    worker shows while the failure lasts, with a remedy of its own (`health/rules.py`).
    """

    reconnect = True  # the connection must not be used again
    retryable = True  # the same call can succeed later, by itself or after an operator acts
    finding = "no_progress"


class UnavailableError(WorkerError):
    """A required store or host is unreachable; retry later."""

    exit_code = UNAVAILABLE


class PermissionDeniedError(WorkerError):
    """The operating system or a store denies access; final until an operator acts."""

    exit_code = NO_PERMISSION


class SettingError(WorkerError):
    """A setting is unusable; final until an operator changes it."""

    exit_code = CONFIGURATION


# Control characters (escape sequences begin with one), line separators, and the marks that change
# the direction of writing, with which a text can look like another one.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Return a text in one line with everything that a terminal would obey as \xNN or \uNNNN.

    Names of hosts, error messages, handles and records come from strangers. A message that quotes
    one is made printable where it is made, and everything that is printed or logged once more.
    """
    return _UNPRINTABLE.sub(_escape, str(text))


def escaped_json(text: str) -> str:
    """Return a line of JSON with the same characters written as JSON writes them."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: "re.Match[str]") -> str:
    code = ord(found[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )


def described(error: BaseException) -> str:
    """Return kind and message of an exception, printable; a library's message may itself raise."""
    kind = type(error).__name__
    try:
        return printable(f"{kind}: {error}")
    except Exception:  # noqa: BLE001
        return kind


def exit_code_of(error: BaseException) -> tuple[int, str]:
    """Return exit code and one-line reason of the most severe error of an exception group.

    A final code takes precedence: the error would recur after a restart.
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
