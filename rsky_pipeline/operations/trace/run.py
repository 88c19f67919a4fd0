"""Asking every place about one record."""

from collections.abc import Callable
from contextlib import closing

from rsky_pipeline.atproto.syntax import is_tid, tid_microseconds
from rsky_pipeline.configuration.selection import is_selected
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.scrape import scrape, targets
from rsky_pipeline.operations.trace.database import ask_database
from rsky_pipeline.operations.trace.pds import ask_pds
from rsky_pipeline.operations.trace.places import Firehose, InRedis, Subject, Traced
from rsky_pipeline.operations.trace.streams import LIMIT, search
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable


def trace(
    settings: Settings,
    subject: Subject,
    *,
    limit: int = LIMIT,
    on_progress: Callable[[str], None] = lambda step: None,
) -> Traced:
    """Ask PDS, ingester, Redis and PostgreSQL; nothing that does not answer ends it.

    `settings` went through `resolve_directories` and `store_urls`. Blocking, and not for use
    within a trio loop.
    """
    on_progress("asking the PDS")
    pds = ask_pds(settings, subject)
    on_progress("searching Redis")
    redis = _search(settings, subject, limit, on_progress)
    on_progress("asking the database")
    return Traced(
        subject, pds, _firehose(settings, subject), redis, ask_database(settings, subject)
    )


def _search(
    settings: Settings, subject: Subject, limit: int, on_progress: Callable[[str], None]
) -> InRedis:
    try:
        with closing(connect(settings.redis_url or "", name="trace")) as store:
            return search(store, subject, limit=limit, on_progress=on_progress)
    except (StoreUnavailable, StoreRejected) as error:
        return InRedis(problem=str(error))


def _firehose(settings: Settings, subject: Subject) -> Firehose:
    times = [
        value
        for target in targets(settings)
        if target.role == "ingester"
        for value in scrape(settings, target)
        .samples.get("ingester_last_event_timestamp_seconds", {})
        .values()
        if value
    ]
    selected = not subject.collection or is_selected(subject.collection, settings.collections)
    written = tid_microseconds(subject.rkey) / 1e6 if is_tid(subject.rkey) else None
    return Firehose(max(times, default=None), written, selected)
