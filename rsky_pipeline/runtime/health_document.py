"""The health document of a worker: `/healthz`, the event pipe, `status --json`.

Roles and their harness write it by these definitions, and `read_health` checks received documents
against the same ones. A reader takes documents of other versions too (`deploy` stops the workers of
the version before): a field that is missing or has another form is unknown, and fields that only
another version defines are kept.
"""

from collections.abc import Mapping
from hashlib import sha256
from types import UnionType
from typing import Any, Literal, TypedDict, cast, get_args, get_origin, get_type_hints, is_typeddict

from rsky_pipeline.configuration.endpoints import HostKey
from rsky_pipeline.configuration.redaction import redacted
from rsky_pipeline.configuration.settings import Settings

# Before `cursors` existed, a cursor was the value of a key `cursor[STREAM:HOST]`.
_OLD_CURSOR = "cursor["


class CursorHealth(TypedDict):
    """The cursor of a host as its writer last stored it; `seq` is None before the first event."""

    stream: str
    host: HostKey
    seq: int | None


class ListingHealth(TypedDict):
    """Progress of one listing of a host; `problem` is the reason why it is stopped, or None."""

    host: HostKey
    source: str  # listRepos, or a collection
    summary: str
    problem: str | None


class FindingHealth(TypedDict):
    """A rule that the worker finds violated: what about, how badly, and what to do."""

    finding: str  # as in `rsky_finding`
    subject: str  # a stream, a host; empty for the worker itself
    verdict: Literal["fail", "warn"]
    title: str
    figure: str  # the value, or the reason, that was found
    remedy: str


class RoleHealth(TypedDict, total=False):
    """The fields that roles report, each role some of them."""

    rate: float  # events per second; repos, of the backfiller
    pending: int  # entries held
    lag: int | None  # entries not yet read, of a consumer
    stores: list[str]  # why Redis or PostgreSQL keep it waiting
    reports: list[FindingHealth]
    # Ingester
    lag_seconds: float | None  # age of the newest event
    degraded: str | None  # the reason why it cannot do all of its work
    problem: str | None  # faults of relays
    relays: int
    connected_relays: int
    connected_sockets: int  # of relays and labelers
    leading_relay: str | None
    held_up: bool  # by back-pressure
    raw_dead_letters: dict[str, int]  # frames that could not be used: firehose_raw, label_raw
    events_in_memory: int
    repos_listed: int
    listing_done: bool
    listing_holes: int
    blocks: int  # accounts, hosts and collections that it leaves out
    cursors: list[CursorHealth]
    listings: list[ListingHealth]
    # Indexer
    events: int  # since its start
    firehose_live_event_lag_seconds: float
    firehose_backfill_event_lag_seconds: float
    # Backfiller
    running: int
    waiting: int
    finished: int


class HealthDocument(RoleHealth, total=False):
    """The whole document: the fields of the role, and those of its harness."""

    role: str
    instance: int
    pid: int
    pipeline: str  # of all workers that read and write one Redis the same; see `pipeline_of`
    state: str
    trouble: str | None  # the reason why it is unhealthy
    stalled: str | None  # the reason why its supervisor should start it again
    uptime_seconds: float
    heartbeat_age_seconds: float
    progress_age_seconds: dict[str, float]
    streams: dict[str, int]  # their lengths
    dead_letters: dict[str, int]  # the lengths of their dead-letter streams
    findings: list[str]  # of `reports`, `KIND` or `KIND SUBJECT`
    failing: list[str]  # those with the verdict "fail"


_FORMS = get_type_hints(HealthDocument)


def pipeline_of(settings: Settings) -> str:
    """Return what distinguishes the workers of one pipeline from those of another: its Redis."""
    return sha256(redacted(settings.redis_url or "").encode()).hexdigest()[:16]


def read_health(document: object) -> HealthDocument:
    """Return a received document without the fields that have another form."""
    if not isinstance(document, Mapping):
        return {}
    fields = {
        name: value
        for name, value in document.items()
        if name not in _FORMS or _fits(value, _FORMS[name])
    }
    if "cursors" not in fields:
        fields["cursors"] = _old_cursors(document)
    return cast(HealthDocument, fields)


def _old_cursors(document: Mapping[str, Any]) -> list[CursorHealth]:
    found = []
    for name, seq in document.items():
        if name.startswith(_OLD_CURSOR):
            stream, _, host = name.removeprefix(_OLD_CURSOR).removesuffix("]").partition(":")
            number = seq if isinstance(seq, int) else None
            found.append(CursorHealth(stream=stream, host=HostKey(host), seq=number))
    return found


def _fits(value: object, form: Any) -> bool:
    """Return whether a JSON value has the form of a type that the definitions use."""
    form = getattr(form, "__supertype__", form)
    if is_typeddict(form):
        fields = get_type_hints(form)
        return isinstance(value, Mapping) and all(
            name in value and _fits(value[name], fields[name]) for name in fields
        )
    kind, arguments = get_origin(form), get_args(form)
    if kind is UnionType:
        return any(_fits(value, each) for each in arguments)
    if kind is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if kind is dict:
        return isinstance(value, Mapping) and all(
            _fits(each, arguments[1]) for each in value.values()
        )
    if kind is Literal:
        return value in arguments
    if isinstance(value, bool):
        return form is bool
    return isinstance(value, int | float if form is float else form)
