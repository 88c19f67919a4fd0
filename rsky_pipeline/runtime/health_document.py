"""The health document of a worker as typed values: `/healthz`, the event pipe, `status --json`.

`Health.document` writes it, and supervisors and commands read it back with `read_health`. A reader
takes documents of other versions too (`deploy` stops the workers of the version before): a field
that is missing or has another form reads as unknown, and fields nobody here reads stay in
`document`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from rsky_pipeline.configuration.endpoints import HostKey

# Before `cursors` existed, a cursor was the value of a key `cursor[STREAM:HOST]`.
_OLD_CURSOR = "cursor["


@dataclass(frozen=True, slots=True)
class CursorHealth:
    """The cursor of a host as its writer last stored it; `seq` is None before the first event."""

    stream: str
    host: HostKey
    seq: int | None


@dataclass(frozen=True, slots=True)
class ListingHealth:
    """Progress of one listing of a host; `problem` is the reason why it is stopped, or None."""

    host: HostKey
    source: str  # listRepos, or a collection
    summary: str
    problem: str | None


Detail = str | int | float | bool | None | tuple[CursorHealth, ...] | tuple[ListingHealth, ...]


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """The last health document of a worker. Unknown values are None or empty."""

    state: str | None = None
    trouble: str | None = None  # the reason why it is unhealthy
    degraded: str | None = None  # some of its relays are unreachable
    problem: str | None = None  # a fault of a relay
    uptime_seconds: float | None = None
    rate: float | None = None  # events per second
    lag: int | None = None  # entries not yet read, of a consumer
    lag_seconds: float | None = None  # age of the newest event, of the ingester
    pending: int | None = None  # entries held when it stopped
    findings: tuple[str, ...] = ()  # `KIND` or `KIND SUBJECT`
    failing: tuple[str, ...] = ()  # those with the verdict "fail"
    streams: Mapping[str, int] = field(default_factory=dict)
    cursors: tuple[CursorHealth, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complaint(self) -> str | None:
        """The most severe of trouble, degraded and problem; None for a healthy worker."""
        return self.trouble or self.degraded or self.problem


def encoded(details: Mapping[str, object]) -> dict[str, Any]:
    """Return details of a role as JSON values."""
    return {name: _encoded(value) for name, value in details.items()}


def read_health(document: object) -> WorkerHealth:
    """Return a health document as typed values."""
    if not isinstance(document, Mapping):
        return WorkerHealth()
    streams = document.get("streams")
    return WorkerHealth(
        state=_text(document, "state"),
        trouble=_text(document, "trouble"),
        degraded=_text(document, "degraded"),
        problem=_text(document, "problem"),
        uptime_seconds=_number(document, "uptime_seconds"),
        rate=_number(document, "rate"),
        lag=_whole(document.get("lag")),
        lag_seconds=_number(document, "lag_seconds"),
        pending=_whole(document.get("pending")),
        findings=tuple(str(each) for each in _list(document, "findings")),
        failing=tuple(str(each) for each in _list(document, "failing")),
        streams=streams if isinstance(streams, Mapping) else {},
        cursors=tuple(_cursors(document)),
        document=document,
    )


def _cursors(document: Mapping[str, Any]) -> Iterator[CursorHealth]:
    for each in _list(document, "cursors"):
        if isinstance(each, Mapping) and "stream" in each and "host" in each:
            host = HostKey(str(each["host"]))
            yield CursorHealth(str(each["stream"]), host, _whole(each.get("seq")))
    for name, value in document.items():
        if name.startswith(_OLD_CURSOR):
            stream, _, key = name.removeprefix(_OLD_CURSOR).removesuffix("]").partition(":")
            yield CursorHealth(stream, HostKey(key), _whole(value))


def _encoded(value: object) -> object:
    if isinstance(value, tuple):
        return [_encoded(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    return None if value is None else str(value)


def _number(document: Mapping[str, Any], name: str) -> float | None:
    value = document.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else []
