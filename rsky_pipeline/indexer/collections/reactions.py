"""The common part of likes and reposts: their fields and their rules of notification."""

from rsky_pipeline.indexer.collections.fields import (
    Record,
    created_at,
    host,
    optional_reference,
    strong_reference,
)
from rsky_pipeline.indexer.collections.values import Notification, Put, Row


def read_reaction(record: Record) -> Row:
    """Return subject, subjectCid, via, viaCid and createdAt."""
    return (
        *strong_reference(record, "subject"),
        *optional_reference(record, "via"),
        created_at(record),
    )


def notifications(put: Put, reason: str, via_reason: str) -> list[Notification]:
    """Notify the subject's author and, if there is one, the reposter it was found through.

    A reaction to one's own record notifies nobody, whatever it was found through.
    """
    assert put.rows.main is not None
    subject, _, via, _, created = put.rows.main
    author = host(subject)
    if author == put.did:
        return []
    sort_at = put.sort_at(created)
    found = [Notification(author, reason, subject, sort_at)]
    if via is not None and host(via) != put.did:
        found.append(Notification(host(via), via_reason, via, sort_at))
    return found
