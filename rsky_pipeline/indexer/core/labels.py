"""The `label` table: one row for (src, uri, cid, val), all rows of (src, uri, val) in one state.

The newest statement about (src, uri, val) is the current one, whichever version of the record it
names, if any (https://atproto.com/specs/label#label-lifecycle): a negation without a CID takes back
a label with one. It is written into the rows of all versions, also into that of a version for which
an older statement comes later: so the rows depend on no order of arrival. A negation is kept as a
row. Of two statements of the same millisecond the negation counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rsky_pipeline.atproto.datetimes import normalize
from rsky_pipeline.atproto.labels import MAX_VALUE_BYTES, broken_rule
from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.collections.fields import (
    MAX_CID_BYTES,
    MAX_DID_BYTES,
    MAX_REFERENCE_BYTES,
)
from rsky_pipeline.indexer.core.locks import LABELS, NAMESPACE
from rsky_pipeline.streams.event import LabelEvent, MalformedEventError, decode_labels

# Two workers with statements about one thing, of different versions, would not see each other.
_LOCK = f"SELECT pg_advisory_xact_lock({NAMESPACE}, {LABELS})::text"
_STORED = """
SELECT l.src, l.uri, l.cid, l.val, l.neg, l.cts, l.exp
FROM unnest(%b::text[], %b::text[], %b::text[]) AS n(src, uri, val)
JOIN label l ON l.src = n.src AND l.uri = n.uri AND l.val = n.val
"""
_UPSERT = """
INSERT INTO label (src, uri, cid, val, neg, cts, exp)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::boolean[], %b::text[],
    %b::text[])
ON CONFLICT (src, uri, cid, val) DO UPDATE
SET neg = EXCLUDED.neg, cts = EXCLUDED.cts, exp = EXCLUDED.exp
"""
Subject = tuple[str, str, str]  # src, uri, val


class LabelRow(NamedTuple):
    """A label as its row."""

    src: str
    uri: str
    cid: str
    val: str
    neg: bool
    cts: str
    exp: str | None

    @property
    def subject(self) -> Subject:
        """What it is about: of one subject one statement is current."""
        return self.src, self.uri, self.val

    @property
    def age(self) -> tuple[str, bool, str]:
        """Orders the statements about one subject."""
        return self.cts, self.neg, self.exp or ""


@dataclass(frozen=True, slots=True)
class LabelReading:
    """The labels of an entry, and the reasons why others of it cannot be stored."""

    labels: tuple[LabelRow, ...] = ()
    refused: tuple[MalformedEventError, ...] = ()


def read_labels(fields: Mapping[bytes, bytes] | None) -> LabelReading:
    """Read an entry of `label_live`; labels that cannot be stored are refused one by one."""
    labels: list[LabelRow] = []
    refused: list[MalformedEventError] = []
    try:
        events = decode_labels(fields or {}, refused)
    except MalformedEventError as error:
        return LabelReading(refused=(error,))
    for event in events:
        try:
            labels.append(_label(event))
        except MalformedEventError as error:
            refused.append(error)
    return LabelReading(tuple(labels), tuple(refused))


def apply_labels(
    database: Database,
    labels: Sequence[LabelRow],
    mark: Callable[[Transaction], None] | None = None,
) -> tuple[int, int]:
    """Store labels; return how many subjects have a new state: (positive, negated).

    `mark` is called in the transaction.
    """
    if not labels:
        return 0, 0
    subjects = sorted({label.subject for label in labels})
    with database.transaction() as tx:
        tx.query(_LOCK)
        stored = [LabelRow(*row) for row in tx.query(_STORED, transpose(subjects))]
        current: dict[Subject, LabelRow] = {}
        for label in (*stored, *labels):
            known = current.get(label.subject)
            if known is None or known.age < label.age:
                current[label.subject] = label
        before = {(*label.subject, label.cid): label.age for label in stored}
        rows = [
            current[src, uri, val]._replace(cid=cid)
            for src, uri, val, cid in sorted(
                {(*label.subject, label.cid) for label in (*stored, *labels)}
            )
        ]
        written = [row for row in rows if before.get((*row.subject, row.cid)) != row.age]
        if written:
            tx.execute(_UPSERT, transpose(written))
        if mark is not None:
            mark(tx)
    ages = {label.subject: label.age for label in stored}
    news = [label.neg for subject, label in current.items() if ages.get(subject) != label.age]
    return len(news) - sum(news), sum(news)


def _label(event: LabelEvent) -> LabelRow:
    if broken := broken_rule(event.src, event.uri, event.val):
        raise MalformedEventError("invalid_label", broken)
    for name, value, limit in (  # one row of the table's index has to hold them all
        ("src", event.src, MAX_DID_BYTES),
        ("uri", event.uri, MAX_REFERENCE_BYTES),
        ("cid", event.cid, MAX_CID_BYTES),
        ("val", event.val, MAX_VALUE_BYTES),
    ):
        if "\0" in value or len(value.encode("utf-8", "replace")) > limit:
            raise MalformedEventError(
                "invalid_label", f"{name} is too long or holds a NUL character"
            )
    cts = normalize(event.cts)
    exp = None if event.exp is None else normalize(event.exp)
    if cts is None or (event.exp is not None and exp is None):
        raise MalformedEventError("invalid_label", "cts or exp is no datetime")
    return LabelRow(event.src, event.uri, event.cid, event.val, event.neg, cts, exp)
