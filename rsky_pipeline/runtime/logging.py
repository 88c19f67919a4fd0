"""Log lines: one coloured line on a terminal, JSON otherwise.

Under systemd, JSON lines begin with a priority (`<6>`), which the journal strips.

Messages are fixed texts with values in `extra`, so that lines can be searched and counted:
`log.info("batch applied", extra={"rows": 5})`.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from rsky_pipeline.configuration.advice import complete
from rsky_pipeline.configuration.settings import LogFormat
from rsky_pipeline.runtime.errors import StoreError, WorkerError, printable

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}
_ROLE_COLOURS = {"ingester": "36", "backfiller": "35", "indexer": "34"}
MAX_VALUE = 500  # characters of one field; remote input must not flood the log
MAX_MESSAGE = 2_000  # characters of a message; ours are short, those of libraries may not be
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # syslog(3)


def get(name: str) -> logging.Logger:
    """Return the logger of a module; the name is `__name__`."""
    return logging.getLogger(name)


def configure(
    level: str,
    format: LogFormat = "auto",
    *,
    role: str = "",
    instance: int = 1,
    stream: TextIO | None = None,
) -> None:
    """Log to standard error, with the role in every line."""
    target = stream or sys.stderr
    terminal = target.isatty()
    as_text = format == "text" or (format == "auto" and terminal)
    colour = terminal and "NO_COLOR" not in os.environ
    handler = LogStream(target)
    handler.setFormatter(
        TextLines(role, instance, colour)
        if as_text
        else JsonLines(role, instance, priority=_is_journal(target))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Log lines of this level and above, of libraries only warnings."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    logging.getLogger("trio_websocket").setLevel(max(logging.WARNING, root.level))


class LogStream(logging.StreamHandler[TextIO]):
    """Writes lines; where the file system has no room for one, it is lost, and work goes on."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.trouble = ""  # why the last line could not be written

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.trouble = ""
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of the library
        """Note a failure of the stream, on which nothing can be said about it."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.trouble = error.strerror or type(error).__name__
        else:
            super().handleError(record)


def log_trouble() -> str:
    """Return why the last line could not be written; empty while the log is written."""
    found = (each.trouble for each in logging.getLogger().handlers if isinstance(each, LogStream))
    return next(filter(None, found), "")


class TextLines(logging.Formatter):
    """`12:00:01 indexer-1 INFO batch applied rows=5`."""

    def __init__(self, role: str, instance: int, colour: bool) -> None:
        super().__init__()
        self._who = f"{role}-{instance}" if role else ""
        self._role = role
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Render one line."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = self._paint(f"{record.levelname:<7}", _COLOURS.get(record.levelname, "0"))
        who = self._paint(f"{self._who:<12}", _ROLE_COLOURS.get(self._role, "0"))
        fields = " ".join(f"{key}={_shown(value)}" for key, value in _fields(record).items())
        message = printable(complete(record.getMessage()[:MAX_MESSAGE]))
        line = " ".join(part for part in (clock, who, level, message, fields) if part)
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line = "\n".join((line, *map(printable, trace.split("\n"))))
        return line

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text.strip() else text


class JsonLines(logging.Formatter):
    """One JSON object a line: ts, level, role, instance, logger, msg, then the fields."""

    def __init__(self, role: str, instance: int, *, priority: bool = False) -> None:
        super().__init__()
        self._base: dict[str, Any] = {"role": role, "instance": instance} if role else {}
        self._priority = priority

    def format(self, record: logging.LogRecord) -> str:
        """Render one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        body: dict[str, Any] = {
            "ts": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **self._base,
            "logger": record.name,
            "msg": complete(record.getMessage()[:MAX_MESSAGE]),
            **{key: _limited(value) for key, value in _fields(record).items()},
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        prefix = f"<{_PRIORITIES.get(record.levelname, 6)}>" if self._priority else ""
        return prefix + json.dumps(body, default=str)


class ThrottledLog:
    """A logger for lines that a flood of input would repeat: one line per key and interval.

    The field `suppressed` counts the lines dropped since the last one. Keep one instance per
    component: `self._log = ThrottledLog(_log)`, then
    `self._log.warning("frame refused", key=reason, host=host)`.
    """

    def __init__(
        self,
        logger: logging.Logger,
        interval_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._interval = interval_seconds
        self._clock = clock
        self._last: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def info(self, message: str, *, key: str = "", **fields: Any) -> None:
        """Log for information; see `log`."""
        self.log(logging.INFO, message, key=key, **fields)

    def warning(self, message: str, *, key: str = "", **fields: Any) -> None:
        """Log a warning; see `log`."""
        self.log(logging.WARNING, message, key=key, **fields)

    def error(self, message: str, *, key: str = "", **fields: Any) -> None:
        """Log an error; see `log`."""
        self.log(logging.ERROR, message, key=key, **fields)

    def log(
        self,
        level: int,
        message: str,
        *,
        key: str = "",
        error: BaseException | str | None = None,
        **fields: Any,
    ) -> None:
        """Log a fixed message with fields, unless the same message and key were logged recently.

        Keys must come from a small fixed set, such as reasons; never from remote input. `error`
        adds its text as a field, and a traceback unless it is a StoreError or WorkerError.
        """
        line, now = f"{message} {key}" if key else message, self._clock()
        last = self._last.get(line)
        if last is not None and now - last < self._interval:
            self._suppressed[line] = self._suppressed.get(line, 0) + 1
            return
        self._last[line] = now
        if suppressed := self._suppressed.pop(line, 0):
            fields["suppressed"] = suppressed
        if error is not None:
            fields["error"] = error if isinstance(error, str) else _message(error)
        trace = error if isinstance(error, BaseException) else None
        if isinstance(trace, StoreError | WorkerError):
            trace = None
        self._logger.log(level, message, extra=fields, exc_info=trace)


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - of a library whose message is broken
        return type(error).__name__


def _is_journal(target: TextIO) -> bool:
    """Return whether a stream is the journal: systemd names its device and inode (systemd.exec)."""
    try:
        status = os.fstat(target.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: complete(value) if isinstance(value, str) else value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }


def _limited(value: Any) -> Any:
    return value[:MAX_VALUE] if isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = str(_limited(value))
    # Quoted where a space or a control character could pass for something else.
    return text if text.isprintable() and " " not in text and text else json.dumps(text)
